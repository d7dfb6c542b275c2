"""What is printed of two versions, from measures that are made up."""

from pathlib import Path

from tests.benchmarks import evaluating, versions


def test_numbers_are_those_of_a_step(monkeypatch):
    found = {
        "wall": 50.0,
        "worked": 40.0,
        "cpu": 100.0,
        "bytes": 2400,
        "saves": [0.5, 0.003, 0.002],
    }
    monkeypatch.setattr(versions, "train", lambda *_: found)
    cells = versions.training(Path(), Path(), 1, 200)
    assert cells == ["250.0 ms", "20.0%", "500.0 ms", "12", "3 ms"]


def test_a_version_that_cannot_evaluate_says_why(monkeypatch, tmp_path):
    def evaluated(command, run, processes, checkout):
        if processes > 1:
            raise RuntimeError("a warning\nspinejax train: error: the processes differ\n")
        return 1.5, {}

    monkeypatch.setattr(evaluating, "trained", lambda *args, **fields: [])
    monkeypatch.setattr(evaluating, "evaluated", evaluated)
    assert versions.evaluation(Path(), tmp_path / "one", 1, 8) == "1.5 s"
    failed = versions.evaluation(Path(), tmp_path / "two", 2, 8)
    assert failed == "fails: spinejax train: error: the processes differ"
