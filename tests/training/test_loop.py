"""Whole runs on four tiny scans: what they leave behind, how they resume, what they refuse."""

import itertools
import json
import logging
import shutil
import types
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinejax
from spinejax.errors import InputError
from spinejax.metrics import classification
from spinejax.training import checkpoint, log, loop, run_cases, run_folder, signals
from spinejax.volume import with_neighbours
from tests.support.tensorboard_events import events
from tests.support.tiny_run import tiny_config, write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def finished(scans, tmp_path_factory) -> tuple[Path, loop.TrainResult]:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train(tiny_config(scans), workdir)


class StopAt(signals.Stop):
    """Asks to stop at a given step, as a signal that came in the update before."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def agreed(self, at: int) -> bool:
        return at >= self.step


def assert_same(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def numbers(workdir: Path) -> list[dict]:
    """Lines of metrics.jsonl without the times."""
    times = ("seconds", "samples_per_s")
    return [{k: v for k, v in line.items() if k not in times} for line in log.read_metrics(workdir)]


def test_a_finished_run_says_what_it_did(finished):
    workdir, result = finished
    assert (result.step, result.interrupted) == (12, False)
    assert (workdir / "DONE").exists()
    record = json.loads((workdir / "run.json").read_text())
    assert {k: len(v) for k, v in record["cases"].items()} == {"train": 2, "val": 1, "test": 1}
    leaves = jax.tree.leaves(result.state.params)
    assert record["parameters"] == sum(leaf.size for leaf in leaves)
    assert record["finished"] and record["seconds"] > 0 and record["devices"] == 1
    assert json.loads((workdir / "config.json").read_text())["data"]["size"] == [32, 32]
    lines = numbers(workdir)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    # 10 + 10 slices in batches of 4: an epoch has 5 steps.
    assert [line["step"] for line in lines if line["kind"] == "val"] == [5, 10, 12]
    assert set(lines[0]) == {
        "step",
        "kind",
        "loss",
        "dice",
        "accuracy",
        "learning_rate",
        "grad_norm",
    }


def test_the_best_checkpoint_is_that_of_the_best_validation(finished):
    workdir, result = finished
    scores = {x["step"]: x["dice"] for x in numbers(workdir) if x["kind"] == "val"}
    assert result.best.score == max(scores.values()) == scores[result.best.step]
    config, variables = checkpoint.load_for_inference(workdir)
    assert config.model.widths == (4, 8)
    if result.best.step == result.step:
        assert_same(variables["params"], result.state.ema)


def test_tensorboard_has_scalars_and_pictures(finished):
    values = [(e.step, v) for e in events(finished[0]) for v in e.summary.value]
    tags = {v.tag for _, v in values}
    assert {"train/loss", "train/dice", "train/learning_rate", "val/dice"} <= tags
    pictures = [(s, v.image) for s, v in values if v.HasField("image")]
    assert [s for s, _ in pictures] == [5, 10, 12]
    assert {(p.width, p.height) for _, p in pictures} == {(32, 32)}


def test_training_learns(finished):
    val = [x for x in numbers(finished[0]) if x["kind"] == "val"]
    assert val[-1]["loss"] < val[0]["loss"] and val[-1]["dice"] > val[0]["dice"]


@pytest.mark.parametrize(
    "at", [4, 5, 12], ids=["between saves", "before an evaluation", "at the end"]
)
def test_a_stopped_run_resumes_bit_for_bit_and_draws_no_weights(
    finished, scans, tmp_path, at, monkeypatch
):
    config = tiny_config(scans)
    stopped = loop.train(config, tmp_path, stop=StopAt(at))
    assert stopped.interrupted and stopped.step == at and not (tmp_path / "DONE").exists()
    monkeypatch.setattr(loop, "initial_variables", None)
    resumed = loop.train(config, tmp_path)
    assert not resumed.interrupted
    assert_same(resumed.state, finished[1].state)
    assert resumed.best == finished[1].best
    assert numbers(tmp_path) == numbers(finished[0])
    assert json.loads((tmp_path / "run.json").read_text())["starts"] == 2


def test_a_run_begins_again_if_its_checkpoints_vanish_while_it_starts(
    finished, scans, tmp_path, monkeypatch
):
    loop.train(tiny_config(scans), tmp_path, stop=StopAt(4))

    class Vanished(checkpoint.Checkpoints):
        def __init__(self, workdir):
            shutil.rmtree(checkpoint.folder(workdir, "latest"))
            super().__init__(workdir)

    monkeypatch.setattr(loop, "Checkpoints", Vanished)
    assert_same(loop.train(tiny_config(scans), tmp_path).state, finished[1].state)
    assert numbers(tmp_path) == numbers(finished[0])


def test_a_run_says_its_batch_and_rate_and_that_the_first_step_compiles(scans, tmp_path):
    said = []

    @contextmanager
    def recorded(title, total, unit):
        yield types.SimpleNamespace(advance=lambda *_: None, say=said.append)

    loop.train(tiny_config(scans), tmp_path, progress=recorded, stop=StopAt(1))
    assert said[:2] == ["batch: 4 samples; learning rate: 0.1", "compiling the first step"]
    assert said[2].startswith("compiled in ")


def test_a_finished_run_is_not_run_again(finished, scans, caplog):
    caplog.set_level(logging.INFO)
    before = numbers(finished[0])
    again = loop.train(tiny_config(scans), finished[0])
    assert (again.state, again.step, again.best) == (None, 12, finished[1].best)
    assert "was finished at step 12: nothing to do" in caplog.text
    assert numbers(finished[0]) == before


def test_another_config_is_refused_and_every_differing_key_named(finished, scans):
    other = tiny_config(scans, **{"seed": 3, "optim.learning_rate": 0.5, "train.pictures": 0})
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(InputError) as info:
        loop.train(other, finished[0])
    text = str(info.value)
    assert "optim.learning_rate (there 0.1, now 0.5), seed (there 0, now 3);" in text
    assert "pictures" not in text and "\n" not in text
    assert (finished[0] / "config.json").read_bytes() == before


def test_a_start_that_saved_nothing_does_not_bind_the_next(finished, scans, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        wrong = {"data.root": "/nowhere", "seed": 5, "train.steps": 3}
        loop.train(tiny_config(scans, **wrong), tmp_path)
    # As left by a kill between the first best and the first latest.
    best = checkpoint.folder(finished[0], "best")
    shutil.copytree(best, checkpoint.folder(tmp_path, "best"))
    result = loop.train(tiny_config(scans), tmp_path, stop=StopAt(2))
    assert result.step == 2 and result.best is None
    assert (tmp_path / "config.json").read_bytes() == (finished[0] / "config.json").read_bytes()


def test_keys_that_train_nothing_else_may_change(finished, scans):
    free = {"train.log_every_steps": 7, "data.threads": 0, "predict.threshold": 0.4}
    loop.train(tiny_config(scans, **free), finished[0])
    loop.train(tiny_config(scans), finished[0])


def test_other_cases_are_refused(scans, tmp_path):
    config = tiny_config(scans)
    loop.train(config, tmp_path / "run", stop=StopAt(1))
    changed = tiny_config(write_scans(tmp_path / "more", cases=8))
    with pytest.raises(InputError, match="run.json: the train split now has other cases, .* new"):
        loop.train(changed, tmp_path / "run")
    # Nor are they evaluated: some of the new test cases were trained on.
    with pytest.raises(InputError, match="other cases"):
        run_cases.find(changed, tmp_path / "run")
    run_cases.find(changed, tmp_path / "elsewhere")


def test_divergence_names_step_slices_and_gradient_and_saves_nothing_bad(scans, tmp_path):
    wild = {"optim.name": "sgd", "optim.learning_rate": 1e6, "optim.clip_norm": 0.0}
    config = tiny_config(scans, **wild, **{"train.checkpoint_every_steps": 1})
    with pytest.raises(InputError) as info:
        loop.train(config, tmp_path)
    text = str(info.value)
    assert text.startswith("training diverged at step ") and "\n" not in text
    assert "largest gradient" in text and "kernel" in text
    assert any(f"slices of the batch: case{i}[" in text for i in range(4))
    assert not (tmp_path / "DONE").exists()
    saved = checkpoint.folder(tmp_path, "latest")
    for step in saved.iterdir():
        variables = checkpoint.load_for_inference(tmp_path, "latest")[1]
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables)), step


BAD = {
    "negative": ({"train.batch_size": -1}, "train.batch_size=-1 must be a whole number"),
    "zero": ({"optim.learning_rate": 0.0}, "optim.learning_rate=0.0 must be a number of at least"),
    "nan": ({"optim.clip_norm": float("nan")}, "optim.clip_norm=nan must be a number"),
    "no length": ({"train.epochs": 0}, "train.epochs and train.steps are both 0"),
    "microbatches": ({"optim.accumulate_steps": 3}, "train.batch_size=4 does not divide"),
    "optimiser": ({"optim.name": "adamm"}, "did you mean 'adam"),
    "schedule": ({"optim.schedule": "cosines"}, "did you mean 'cosine'"),
    "parallel": ({"train.parallel": "pmapp"}, "did you mean 'pmap'"),
    "dtype": ({"train.compute_dtype": "bfloat61"}, "did you mean 'bfloat16'"),
    "task": ({"task": "slice_segmentatio"}, "did you mean 'slice_segmentation'"),
    "size": ({"data.size": (33, 32)}, "multiples of 2"),
    "no root": ({"data.root": ""}, "--config.data.root=DIR"),
    "missing root": ({"data.root": "/nowhere/at/all"}, "there is no such folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_one_line_that_names_the_key(scans, tmp_path, name):
    changes, expected = BAD[name]
    steps = {"train.steps": 0} if name == "no length" else {}
    with pytest.raises(InputError) as info:
        loop.train(tiny_config(scans, **steps, **changes), tmp_path)
    assert expected in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("config", [None, 3, {"task": "slice_segmentation"}, Path("unet")])
def test_what_is_no_config_is_refused(tmp_path, config):
    with pytest.raises(InputError, match="is no config; give a ConfigDict, or the name"):
        spinejax.train(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_wrong_type_is_named(scans, tmp_path):
    config = tiny_config(scans)
    with config.ignore_type():
        config.train.batch_size = "8"
    with pytest.raises(InputError, match="train.batch_size='8' must be a whole number"):
        loop.train(config, tmp_path)


def test_a_training_that_does_not_fit_in_memory_is_refused(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.machine, "available_bytes", lambda: 10_000)
    with pytest.raises(InputError, match=r"more memory than there is; lower train\.batch_size"):
        loop.train(tiny_config(scans), tmp_path)
    monkeypatch.setattr(loop, "_LARGE_BATCH", 1000)
    monkeypatch.setattr(loop.machine, "available_bytes", lambda: 10**6)
    with pytest.raises(InputError, match=r"needs more memory .* \(about 0.0 GiB"):
        loop.train(tiny_config(scans), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_that_cannot_be_written_is_one_line(scans, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        loop.train(tiny_config(scans), tmp_path / "file")


@pytest.mark.parametrize("when", [0, 7, 18], ids=["at the start", "later", "later still"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    finished, scans, tmp_path, monkeypatch, capfd, when
):
    calls = []

    def usage(folder):
        calls.append(folder)
        return types.SimpleNamespace(free=10**12 if len(calls) <= when else 1000)

    monkeypatch.setattr(run_folder.shutil, "disk_usage", usage)
    with pytest.raises(InputError, match=r"the disk is full \(0.0 MiB free"):
        loop.train(tiny_config(scans), tmp_path)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    loop.train(tiny_config(scans), tmp_path)
    assert numbers(tmp_path) == numbers(finished[0])


def test_durations_convert_epochs_once(scans):
    config = tiny_config(scans, **{"train.steps": 0, "train.epochs": 3})
    assert loop.durations(config, 5) == loop.Durations(15, 5, 3)
    config.train.eval_every_steps = 4
    assert loop.durations(config, 5) == loop.Durations(15, 4, 3)
    lengths = loop.Durations(total=7, eval_every=3, save_every=2)
    assert [s for s in range(8) if lengths.evaluates(s)] == [3, 6, 7]
    assert [s for s in range(8) if lengths.saves(s)] == [2, 3, 4, 6, 7]


class Recorder:
    """A keeper that writes down what it is given, and when."""

    hopeless = False

    def __init__(self, start: int) -> None:
        self.found: list[tuple[str, int]] = []
        self.updates = [start]

    def advanced(self, at):
        self.found.append(("done", at))

    def updated(self, calls):
        for call in calls:
            self.updates += call.metrics["step"]
            assert call.metrics["step"] == list(range(call.first, call.last + 1))
        self.found.append(("metrics", self.updates[-1]))

    def evaluated(self, at, evaluation):
        assert self.updates[-1] == at
        self.found.append(("evaluated", at))

    def save(self, state, at, *, evaluated):
        assert self.updates[-1] == state == at
        self.found.append(("saved", at))

    def say(self, text):
        pass


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 30),
    periods=st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12)),
    per_call=st.integers(1, 9),
    start=st.integers(0, 29),
)
def test_the_loop_does_the_same_steps_in_calls_of_any_length(total, periods, per_call, start):
    """Against the steps counted one by one."""
    start = min(start, total - 1)
    lengths = loop.Durations(total, *periods, per_call)
    keeper, put, used = Recorder(start), [], []

    def take(batch):
        put.extend(batch["number"][0])
        return batch["number"][0]

    def update(at, numbers):
        used.extend(numbers)
        # The batch of this call and of the next ones are on the device, and no more.
        assert len(put) - len(used) <= loop.IN_FLIGHT * per_call
        assert len(numbers) <= per_call
        return at + len(numbers), {"step": [at + 1 + i for i in range(len(numbers))]}

    end = loop.repeat(
        start,
        start=start,
        lengths=lengths,
        update=update,
        judge=lambda at: loop.Evaluation(0.0, 0.0, 0.0, {}, {}),
        batches=({"number": np.array([number])} for number in itertools.count(start)),
        put=take,
        keeper=keeper,
        stop=signals.Stop(),
    )
    assert end == (total, total, False)
    steps = list(range(start, total + 1))
    assert put == used == steps[:-1] and keeper.updates == steps
    at = {kind: [n for k, n in keeper.found if k == kind] for kind in ("evaluated", "saved")}
    assert at["evaluated"] == [n for n in steps if lengths.evaluates(n)]
    assert at["saved"] == [n for n in steps if lengths.saves(n)]
    # Metrics leave the device only where something is logged, evaluated or saved.
    fetched = [n for kind, n in keeper.found if kind == "metrics"]
    for before, last in itertools.pairwise([start, *fetched]):
        assert any(lengths.logs(n) or lengths.saves(n) for n in range(before + 1, last + 1))


class Judged(loop._RunKeeper):
    """A keeper of whole numbers: nothing to log, and nothing to write but the best step."""

    said: list[str] = []

    @classmethod
    def of(cls, scans, *, best=None, judged=0, **changes):
        nothing = types.SimpleNamespace(
            **dict.fromkeys(("save", "update", "val", "pictures"), lambda *args, **more: None),
            say=cls.said.append,
        )
        return cls(
            config=tiny_config(scans, **changes),
            task=types.SimpleNamespace(overlap="Dice"),
            feed=None,
            names=[],
            checkpoints=nothing,
            writer=nothing,
            record=nothing,
            devices=1,
            start=judged,
            judged=judged,
            eval_every=10,
            best=best,
        )

    def advanced(self, at):
        pass

    def updated(self, calls):
        pass


@pytest.mark.parametrize(
    ("dice", "patience", "best_at", "end"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.5], 2, 20, 40),
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.2], 2, 40, 60),
        ([0.1, 0.3, 0.3, 0.9], 1, 20, 30),  # as good is not better
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, 10, 100),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 1, 100, 100),
    ],
)
def test_training_ends_when_patience_does_and_a_resumed_one_knows(
    scans, dice, patience, best_at, end
):
    """Against the evaluations counted by hand; there is one every ten steps."""

    def run(start, best=None):
        keeper = Judged.of(scans, best=best, judged=start, **{"train.patience": patience})

        def judge(at):
            value = dice[at // 10 - 1] if at <= 10 * len(dice) else 0.0
            return loop.Evaluation(1.0 - value, value, value, {}, {})

        _, at, interrupted = loop.repeat(
            start,
            start=start,
            evaluated=start > 0,
            lengths=loop.Durations(100, 10, 7),
            update=lambda at, batch: (at + 1, {}),
            judge=judge,
            batches=(batch for batch in iter(dict, None)),
            put=lambda batch: batch,
            keeper=keeper,
            stop=signals.Stop(),
        )
        assert not interrupted
        return at, keeper.best

    at, best = run(0)
    assert (at, best.step) == (end, best_at)
    assert run(end, best)[0] == end


@pytest.mark.parametrize("neighbours", [0, 1])
def test_validation_dice_is_the_mean_over_cases_of_pooled_dice(
    neighbours, finished, scans, tmp_path
):
    """Against predictions of whole slices made outside the loop."""
    workdir, result = finished
    config = tiny_config(scans, **{"data.neighbours": neighbours})
    if neighbours:
        workdir, result = tmp_path, loop.train(config, tmp_path)
    from spinejax.tasks import build_task

    task = build_task(config)
    variables = {"params": result.state.ema, "batch_stats": result.state.batch_stats}
    predict = task.stack_predictor(variables)
    scores = []
    for case in run_cases.prepare(config, workdir)["val"]:
        stack = with_neighbours(case.image, 0, len(case.image), neighbours)
        found = predict(stack, case.stats, lambda slices: None) > 0.5
        scores.append(classification.f_score(classification.count(found, case.label)))
    last = [x["dice"] for x in numbers(workdir) if x["kind"] == "val"][-1]
    assert last == pytest.approx(np.mean(scores), abs=1e-4)
