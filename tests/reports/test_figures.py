import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from spinejax import geometry, labels, overlay
from spinejax.files import LIST
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
    assert {file.name for file in path.parent.iterdir()} == {"a.png", LIST}


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


# One colour a level, names, and the coronal picture along the spine.


def curved_spine():
    """Ten bodies on a strongly curved line (lordosis), one below the other, 2 mm voxels."""
    shape = (40, 120, 150)
    image, mask, centres = np.zeros(shape, np.int16), np.zeros(shape, np.uint8), {}
    for number in range(8):
        label, z = 25 - 1 - number, 12 + 17 * number
        y = round(60 + 40 * np.sin(z / 28))
        mask[14:26, y - 6 : y + 7, z - 6 : z + 7] = label
        centres[label] = np.array([19.5, y, z], float)
    image[mask > 0] = 300
    return Volume(image, np.diag([-2.0, -2.0, 2.0, 1.0])), mask, centres


def test_the_coronal_picture_follows_the_bodies():
    volume, mask, centres = curved_spine()
    _, coronal, _ = figures.planes(volume, mask, None, centres)
    flat = figures.planes(volume, mask)[1]
    shown = {n for n in np.unique(coronal.layer % figures.OUTLINE).tolist() if n}
    assert shown == set(centres)  # a plane shows a few of them only
    plane = mask[:, np.flatnonzero(mask.any(axis=(0, 2))).mean().astype(int)]
    assert len(set(np.unique(plane)) - {0}) < len(centres)
    # Its length is that of the curve, longer than the scan is high.
    assert coronal.grey.shape[0] / coronal.pixels_per_mm > 1.2 * 150 * 2
    assert flat.grey.shape[0] / flat.pixels_per_mm == pytest.approx(150 * 2, rel=0.02)
    # Every name is on its own body, and from left to right nothing is stretched.
    for x, y, words in coronal.names:
        at = coronal.layer[round(y), round(x)] % figures.OUTLINE
        assert labels.name(int(at)) == words
    wide = np.flatnonzero((coronal.layer > 0).any(axis=0))
    assert np.ptp(wide) / coronal.pixels_per_mm == pytest.approx(24, abs=2)


def test_lengths_along_the_curve_are_true():
    centres = np.array([[5.0, 10.0, 0.0], [5.0, 40.0, 30.0]])  # a straight line at 45 degrees
    curve = figures.spine_curve(centres, (10, 60, 31), (1.0, 1.0, 1.0), 0.5)
    steps = np.hypot(*np.diff(curve, axis=0).T)
    np.testing.assert_allclose(steps[:-1], 0.5, rtol=0.01)
    assert len(curve) == pytest.approx(30 * 2**0.5 / 0.5, abs=2)
    assert curve[0][1] == 30 and curve[-1][1] == pytest.approx(0, abs=0.5)  # from top to bottom


@pytest.mark.parametrize("to", ["RAS", "PIR", "IRP"])
def test_the_picture_along_the_spine_does_not_depend_on_the_orientation_on_disk(to):
    volume, mask, centres = curved_spine()
    turned = Volume(*geometry.reorient(volume.array, volume.affine, to))
    for one, other in zip(
        figures.planes(volume, mask, None, centres),
        figures.planes(turned, mask, None, centres),
        strict=True,
    ):
        np.testing.assert_array_equal(one.grey, other.grey)
        np.testing.assert_array_equal(one.layer, other.layer)


def test_the_centre_of_a_cut_vertebra_does_not_bend_the_curve():
    volume, mask, centres = curved_spine()
    spacing = volume.spacing_mm
    expected = figures.spine_curve(np.array(list(centres.values())), mask.shape, spacing, 1.0)
    top = centres[min(centres)]
    process = top + [0, 30, 5]  # of the next vertebra, of which nothing else is in the scan
    cut = np.array([*centres.values(), process])
    np.testing.assert_array_equal(figures.spine_curve(cut, mask.shape, spacing, 1.0), expected)


def test_a_single_vertebra_and_two_at_one_height_have_a_picture():
    volume, mask, centres = curved_spine()
    one = {20: centres[20]}
    figures.planes(volume, mask, None, one)
    figures.planes(volume, mask, None, {**one, 21: centres[20] + 0.5})


def test_every_level_has_its_colour_in_every_picture():
    volume, mask, centres = curved_spine()
    picture = pixels(figures.quicklook_png(volume, mask, centroids=centres))
    for label in centres:
        assert has_colour(picture[80:], labels.RGB[label]).any(), label
    assert len(set(labels.RGB.values())) == len(labels.NAMES)
    order = sorted(labels.NAMES, key=labels.order)
    colours = np.array([labels.RGB[label] for label in order], float)
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 80


def test_a_wrong_name_and_a_vertebra_too_many_are_said():
    volume, mask, centres = curved_spine()
    reference = np.where(mask == 24, 0, mask)
    reference[reference == 20] = 19
    sagittal, *_ = figures.planes(volume, mask, reference.astype(np.uint8), centres)
    words = {name.words for name in sagittal.names}
    assert {"L5 extra", "L1 not T12", "L2"} <= words
