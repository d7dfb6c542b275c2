"""What is printed of two versions, from measures that are made up."""

from pathlib import Path

from tests.benchmarks import evaluating, versions


def test_numbers_are_those_of_a_step_without_start_and_end(monkeypatch):
    def train(checkout, root, steps, processes):
        return {
            "whole": 7.0 + 0.25 * steps,  # 7 s to compile
            "worked": 2.0 + 0.2 * steps,
            "cpu": 9.0 + 0.5 * steps,
            "bytes": 5000 + 12 * steps,
            "saves": 0.003,
        }

    monkeypatch.setattr(versions, "train", train)
    cells = versions.training(Path(), Path(), 1, (60, 260))
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
