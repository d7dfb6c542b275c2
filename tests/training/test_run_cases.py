"""The cases of a run: phantoms that are written once, scans that are left out."""

from spinejax.phantom import dataset
from spinejax.training import run_cases
from tests.support.tiny_run import tiny_config, write_scans


def test_phantoms_are_written_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        dataset, "write_dataset", lambda root, *args, **options: calls.append((args, options))
    )
    config = tiny_config("", **{"data.source": "phantom", "data.phantom.cases": 5})
    for _ in range(2):
        assert run_cases.dataset_root(config, tmp_path) == tmp_path / "phantoms"
    assert [args for args, _ in calls] == [(5, 0)]
    assert calls[0][1]["max_spacing_mm"] == 3.0 and calls[0][1]["max_extent_mm"] == 400.0


def test_scans_without_a_mask_are_left_out_and_said(tmp_path, caplog):
    write_scans(tmp_path, cases=5)
    (tmp_path / "labels" / "case3.nii.gz").unlink()
    split = run_cases.find(tiny_config(tmp_path), tmp_path / "run")
    assert sum(map(len, split.values())) == 4
    assert "left out: 1 of 5 scans lack CT or mask (first: case3)" in caplog.text


def test_phantoms_of_an_earlier_start_are_left_out(tmp_path, monkeypatch):
    def touch(root, cases, *args, **options):
        for index in range(cases):
            for path in dataset.case_paths(root, index):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    monkeypatch.setattr(dataset, "write_dataset", touch)
    for count in (8, 5):
        changes = {"data.source": "phantom", "data.phantom.cases": count}
        split = run_cases.find(tiny_config("", **changes), tmp_path)
        assert sum(map(len, split.values())) == count
