"""`spinejax score`: bad masks are refused; see test_predict.py for its numbers."""

import pytest

from tests.support.cli_runs import bad_mask, fails, mask_of


@pytest.mark.parametrize("kind", ["elsewhere", "out_of_range", "negative", "fractional"])
def test_bad_masks_are_refused(kind, dataset, tmp_path, capsys):
    path, target = bad_mask(kind, tmp_path), tmp_path / "new" / "scores.json"
    arguments = ["score", f"--prediction={path}", f"--reference={mask_of(dataset)}"]
    fails(capsys, [*arguments, f"--output={target}"], path.name, ";")
    assert not target.parent.exists()


def test_a_folder_is_no_json_file(dataset, tmp_path, capsys):
    labels = mask_of(dataset)
    arguments = ["score", "--prediction", labels, "--reference", labels, "-o", tmp_path]
    fails(capsys, arguments, "is a folder; name a JSON file")
