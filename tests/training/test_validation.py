"""Pictures of validation that several processes draw."""

import numpy as np
import pytest

from spinejax.training import parallel, validation
from tests.support.patch_scans import make_cases


@pytest.mark.parametrize("split", ["slices", "windows"])
def test_two_processes_show_the_pictures_of_one(tmp_path, monkeypatch, split):
    cases = make_cases(tmp_path)
    wanted = list(validation.pick_slices(cases, 2))
    assert len(wanted) == 2
    rng = np.random.default_rng(0)
    rows = []
    for case, index in [(0, 0), *wanted, *wanted]:
        label = np.zeros((12, 10), np.uint8)
        label[: int(rng.integers(2, 9)), 2:8] = 20
        # Windows of one slice lie in the shares of both; without windows the slice comes once.
        weight = 1.0 if split == "windows" or len(rows) < 3 else 0.0
        image = rng.integers(-500, 900, label.shape).astype(np.int16)
        rows.append((case, index, label, image, weight, rng.random(label.shape) > 0.5))
    names = ("case", "index", "label", "image", "weight", "mask")
    columns = zip(*rows, strict=True)
    batch = {name: np.stack(column) for name, column in zip(names, columns, strict=True)}

    def drawn(rows):
        pictures = validation._Pictures(cases, 2)
        share = {name: column[rows] for name, column in batch.items()}
        pictures.add(share, lambda: share["mask"])
        return pictures

    expected = drawn(slice(None)).drawn()
    assert len(expected) == 2
    shares = [drawn(slice(0, None, 2)), drawn(slice(1, None, 2))]
    monkeypatch.setattr(parallel, "from_all", lambda work: [share._found for share in shares])
    for share in shares:
        found = share.drawn()
        assert list(found) == list(expected)
        for name, picture in found.items():
            np.testing.assert_array_equal(picture, expected[name])
