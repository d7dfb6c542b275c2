import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from spinejax import geometry, overlay
from spinejax.reports import figures
from spinejax.volume import Volume

SPACING = (0.8, 1.6, 2.5)
SHAPE = (60, 40, 30)  # canonical: left, posterior, superior


def canonical_volume():
    """A body of soft tissue with one bright marker at the left, the front and the top."""
    array = np.full(SHAPE, 40, np.int16)
    array[45:57, 2:8, 24:29] = 2000
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    return Volume(array, affine)


def box_mask():
    """A cube with sides of 24 mm around the middle of the scan."""
    mask = np.zeros(SHAPE, np.uint8)
    sides = [round(24 / mm) for mm in SPACING]
    mask[
        tuple(
            slice((n - side) // 2, (n - side) // 2 + side)
            for n, side in zip(SHAPE, sides, strict=True)
        )
    ] = 22
    return mask


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(picture, rgb):
    return (picture == np.array(rgb)).all(axis=-1)


def panels_of(picture):
    """Split the picture at the empty columns between the panels."""
    body = picture[80:-70]
    filled = (body != np.array(pixels_background(picture))).any(axis=(0, 2))
    edges = np.flatnonzero(np.diff(np.r_[0, filled.astype(int), 0]))
    pairs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 60]
    assert len(pairs) == 3
    return [body[:, a:b] for a, b in pairs]


def pixels_background(picture):
    return picture[0, 0]


@pytest.mark.parametrize("to", ["LPS", "RAS", "PIR", "SAL", "IRP", "ASR", "LIP"])
def test_the_picture_does_not_depend_on_the_orientation_on_disk(to):
    volume, mask = canonical_volume(), box_mask()
    expected = pixels(figures.quicklook_png(volume, mask, title="x"))
    array, affine = geometry.reorient(volume.array, volume.affine, to)
    picture = pixels(figures.quicklook_png(Volume(array, affine), mask, title="x"))
    np.testing.assert_array_equal(picture[72:], expected[72:])


def test_radiological_convention():
    volume = canonical_volume()
    marker = np.zeros(SHAPE, np.uint8)
    marker[45:57, 2:8, 24:29] = 1
    picture = pixels(figures.quicklook_png(volume, marker))
    sagittal, coronal, axial = (
        np.argwhere(has_colour(panel, overlay.PREDICTION_RGB)).mean(axis=0) / panel.shape[:2]
        for panel in panels_of(picture)
    )
    assert sagittal[0] < 0.3 and sagittal[1] < 0.3  # superior at the top, anterior on the left
    assert coronal[0] < 0.3 and coronal[1] > 0.7  # the patient's left on the right
    assert axial[0] < 0.3 and axial[1] > 0.7  # anterior at the top


def test_a_cube_is_square_in_every_panel_and_the_scale_is_common():
    picture = pixels(figures.quicklook_png(canonical_volume(), box_mask()))
    sides = []
    for panel in panels_of(picture):
        rows, columns = np.nonzero(has_colour(panel, overlay.PREDICTION_RGB))
        sides += [np.ptp(rows), np.ptp(columns)]
    # One voxel of 2.5 mm at 6 pixels per mm is the grain of the mask.
    assert max(sides) - min(sides) <= 15
    assert abs(np.mean(sides) - 24 * 6) <= 8


def test_reference_and_agreement_have_their_own_colours():
    mask = box_mask()
    shifted = np.roll(mask, 4, axis=0)
    picture = pixels(figures.quicklook_png(canonical_volume(), mask, shifted))
    for rgb in (overlay.PREDICTION_RGB, overlay.REFERENCE_RGB, overlay.BOTH_RGB):
        assert has_colour(picture[80:], rgb).sum() > 50
    alone = pixels(figures.quicklook_png(canonical_volume(), mask))
    assert not has_colour(alone, overlay.REFERENCE_RGB).any()


def test_colours_stay_apart_for_colour_blind_readers():
    # Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
    deficiencies = {
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "none": np.eye(3).tolist(),
    }
    colours = [overlay.PREDICTION_RGB, overlay.REFERENCE_RGB, overlay.BOTH_RGB, (128, 128, 128)]
    linear = (np.array(colours) / 255.0) ** 2.2
    for name, matrix in deficiencies.items():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2) * 255
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert gaps[np.triu_indices(4, 1)].min() > 60, name


def test_centre_is_the_median_of_the_foreground():
    generator = np.random.default_rng(0)
    mask = generator.random((20, 30, 70)) < 0.01
    mask[4:8, 10:15, 20:50] = True
    middle = figures.centre(mask)
    expected = [np.sort(axis)[(len(axis) - 1) // 2] for axis in np.nonzero(mask)]
    assert middle == tuple(expected)
    assert figures.centre(np.zeros((3, 3, 3))) is None


def test_an_empty_prediction_still_gives_a_picture(tmp_path):
    path = figures.quicklook(
        canonical_volume(), np.zeros(SHAPE, bool), None, tmp_path / "new" / "a.png"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("case", ["a$^{$b", "脊柱 scan", "x" * 300, ""])
def test_any_case_name_can_be_printed(case):
    assert figures.quicklook_png(canonical_volume(), box_mask(), title=case)


def test_tiny_and_very_anisotropic_scans():
    for shape, spacing in (((1, 1, 1), (1, 1, 1)), ((3, 200, 4), (5, 0.2, 8)), ((2, 2, 900), 3)):
        affine = np.diag([*np.broadcast_to(spacing, 3), 1.0]).astype(float)
        volume = Volume(np.zeros(shape, np.int16), affine)
        picture = pixels(figures.quicklook_png(volume, np.ones(shape, np.uint8)))
        assert max(picture.shape) < 2500


def test_a_picture_of_a_huge_scan_takes_little_memory():
    shape = (512, 512, 1000)
    affine = np.diag([-0.8, -0.8, 0.8, 1.0])
    volume = Volume(np.broadcast_to(np.int16(30), shape), affine)
    mask = np.broadcast_to(np.uint8(0), shape)
    tracemalloc.start()
    figures.quicklook_png(volume, mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="`reference` of shape"):
        figures.quicklook_png(canonical_volume(), box_mask(), box_mask()[1:])


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(ValueError, match="not on the volume's grid"):
        figures.quicklook(canonical_volume(), box_mask()[1:], None, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
