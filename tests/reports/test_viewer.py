import base64
import gzip
import hashlib
import io
import json
import math
import re
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.io.voxels import AIR_HU
from spinejax.reports import viewer
from spinejax.volume import Volume

IDS = {"L1": 20, "L2": 21, "L3": 22, "L4": 23}


def spine(spacing_mm=(2.0, 2.0, 2.0), turned=None):
    """Four bodies on a slant, in soft tissue with noise: scan, labels and centres."""
    shape = tuple(round(side / mm) for side, mm in zip((100, 120, 180), spacing_mm, strict=True))
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = 50, 60, -90
    if turned is not None:
        affine[:3, :3] = turned @ affine[:3, :3]
    array = np.random.default_rng(1).normal(40, 20, shape)
    mask = np.zeros(shape, np.uint8)
    centres = {}
    for step, label in enumerate(IDS.values()):
        where = np.array([50 + 4 * step, 50 + 5 * step, 145 - 34 * step]) / spacing_mm
        half = np.array([18, 14, 12]) / spacing_mm
        box = tuple(slice(int(a), int(b)) for a, b in zip(where - half, where + half, strict=True))
        mask[box], array[box] = label, 300 + 100 * step
        centres[label] = np.array([(part.start + part.stop - 1) / 2 for part in box])
    return Volume(array.astype(np.int16), affine), mask, centres


def record(**more):
    vertebrae = [
        {"name": name, "label": i, "probability": 0.97, "margin": 4.2, "cut": name == "L1"}
        for name, i in IDS.items()
    ]
    return {"case": "x", "certain": True, "vertebrae": vertebrae, "seconds": 2.5, **more}


def page(found=None, title="case", scan=None):
    volume, mask, centres = spine() if scan is None else scan
    found = record() if found is None else found
    return viewer.page(
        volume, mask, found, centres, title=title, summary="L1-L4 written", named=True
    )


def payload(text, name):
    (data,) = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', text, re.DOTALL)
    return gzip.decompress(base64.b64decode(data))


def test_the_viewer_is_the_file_that_its_readme_names():
    folder = resources.files("spinejax.reports") / "niivue"
    readme = (folder / "README.md").read_text()
    digest = hashlib.sha256(gzip.decompress(viewer.niivue())).hexdigest()
    assert f"`{digest}`" in readme and "| 0.69.0 |" in readme
    assert (folder / "LICENSE").read_text().startswith("NiiVue (@niivue/niivue 0.69.0)")
    assert b"0.69.0" in gzip.decompress(viewer.niivue())


def test_the_page_holds_the_scan_and_the_labels():
    volume, mask, _ = spine()
    text = page()
    scan = nib.Nifti1Image.from_bytes(payload(text, "scan"))
    stored = nib.Nifti1Image.from_bytes(payload(text, "mask"))
    np.testing.assert_array_equal(scan.affine, stored.affine)
    assert stored.get_data_dtype() == scan.get_data_dtype() == np.uint8
    # Every voxel of the page lies on a voxel of the scan.
    index = np.moveaxis(np.indices(stored.shape), 0, -1)
    places = geometry.world_to_voxel(volume.affine, geometry.voxel_to_world(stored.affine, index))
    at = tuple(np.moveaxis(np.rint(places).astype(int), -1, 0))
    assert np.abs(places - np.rint(places)).max() < 1e-4
    np.testing.assert_array_equal(np.asarray(stored.dataobj), mask[at])
    assert np.count_nonzero(stored.dataobj) == np.count_nonzero(mask)
    error = scan.get_fdata() - np.clip(volume.array[at], -250, 1025)
    assert np.abs(error).max() <= 2.5
    assert payload(text, "niivue") == gzip.decompress(viewer.niivue())


def test_a_page_has_means_of_blocks_of_voxels():
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 1000, (24, 18, 32)).astype(np.float32)
    volume = Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    mask = np.ones(array.shape, np.uint8)
    small = viewer.reduce(volume, mask, most_voxels=array.size // 8)
    assert small.scan.shape == (12, 9, 16) and small.spacing_mm == (2, 2, 2)
    means = array.reshape(12, 2, 9, 2, 16, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(small.scan * 5.0 - 250, means, atol=2.51)
    np.testing.assert_allclose(small.affine[:3, 3], [-0.5, -0.5, 0.5])  # the first block's middle


def test_coarse_slices_stay_and_fine_ones_get_coarser():
    volume, mask, _ = spine((1.0, 1.0, 6.0))
    small = viewer.reduce(volume, mask, most_voxels=40_000)
    assert small.scan.size <= 40_000
    assert small.spacing_mm[2] == pytest.approx(6) and 1.5 < small.spacing_mm[0] < 6
    whole = viewer.reduce(volume, mask)
    assert whole.spacing_mm == pytest.approx((1, 1, 6))


def test_a_tilted_scan_is_straight_on_the_page():
    shear = np.eye(3)
    shear[1, 2] = 0.3
    volume, mask, _ = spine(turned=shear)
    small = viewer.reduce(volume, mask)
    assert geometry.straight_grid(small.scan.shape, small.affine) is None
    for label in IDS.values():
        here = geometry.voxel_to_world(small.affine, np.argwhere(small.mask == label).mean(axis=0))
        there = geometry.voxel_to_world(volume.affine, np.argwhere(mask == label).mean(axis=0))
        assert np.linalg.norm(here - there) < 1.0
        bright = small.scan[small.mask == label].mean() * 5 - 250
        assert bright == pytest.approx(volume.array[mask == label].mean(), rel=0.1)


@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 0, 1)])
def test_the_box_of_a_tilted_scan_is_cut_as_after_resampling_all_of_it(turn, monkeypatch):
    shear = np.eye(3)
    shear[1, 2], shear[0, 1] = 0.3, -0.1
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 1000, (70, 80, 90)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.1, 1.3]) @ shear[:, list(turn)]
    affine[:3, 3] = 7, -20, 300
    scan = Volume(array, affine)
    mask = np.zeros(scan.shape, np.uint8)
    mask[34:40, 38:45, 40:44], mask[35:38, 39:42, 47:50] = 20, 21
    shape, straight = geometry.straight_grid(scan.shape, scan.affine)
    hu = geometry.resample(scan.array, scan.affine, shape, straight, order=1, fill=AIR_HU)
    upright = Volume(np.rint(hu), straight)
    labels_there = geometry.resample(mask, scan.affine, shape, straight, order=0, fill=0)
    expected = viewer.reduce(upright, geometry.reorient(labels_there, straight, "LPS")[0], 100_000)
    sizes = []
    resample = geometry.resample

    def counting(array, affine, shape, *args, **kwargs):
        sizes.append(math.prod(shape))
        return resample(array, affine, shape, *args, **kwargs)

    monkeypatch.setattr(geometry, "resample", counting)
    found = viewer.reduce(scan, mask, 100_000)
    assert found.scan.size < 100_000 and {20, 21} <= set(np.unique(expected.mask))
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert np.abs(found.scan.astype(int) - expected.scan).max() <= 1  # 5 HU, of rounding
    assert (found.scan == expected.scan).mean() > 0.99
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    assert len(sizes) == 2 and max(sizes) < math.prod(shape) / 2


def test_the_page_loads_nothing():
    text = page()
    for kind in ("src", "href"):
        for link in re.findall(rf'\s{kind}="([^"]*)"', text):
            assert link.startswith("data:"), link
    assert "default-src 'none'" in text and "http-equiv" in text
    assert not re.search(r"@import|url\(", text)
    assert len(text) < 5_000_000


def test_words_of_the_user_are_text_and_no_html():
    evil = '"><script>alert("ä")</script>&'
    found = record(warnings=[evil], model=evil)
    text = page(found, title=evil)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    entry = json.loads(viewer._ENTRY.search(text).group(1))
    assert entry["title"] == evil


def test_the_path_of_the_scan_is_not_on_the_page(tmp_path):
    volume, mask, centres = spine()
    path = tmp_path / "MUSTER_ERIKA.nii.gz"
    image = nib.Nifti1Image(volume.native, volume.native_affine)
    image.header["descrip"] = b"MUSTER ERIKA"
    nib.save(image, path)
    from spinejax.io.scanfile import read_volume

    text = page(scan=(read_volume(path), mask, centres))
    everything = text.encode() + payload(text, "scan") + payload(text, "mask")
    assert b"MUSTER" not in everything and str(tmp_path).encode() not in everything


@pytest.mark.parametrize("found", [{}, {"vertebrae": [{"name": "L2"}]}, record()], ids=len)
def test_the_page_shows_what_a_record_has(found):
    text = page(found)
    titles = re.findall(r'<th scope="col">([^<]*)</th>', text)
    assert (
        titles
        == [["Vertebra"], [], ["Vertebra", "Name right, %", "Margin"]][
            2 if "certain" in found else 0 if found else 1
        ]
    )


def test_a_missing_number_is_a_dash_with_the_reason():
    found = record()
    for one in found["vertebrae"]:
        one |= {"height_anterior_mm": 24.04, "hu_mean": -12.4, "genant": None}
    found["vertebrae"][0] |= {"height_anterior_mm": None, "next_name": "T12"}
    found["vertebrae"][1] |= {"hu_mean": None, "not_measured": {"hu_mean": "metal"}}
    rows = viewer.vertebra_rows(found, {20: np.zeros(3)})
    titles, cells = viewer.record_table(found, rows)
    assert titles == [
        "Name right, %",
        "Margin",
        "Next name",
        "Core, mean HU",
        "Anterior height, mm",
    ]
    assert cells[0] == [("97", ""), ("4.2", ""), ("T12", ""), ("−12", ""), ("–", "cut by the edge")]
    assert cells[1][3:] == [("–", "metal"), ("24.0", "")]
    assert rows[0].mm == [0, 0, 0] and rows[1].mm is None
    assert 'title="metal">–</td>' in page(found)


def test_cobb_angles_have_their_value_or_the_reason():
    angles = {
        "lumbar_lordosis": {"cobb_deg": -41.26, "upper": "L1", "lower": "L5"},
        "coronal": {"cobb_deg": None, "not_measured": "fewer than 3 bodies"},
    }
    found = record(cobb_angles=angles, note="No diagnosis.")
    assert viewer.cobb_angles(found) == [
        ("Lumbar lordosis", "−41.3°, L1 to L5"),
        ("Coronal", "– (fewer than 3 bodies)"),
    ]
    text = page(found)
    assert "−41.3°, L1 to L5" in text and "No diagnosis." in text


@pytest.mark.parametrize(
    ("more", "title", "words"),
    [
        (
            {
                "certain": False,
                "namings": [
                    {"names": ["T12", "L1"], "probability": 0.9},
                    {"names": ["T11", "L1"], "probability": 0.02},
                ],
            },
            "The numbering is uncertain",
            "T12-L1 (0.90) or T11, L1 (0.02), each with",
        ),
        ({"not_found": ["T9", "T10"]}, "Not found", "T9 and T10, between"),
        ({"reversed": True}, "Head and foot", "orientation of the file"),
        ({"no_vertebra": 1}, "Left out as no vertebra", "1 piece of the mask"),
        ({"variants": {"L6": 0.8, "T13": 0.1}}, "Variant of the spine", "L6 (probability 0.80)"),
        ({"warnings": ["metal beside L3"]}, "Warning", "metal beside L3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_warnings_are_said_in_words(more, title, words):
    found = [one for one in viewer.warnings(record(**more)) if one[0] == title]
    assert len(found) == 1 and words in found[0][1]
    assert (
        "Cut by the edge of the scan",
        "L1: no volume is measured, and no height of a body that the edge cuts.",
    ) in viewer.warnings(record(**more))


def test_labels_without_names_have_a_page_and_an_empty_mask_has_one():
    volume, mask, _ = spine()
    for labelled in ((mask > 0).astype(np.uint8), np.zeros_like(mask)):
        text = viewer.page(
            volume, labelled, {}, {}, title="a", summary="63 ml of spine written", named=False
        )
        assert "63 ml of spine written." in text and "The spine drawn straight" not in text
        stored = nib.Nifti1Image.from_bytes(payload(text, "mask"))
        assert np.count_nonzero(stored.dataobj) == np.count_nonzero(labelled)
        thumbnail = viewer._ENTRY.search(text).group(1)
        jpeg = base64.b64decode(json.loads(thumbnail)["thumbnail"].partition(",")[2])
        assert max(Image.open(io.BytesIO(jpeg)).size) >= 100


def test_the_straightened_spine_has_the_names_in_a_column():
    volume, mask, centres = spine()
    places = {i: geometry.voxel_to_world(volume.affine, p) for i, p in centres.items()}
    for picture, rgb in viewer.straightened(volume, mask, places):
        assert [name.words for name in picture.names] == list(IDS)
        assert np.ptp([name.x for name in picture.names]) == 0
        for name in picture.names:
            row, column = round(name.y), round(name.x)
            assert picture.layer[row, column] == labels.id_of(name.words)
        assert rgb.shape == (*picture.size, 3)


def test_a_folder_gets_an_index_of_its_pages(tmp_path):
    text = page(record(certain=False))
    (tmp_path / "a b#1.html").write_text(page(title="<b>"), "utf-8")
    assert viewer.write_index(tmp_path) is None
    (tmp_path / "c.html").write_text(text, "utf-8")
    (tmp_path / "notes.html").write_text("<html>mine</html>")
    damaged = '<script type="application/json" id="entry">{"thumbnail": 3}</script>'
    (tmp_path / "damaged.html").write_text(damaged)
    assert viewer.write_index(tmp_path) == tmp_path / "index.html"
    found = (tmp_path / "index.html").read_text("utf-8")
    assert found.count("<tr><td>") == 2 and "<b>" not in found and "&lt;b&gt;" in found
    assert 'href="a%20b%231.html"' in found and 'href="c.html"' in found
    assert "notes" not in found and "damaged" not in found
    assert "The numbering of 1 is uncertain" in found
    assert viewer.write_index(tmp_path) is not None  # its own page is replaced
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match="did not write this file"):
        viewer.write_index(tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


READY = "document.getElementById('stage')?.dataset.ready"


def bright(png: bytes, box) -> float:
    """Return the share of pixels in a box of a picture that are not black."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB").crop(box))
    return float((pixels.max(axis=-1) > 40).mean())


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_browser_draws_the_scan_and_jumps_to_a_vertebra(chromium, tmp_path, width):
    path = tmp_path / "case.html"
    path.write_text(page(), "utf-8")
    volume, _, centres = spine()
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(path, width, 900)
    assert chromium.wait(READY) == "true"
    place = "document.getElementById('place').dataset"

    chromium.click('table.record button[data-name="L3"]')
    chromium.wait(f"{place}.name === 'L3'")
    there = geometry.voxel_to_world(volume.affine, centres[22])
    here = [float(side) for side in chromium.value(f"{place}.mm").split()]
    assert np.abs(here - there).max() <= 1.5  # half a voxel of 2 mm, and rounding
    assert chromium.value("location.hash") == "#L3"
    marked = "[...document.querySelectorAll('tr[aria-current]')].map(e => e.dataset.name)"
    assert chromium.value(marked) == ["L3"]

    # Planes and 3D are drawn; in 3D there is nothing but labels on black.
    chromium.value("scrollTo(0, document.getElementById('stage').offsetTop - 40)")
    boxes = chromium.value(
        "['planes', 'render'].map(id => {const b = document.getElementById(id)"
        ".getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]})"
    )
    picture = chromium.picture()
    assert bright(picture, boxes[0]) > 0.2
    assert 0.02 < bright(picture, boxes[1]) < 0.9

    # A click into the planes moves the crosshair, from L3.
    left, top, right, bottom = boxes[0]
    chromium.press(left + (right - left) * 0.2, top + (bottom - top) * 0.2)
    chromium.wait(f"{place}.mm !== '{' '.join(f'{side:.2f}' for side in here)}'")

    if width < 600:  # nothing is wider than the phone
        assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.errors == []
    assert all(one.startswith(("file:", "data:", "blob:", "about:")) for one in chromium.requests)


def test_an_address_with_a_name_opens_there_and_the_views_change(chromium, tmp_path):
    path = tmp_path / "case.html"
    path.write_text(page(), "utf-8")
    chromium.open(path, 1280, 900, "#L2")
    chromium.wait(READY)
    assert chromium.wait("document.getElementById('place').dataset.name") == "L2"
    for view, (planes, render) in {
        "axial": (True, False), "render": (False, True), "all": (True, True),
    }.items():  # fmt: skip
        chromium.click(f'[data-view="{view}"]')
        shown = "getComputedStyle(document.getElementById('{}-box')).display !== 'none'"
        chromium.wait(f"document.querySelector('[aria-pressed=true]').dataset.view === '{view}'")
        assert chromium.value(shown.format("planes")) is planes
        assert chromium.value(shown.format("render")) is render
    chromium.click('[data-window="Soft tissue"]')
    assert chromium.value(
        "[viewer.planes.volumes[0].cal_min, viewer.planes.volumes[0].cal_max]"
    ) == [
        -160,
        240,
    ]


def test_the_index_is_sorted_by_a_click(chromium, tmp_path):
    for name, certain in (("b", True), ("a", False)):
        (tmp_path / f"{name}.html").write_text(page(record(certain=certain), name), "utf-8")
    chromium.open(Path(viewer.write_index(tmp_path)), 1280, 900)
    names = "[...document.querySelectorAll('tbody th a')].map(e => e.textContent).join('')"
    assert chromium.wait(names) == "ab"

    def press(column):
        # Not by its place: a busy machine lays the table out again when its thumbnails are drawn.
        chromium.value(f"document.querySelector('thead th:nth-child({column}) button').click()")

    press(2)
    chromium.wait(f"{names} === 'ba'")
    press(5)  # certain before uncertain
    chromium.wait("document.querySelector('th:nth-child(5)').ariaSort === 'ascending'")
    assert chromium.value(names) == "ba"
    press(5)
    chromium.wait(f"{names} === 'ab'")
