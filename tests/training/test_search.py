"""Drawing, grouping, going on after a stop, and what is said, with training replaced by a formula.

The trials of a whole search through the real training are at the end.
"""

import json
import math
import os
import shlex
import signal

import numpy as np
import pytest
from scipy import stats

from spinejax.configs import opconvnet
from spinejax.configs.search import BATCH_SIZES, BOX, random_search
from spinejax.errors import InputError
from spinejax.training import log, loop, run_cases, search, signals
from spinejax.training.search import Outcome
from tests.support.tiny_run import tiny_config, write_scans
from tests.training.test_population import patch_config

CENTRE = {
    "optim.learning_rate": 0.01,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "train.batch_size": 128,
}


def columns(units):
    drawn = list(units)
    return {key: np.array([unit[key] for unit in drawn]) for key in drawn[0]}


# Drawing.


def test_units_are_plain_numbers_of_three_digits_in_the_box():
    units = list(random_search(seed=3, trials=200))
    for unit in units:
        assert {type(value) for key, value in unit.items() if key in BOX} == {float}
        assert type(unit["train.batch_size"]) is int and unit["train.batch_size"] in BATCH_SIZES
        for key, (low, high) in BOX.items():
            assert low <= unit[key] <= high
            assert unit[key] == float(f"{unit[key]:.3g}")
    assert {unit["train.batch_size"] for unit in units} == set(BATCH_SIZES)


def test_draws_are_uniform_in_the_logarithm():
    drawn = columns(random_search(seed=0, trials=2000))
    drawn["optim.momentum"] = 1 - drawn["optim.momentum"]
    box = {**BOX, "optim.momentum": (0.01, 0.5)}
    for key, (low, high) in box.items():
        share = np.log(drawn[key] / low) / np.log(high / low)
        assert stats.kstest(share, "uniform").pvalue > 0.01, key
    _, counts = np.unique(drawn["train.batch_size"], return_counts=True)
    assert stats.chisquare(counts).pvalue > 0.01


def test_the_seed_decides():
    assert list(random_search()) == list(random_search(seed=0, trials=8, centre=None, shrink=1.0))
    assert list(random_search(seed=1)) != list(random_search(seed=2))


@pytest.mark.parametrize("shrink", [0.5, 0.25])
def test_a_finer_round_lies_around_its_centre(shrink):
    drawn = columns(random_search(seed=1, trials=500, centre=CENTRE, shrink=shrink))
    drawn["optim.momentum"] = 1 - drawn["optim.momentum"]
    centre = {**CENTRE, "optim.momentum": 0.1}
    for key, (low, high) in {**BOX, "optim.momentum": (0.01, 0.5)}.items():
        half = shrink * math.log(high / low) / 2
        away = np.log(drawn[key] / centre[key])
        allowed = (max(-half, math.log(low / centre[key])), min(half, math.log(high / centre[key])))
        # Momentum of three digits is 1 - momentum of one or two.
        slack = 0.06 if key == "optim.momentum" else 0.01
        assert allowed[0] - slack <= away.min() < allowed[0] + 0.1 * half + slack
        assert allowed[1] - 0.1 * half - slack < away.max() <= allowed[1] + slack
    assert set(drawn["train.batch_size"]) == {128}


def test_a_centre_on_the_edge_stays_in_the_box():
    edge = {key: ends[1] for key, ends in BOX.items()} | {"train.batch_size": 256}
    for unit in random_search(trials=100, centre=edge, shrink=0.7):
        assert all(low <= unit[key] <= high for key, (low, high) in BOX.items())
        assert unit["train.batch_size"] in (128, 256)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials=0 must be at least 1"),
        ({"shrink": 0.0}, "shrink=0.0 must lie above 0"),
        ({"centre": {"optim.momentum": 0.5}}, "lacks optim.learning_rate, optim.weight_decay"),
    ],
)
def test_bad_arguments_of_the_drawing_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        list(random_search(**options))


# Grouping.


def test_groups_differ_in_the_optimisers_numbers_only():
    units = [search.Trial(0, i, u) for i, u in enumerate(random_search(trials=30))]
    found = search.groups(units, at_once=4)
    assert sorted(u.number for group in found for u in group) == list(range(30))
    for group in found:
        assert len(group) <= 4
        assert len({u.overrides["train.batch_size"] for u in group}) == 1
    sizes = [sum(u.overrides["train.batch_size"] == size for u in units) for size in BATCH_SIZES]
    assert len(found) == sum(math.ceil(size / 4) for size in sizes)


# Rounds, files and what is said. Training is a bowl around (0.02, 0.9).


class Trainings:
    """Stands for `search.train`; `stop_at` is the group that is interrupted."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.groups: list[list[search.Setting]] = []
        self.stop_at = stop_at

    def __call__(self, config, settings, task, feed, mapped, *, stop, say, advance):
        if len(self.groups) == self.stop_at:
            return None
        self.groups.append(list(settings))
        outcomes = []
        for one in settings:
            loss = math.log(one.learning_rate / 0.02) ** 2 + (one.momentum - 0.9) ** 2
            finite = one.learning_rate < 0.05
            loss, dice = (loss, 1 / (1 + loss)) if finite else (math.inf, 0.0)
            outcomes.append(Outcome(finite, 7, loss, dice, dice))
        return search.Trained(outcomes, None, np.zeros((0, len(settings))))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture
def config(scans):
    return tiny_config(scans, **{"optim.name": "sgd", "train.best": "loss"})


def small(seed, trials, centre, shrink):
    """A random search with batches that the tiny scans fill."""
    for unit in random_search(seed, trials, centre and {**centre, **BIG}, shrink):
        yield {**unit, "train.batch_size": 2 + 2 * (unit["optim.weight_decay"] > 1e-4)}


BIG = {"train.batch_size": 128}


def numbers(workdir):
    return (workdir / "search.jsonl").read_text()


def begin(config, workdir, monkeypatch, sweep=small, **options):
    trainings = Trainings(options.pop("stop_at", 10**9))
    monkeypatch.setattr(search, "train", trainings)
    command = options.pop("command", ())
    found = search.run(config, sweep, workdir, **{"rounds": 3, "trials": 6, **options})
    print(search.describe(found, config, workdir, command))
    return found.interrupted, trainings


def test_rounds_close_in_on_the_best(config, tmp_path, monkeypatch, capsys):
    command = ["--config=my configs/a.py", "--config.train.steps=12"]
    given = [*command, "--config.optim.momentum=0.3"]
    interrupted, trainings = begin(config, tmp_path, monkeypatch, trials=8, command=given)
    assert not interrupted
    lines = [json.loads(line) for line in numbers(tmp_path).splitlines()]
    assert len(lines) == 24 and {line["round"] for line in lines} == {0, 1, 2}
    best = [min(x["loss"] for x in lines if x["finite"] and x["round"] <= r) for r in range(3)]
    assert best[2] < best[0]
    # The second round lies in half the box around the best of the first.
    first = min((x for x in lines if x["round"] == 0 and x["finite"]), key=lambda x: x["loss"])
    centre = math.log(first["overrides"]["optim.learning_rate"])
    second = [x["overrides"]["optim.learning_rate"] for x in lines if x["round"] == 1]
    assert max(abs(math.log(x) - centre) for x in second) <= 0.25 * math.log(1000) + 0.01
    assert any(not x["finite"] and x["loss"] is None for x in lines)

    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    head = next(i for i, row in enumerate(rows) if row[:1] == ["learning_rate"])
    assert rows[head] == [
        *("learning_rate", "momentum", "weight_decay", "batch_size"),
        *("loss", "dice", "accuracy", "step", "round"),
    ]
    losses = [row[5] for row in rows[head + 1 : head + 25]]
    finite = [float(x) for x in losses if x != "diverged"]
    assert finite == sorted(finite) and losses[len(finite) :] == ["diverged"] * (24 - len(finite))
    # The command line is that of the best unit.
    words = shlex.split(out.splitlines()[-1])
    top = min((x for x in lines if x["finite"]), key=lambda x: x["loss"])["overrides"]
    assert words[:4] == ["spinejax", "train", *command]
    overrides = dict(w.removeprefix("--config.").split("=") for w in words[4:-1])
    assert {k: float(v) for k, v in overrides.items()} == top
    assert words[-1] == f"--workdir={tmp_path / 'best'}"


def test_a_stopped_search_goes_on_with_the_rest(config, tmp_path, monkeypatch, capsys):
    _, whole = begin(config, tmp_path / "whole", monkeypatch)
    counts = []
    for stop_at in (0, 2, 1, 10**9):
        interrupted, trainings = begin(config, tmp_path / "cut", monkeypatch, stop_at=stop_at)
        counts.append(len(trainings.groups))
        assert interrupted == (stop_at < 10**9)
        if interrupted:
            said = capsys.readouterr().out
            some = "finished and saved in" in said and "of 18 trials" in said
            assert some if stop_at else "before the first of 18 trials" in said
    assert counts[:3] == [0, 2, 1] and sum(counts) == len(whole.groups)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    # Once more, and with a round more.
    _, again = begin(config, tmp_path / "cut", monkeypatch)
    assert again.groups == []
    _, more = begin(config, tmp_path / "cut", monkeypatch, rounds=4)
    assert sum(map(len, more.groups)) == 6


def test_a_stop_before_training_is_an_interruption(config, tmp_path, monkeypatch):
    stop = signals.Stop()
    stop.request()
    interrupted, trainings = begin(config, tmp_path, monkeypatch, stop=stop)
    assert interrupted and trainings.groups == []


def test_a_signal_stops_it_between_steps(config, tmp_path, monkeypatch, capsys):
    def signalled(config, settings, task, feed, mapped, *, stop, say, advance):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.agreed(3)

    monkeypatch.setattr(search, "train", signalled)
    found = search.run(config, small, tmp_path)
    said = search.describe(found, config, tmp_path)
    assert found.interrupted and "before the first of 16 trials was finished" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_was_searched_otherwise_is_refused(config, scans, tmp_path, monkeypatch):
    begin(config, tmp_path, monkeypatch, rounds=1)
    other = tiny_config(scans, **{"optim.name": "sgd", "train.best": "loss", "train.steps": 3})
    with pytest.raises(InputError, match=r"train.steps \(there 12, now 3\)"):
        begin(other, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="a search with trials=6, not 5"):
        begin(config, tmp_path, monkeypatch, trials=5)
    with pytest.raises(InputError, match="sweep='small', not 'random_search'"):
        begin(config, tmp_path, monkeypatch, sweep=random_search)

    def changed(seed, trials, centre, shrink):
        yield from small(seed + 1, trials, centre, shrink)

    changed.__name__ = "small"
    with pytest.raises(InputError, match="trial 0 of round 0 was another one"):
        begin(config, tmp_path, monkeypatch, sweep=changed)
    # Where data lie and how many fit at once is free.
    begin(tiny_config(scans, **{**FREE, "data.threads": 0}), tmp_path, monkeypatch, at_once=1)


FREE = {"optim.name": "sgd", "train.best": "loss"}


def test_a_search_that_finished_nothing_binds_nobody(config, scans, tmp_path, monkeypatch):
    begin(config, tmp_path, monkeypatch, stop_at=0)
    other = tiny_config(scans, **FREE, **{"train.steps": 3})
    assert not begin(other, tmp_path, monkeypatch, rounds=1)[0]


def one(**overrides):
    def sweep_mine(seed, trials, centre, shrink):
        yield {key.replace("__", "."): value for key, value in overrides.items()}

    return sweep_mine


BAD = {
    "unknown key": (one(optim__learning_rat=0.1), {}, "did you mean optim.learning_rate"),
    "data": (one(data__normalise="unit"), {}, "share data.normalise"),
    "seed": (one(seed=2), {}, "compared with each other, so they must share seed"),
    "patience": (small, {"train.patience": 2}, "train.patience=2: the trials of a search train"),
    "own patience": (one(train__patience=2), {}, "must share train.patience"),
    "momentum of adam": (one(optim__momentum=0.5), {"optim.name": "adam"}, "'adam' has no optim."),
    "value": (one(optim__momentum=1.5), {}, "optim.momentum=1.5 must be a number"),
    "type": (one(optim__momentum="high"), {}, "momentum"),
    "batch": (one(train__batch_size=3), {"optim.accumulate_steps": 2}, "batch_size=3 does not"),
    "nothing": (lambda seed, trials, centre, shrink: [], {}, "yields no trials"),
    "arguments": (lambda: [], {}, "(seed, trials, centre, shrink) failed"),
    "weights": (small, {"train.init_from": "fantom"}, "did you mean 'phantom'?"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sweeps_are_refused_before_anything_is_written(scans, tmp_path, monkeypatch, name):
    sweep, changes, words = BAD[name]
    config = tiny_config(scans, **{**FREE, **changes})
    with pytest.raises(InputError) as error:
        begin(config, tmp_path / "new", monkeypatch, sweep=sweep)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["rounds", "trials", "at_once"])
def test_counts_below_one_are_refused(config, tmp_path, monkeypatch, name):
    with pytest.raises(InputError, match=f"{name}=0 must be at least 1"):
        begin(config, tmp_path / "new", monkeypatch, **{name: 0})


def test_no_finite_unit_is_one_line(config, tmp_path, monkeypatch):
    wild = one(optim__learning_rate=0.09)
    with pytest.raises(InputError, match="all 2 trials diverged; lower the learning rates"):
        begin(config, tmp_path, monkeypatch, sweep=wild, rounds=2)


def test_no_validation_cases_are_one_line(config, tmp_path, monkeypatch):
    cases = run_cases.find(config, tmp_path)
    monkeypatch.setattr(run_cases, "find", lambda *_, **__: {**cases, "val": []})
    with pytest.raises(InputError, match="there are no validation cases; raise data.val_fraction"):
        begin(config, tmp_path, monkeypatch)


def test_damaged_files_are_named(config, tmp_path, monkeypatch):
    begin(config, tmp_path, monkeypatch, rounds=1)
    text = numbers(tmp_path)
    (tmp_path / "search.jsonl").write_text(text + '{"round": 1, "un\n')
    with pytest.raises(InputError, match=r"search.jsonl is damaged .line 7 is None.*remove line 7"):
        begin(config, tmp_path, monkeypatch)
    (tmp_path / "search.jsonl").write_text(text)
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(InputError, match="search.json is damaged"):
        begin(config, tmp_path, monkeypatch)


# The real training.


def test_a_search_finds_what_training_alone_gives(scans, tmp_path):
    config = patch_config(scans, **{"train.steps": 4})

    def sweep_rates(seed, trials, centre, shrink):
        for rate, size in ((0.01, 24), (0.02, 12)):
            yield {"optim.learning_rate": rate, "train.batch_size": size}

    assert not search.run(config, sweep_rates, tmp_path, rounds=1).interrupted
    found = [search.read(tmp_path)[0, number] for number in range(2)]
    assert all(outcome.finite for _, outcome in found)
    unit, outcome = found[1]
    config.update_from_flattened_dict(unit.overrides)
    loop.train(config, tmp_path / "alone")
    lines = log.read_metrics(tmp_path / "alone")
    best = min((x for x in lines if x["kind"] == "val"), key=lambda x: x["loss"])
    assert outcome.step == best["step"]
    assert outcome.loss == pytest.approx(best["loss"], rel=1e-4)


def test_the_papers_config_has_its_sweep():
    units = list(opconvnet.sweep_random_search())
    assert len(units) == 8
    for unit in units:
        search.trial_config(opconvnet.get_config(), unit, "random_search")
