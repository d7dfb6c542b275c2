"""One slice under the four normalisations."""

import json
import re

import numpy as np
import pytest

from spinejax.io import nifti
from spinejax.reports import normalisation_section, page
from spinejax.reports.run import read_run
from spinejax.volume import Volume
from tests.reports.test_page import make_run

SHAPE = (9, 20, 30)  # canonical: left, posterior, superior


def normalised(tmp_path, image, **data):
    """The section for a scan of 1 mm whose slice 7 has the most reference."""
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["preprocess"]["smoothing_sigma_mm"] = 0.0
    config["data"].update(data)
    (run / "config.json").write_text(json.dumps(config))
    place = run / "evaluation" / "test"
    place.mkdir(parents=True)
    mask = np.zeros(SHAPE, np.uint8)
    mask[4, 5:7, 5:7] = mask[6, 4:9, 4:9] = 20
    volume = Volume(image, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.write_volume(place / "a.nii.gz", volume)
    nifti.write_labels(place / "m.nii.gz", mask, volume)
    scores = {"cases": {"a": {"binary": {"dice": 0.5}}}, "summary": {"binary": {}}}
    (place / "scores.json").write_text(json.dumps(scores))
    files = {"image": "a", "labels": "m", "prediction": "m"}
    paths = {key: f"evaluation/test/{name}.nii.gz" for key, name in files.items()}
    (place / "cases.json").write_text(json.dumps({"a": paths}))
    return read_run(run)


def scan():
    """Half at -1000 HU, half at 200 HU; slice 7 also has a pixel of 800 HU."""
    image = np.full(SHAPE, -1000, np.int16)
    image[:, :, 15:] = 200
    image[6, 10, 20] = 800
    return image


def test_each_picture_has_the_range_of_the_slice_in_its_normalisation(tmp_path):
    image = scan()
    found = normalisation_section.section(normalised(tmp_path, image))
    assert found["problem"] == "" and found["slice"] == "7 of 9" and found["plane"] == "sagittal"
    parts = {part["title"].partition(":")[0]: part["lines"] for part in found["parts"]}
    assert list(parts) == ["hu", "zscore", "unit", "sym"]
    assert parts["hu"] == ("values −1.00 to 0.80", "water (0 HU) at 0.00")
    assert parts["unit"] == ("values 0.00 to 1.00", "water (0 HU) at 0.56")  # 1000 / 1800
    assert parts["sym"] == ("values −1.00 to 1.00", "water (0 HU) at 0.11")
    # Statistics are of the whole scan.
    ends = [(value - image.mean()) / image.std() for value in (-1000, 800, 0)]
    low, high, zero = (f"{end:.2f}".replace("-", "−") for end in ends)
    assert parts["zscore"] == (f"values {low} to {high}", f"water (0 HU) at {zero}")


def test_the_mode_of_the_run_is_named_and_drawn_if_it_is_none_of_the_four(tmp_path):
    run = normalised(tmp_path, scan(), normalise="minmax_to_hu")
    text = page.render(run)
    [part] = re.findall(r'<section id="normalisation">.*?</section>', text, re.DOTALL)
    assert part.count("<image") == 5 and part.count("(this run)") == 1
    assert "minmax_to_hu: lowest and highest value to −1000 and 800 (this run)" in part


@pytest.mark.parametrize("gone", ["image", "task", "scores"])
def test_without_a_scan_there_is_no_picture(tmp_path, gone):
    run = normalised(tmp_path, scan())
    if gone == "image":
        (run.folder / "a.nii.gz").unlink()
        assert "is gone" in normalisation_section.section(run)["problem"]
    else:
        run.config.update(task="patch_classification") if gone == "task" else run.scores.clear()
        assert normalisation_section.section(run) is None
