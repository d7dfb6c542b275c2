"""The page of `spinejax doctor`: pictures, problems, and what it must not show."""

import base64
import io
import re
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from spinejax import labels, overlay
from spinejax.cli import main
from spinejax.reports import data_page
from spinejax.volume import LabelVolume, Volume
from tests.support import browser, nifti_files
from tests.support.cli_runs import fails
from tests.support.dicom_files import PATIENT, series, write
from tests.support.nifti_files import tissue

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS
save = partial(nifti_files.save, affine=AFFINE)
SHAPE = (30, 60, 60)


def mask(*numbers, shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    for i, number in enumerate(numbers):
        array[10:20, 36:52, 40 - 20 * i : 54 - 20 * i] = number
    return array


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)


def near(picture, rgb):
    return (np.abs(picture - rgb).sum(axis=-1) < 90).mean()


def test_a_picture_shows_levels_in_their_colours_at_true_proportions():
    scan = Volume(np.full(SHAPE, -1000, np.int16), AFFINE)
    picture = pixels(data_page.thumbnail(scan, LabelVolume(mask(20, 21), AFFINE), True))
    rows, columns, _ = picture.shape
    assert rows / columns == pytest.approx(120 / 60, rel=0.02)
    for number, part in ((20, picture[: rows // 2]), (21, picture[rows // 2 :])):
        assert near(part, labels.RGB[number]) > 0.004
        # Posterior is on the right.
        assert near(part[:, : columns // 2], labels.RGB[number]) == 0
    plain = pixels(data_page.thumbnail(scan, LabelVolume(mask(1), AFFINE), False))
    assert near(plain, overlay.PREDICTION_RGB) > 0.004


def test_a_mask_on_another_grid_is_drawn_at_its_place():
    scan = Volume(np.full(SHAPE, -1000, np.int16), AFFINE)
    same = pixels(data_page.thumbnail(scan, LabelVolume(mask(20, 21), AFFINE), True))
    array = mask(20, 21)[:, ::-1, 10:]
    affine = AFFINE @ np.array([[1, 0, 0, 0], [0, -1, 0, 59], [0, 0, 1, 10], [0, 0, 0, 1.0]])
    other = pixels(data_page.thumbnail(scan, LabelVolume(array, affine), True))
    assert np.abs(same - other).max() < 60  # JPEG


def test_a_picture_of_either_alone():
    array = np.full(SHAPE, -1000, np.int16)
    array[14:16] = 800  # the middle slice
    assert pixels(data_page.thumbnail(Volume(array, AFFINE), None, False)).mean() > 200
    alone = pixels(data_page.thumbnail(None, LabelVolume(mask(20, 21), AFFINE), True))
    assert near(alone, labels.RGB[20]) > 0.004 and near(alone, (0, 0, 0)) > 0.5
    with pytest.raises(ValueError, match="both None"):
        data_page.thumbnail(None, None, False)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "d"
    for i, name in enumerate(("a", "b")):
        save(root / f"{name}_ct.nii.gz", tissue(SHAPE, i).astype(np.int16))
        save(root / f"{name}_seg.nii.gz", mask(20, 21 + i))
    save(root / "<i>map&.nii.gz", mask(20, 21))
    hu = np.full((40, 40, 12), -1000)
    hu[10:30, 10:30] = tissue((20, 20, 12), 5)
    write(root / "scan9", series(hu, np.diag([-4.0, -4.0, 4.0, 1.0]), SeriesDescription=PATIENT))
    return root


def test_the_page_names_what_is_wrong_and_no_patient(data, tmp_path, capsys):
    page = tmp_path / "p.html"
    assert main(["doctor", str(data), f"--page={page}"]) == 0
    out, text = capsys.readouterr().out, page.read_text("utf-8")
    assert f"page: {page}" in out
    assert text.count("data:image/jpeg") == 4
    assert "<i>" not in text and "&lt;i&gt;map&amp;.nii.gz: holds only the numbers" in text
    assert "b_seg.nii.gz goes from L1 to L3" in text and "no mask for scan9" in text
    for word in PATIENT.split("^"):
        assert word not in text and word not in out
    # It loads nothing.
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text)
    assert main(["doctor", str(data), f"--page={page}"]) == 0  # its own page is replaced
    page.write_text("mine")
    fails(capsys, ["doctor", data, f"--page={page}"], "did not write this file", "--overwrite")
    assert page.read_text() == "mine"
    fails(capsys, ["doctor", f"--page={tmp_path / 'q.html'}"], "add --data=DIR")
    fails(capsys, ["doctor", data, f"--page={tmp_path / 'q.txt'}"], "q.html")
    assert not (tmp_path / "q.txt").exists()


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium")
def test_the_page_is_sorted_and_fits_a_phone(data, tmp_path):
    page = tmp_path / "p.html"
    assert main(["doctor", str(data), f"--page={page}"]) == 0
    home = tmp_path / "home"
    names = "[...document.querySelectorAll('tbody th')].map(e => e.dataset.key).join(' ')"
    with browser.Browser(home) as opened:
        opened.open(page, 1280, 900)
        assert opened.value(names) == "<i>map& a b scan9"
        for _ in range(2):
            opened.click("thead th:nth-child(6) button")
        assert opened.value(names).endswith(" a")  # the only one without a problem
        opened.open(page, 390, 844)
        assert opened.value("document.documentElement.scrollWidth") == 390
        assert opened.value("document.querySelector('.wide').scrollWidth") <= 390
        assert opened.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert not opened.errors
    shutil.rmtree(home, ignore_errors=True)
