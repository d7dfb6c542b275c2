"""Sweeps: how they combine, that those of the papers fit their tables, what is refused."""

import importlib
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinejax import config_files, schema, tasks
from spinejax.cli import main
from spinejax.commands import parsing, train
from spinejax.configs import chasppraunet, opconvnet, sweeps, unet
from spinejax.errors import InputError
from spinejax.launch import plan
from spinejax.reports import papers

MODULES = ("chasppraunet", "mrunet", "opconvnet", "demo")


def all_sweeps():
    for name in MODULES:
        module = importlib.import_module(f"spinejax.configs.{name}")
        for key, value in vars(module).items():
            if key.startswith("sweep_"):
                yield name, key.removeprefix("sweep_"), value


def dry_run(capsys, *words):
    """Return the units of a dry run by name, with their command lines."""
    status = main(["sweep", *words, "--dry_run", "--workdir=unused"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, ""), err
    *lines, last = out.splitlines()
    assert last == f"{len(lines)} units"
    return dict(line.split(": ", 1) for line in lines)


def refused(capsys, *words):
    """Return the one line of an error."""
    assert main(["sweep", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("spinejax sweep: error: ") and err.count("\n") == 1
    return err


axes = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)


@given(axes, axes, axes)
def test_a_product_is_that_of_sets_and_a_chain_their_sum(a, b, c):
    parts = [sweeps.axis(key, values) for key, values in (("x.a", a), ("x.b", b), ("c", c))]
    units = sweeps.product(*parts)
    assert [tuple(unit.overrides.values()) for unit in units] == list(itertools.product(a, b, c))
    assert len({unit.name for unit in units}) == len(units)
    assert len(sweeps.chain(*parts)) == len(a) + len(b) + len(c)
    drawn = sweeps.sample(units, 3, seed=1)
    assert drawn == sweeps.sample(units, 3, seed=1)
    assert len({unit.name for unit in drawn}) == len(drawn) == min(3, len(units))


def test_units_are_named_after_what_they_set_and_keep_their_types():
    sweep = [{"optim.learning_rate": 1e-3, "data.size": (64, 32), "augment.geometry": False}]
    [unit] = sweeps.units(sweep)
    assert unit.name == "learning_rate=0.001,size=64x32,geometry=false"
    assert unit.overrides == sweep[0]
    fields = {key: sweeps.text(value) for key, value in unit.overrides.items()}
    config = config_files.get_config("unet", fields)
    assert config.data.size == (64, 32) and config.augment.geometry is False


def test_numbers_of_numpy_are_numbers(capsys):
    [unit] = sweeps.axis("data.size", [np.array([64, 32])])
    assert unit.overrides["data.size"] == (64, 32) and sweeps.text(np.float64(0.5)) == "0.5"
    assert sweeps.axis("seed", np.arange(2))[1].name == "seed=1"


ODD = {
    "lambda": lambda: 1,
    "mapping": {"a": 1},
    "set": {1},
    "object": object(),
    "config": unet.get_config(),
    "nothing": None,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "bytes": b"x",
    "complex": 1j,
    "objects": np.array([object()] * 50),
    "nested": (1, (2, {3})),
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_values_that_no_config_can_hold_are_one_line(value):
    wrong = [
        lambda: sweeps.axis("seed", [value]),
        lambda: sweeps.units([sweeps.Unit("a", {"seed": value})]),
        lambda: sweeps.units([sweeps.Unit("a", {"seed": 1}, {"table": [value]})]),
        lambda: sweeps.units([sweeps.Unit(value, {})]),
    ]
    if not isinstance(value, dict):
        wrong += [
            lambda: sweeps.units([sweeps.Unit("a", value)]),
            lambda: sweeps.units([value]),
        ]
    for made in wrong:
        with pytest.raises(ValueError, match="^[^\n]{1,300}$"):
            made()


def test_plain_values_are_converted():
    values = {"a": np.array(3), "b": Path("x/y"), "c": np.array([[1, 2]]), "d": np.bool_(True)}
    [unit] = sweeps.units([sweeps.Unit("a", values)])
    assert unit.overrides == {"a": 3, "b": "x/y", "c": ((1, 2),), "d": True}
    json.dumps(unit.overrides)


def test_a_product_refuses_to_set_a_field_twice():
    with pytest.raises(ValueError, match="optim.momentum is set by two sweeps"):
        sweeps.product(sweeps.axis("optim.momentum", (0.9,)), sweeps.axis("optim.momentum", (0.5,)))


@pytest.mark.parametrize(("config", "name"), [(config, name) for config, name, _ in all_sweeps()])
def test_every_sweep_gives_configs_that_can_be_trained(capsys, config, name):
    units = dry_run(capsys, f"--config=configs/{config}.py:debug", f"--sweep={name}")
    for line in units.values():
        program, command, *words = shlex.split(line)
        assert (program, command) == ("spinejax", "train")
        values = parsing.parse(command, train, words)
        schema.check(parsing.config(values))


def test_each_table_has_a_sweep_and_each_unit_a_row():
    of_tables = {name: sweep for _, name, sweep in all_sweeps() if name[-1].isdecimal()}
    assert set(of_tables) == set(papers.tables())
    for name, sweep in of_tables.items():
        table = papers.tables()[name]
        rows = []
        for unit in sweep():
            assert unit.cell["table"] == name
            fits = [
                row
                for row in table.rows
                if all(
                    unit.cell.get(key, word) == word
                    for key, word in zip(table.labels, row, strict=False)
                )
            ]
            assert len(fits) == 1, unit
            rows.append(fits[0])
        assert len(set(rows)) == len(rows)
        if table.system:  # a table of one of our networks is covered whole
            assert set(rows) == set(table.rows)
    # Of the others, what the rows without a network are is said in the table itself.
    assert len(list(chasppraunet.sweep_saeed2023_table11())) == 11
    assert len(opconvnet.sweep_qadri2021_table2()) == 4
    assert len(opconvnet.sweep_qadri2021_table3()) == 10


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("protocol", ["paper", "own"])
@pytest.mark.parametrize("number", [4, 6, 7, 8])
def test_tables_4_to_8_are_the_stages_of_the_pipeline(number, protocol, alone):
    call = f"saeed2023_table{number}(protocol={protocol}, alone={alone})"
    augmented, residual, dropout = {
        4: (False, False, 0.0),
        6: (True, False, 0.0),
        7: (True, True, 0.0),
        8: (True, True, 0.3),
    }[number]
    units = sweeps.units(config_files.find_sweep("mrunet", call)())
    assert len(units) == 8  # two data sets, four normalisations
    for unit in units:
        fields = dict(unit.overrides)
        config = config_files.get_config(fields.pop("config"), fields)
        tasks.check(config)
        assert (schema.SECOND in config) is not alone
        names = config if alone else config.vertebrae
        assert names.task == schema.CUBES and names.model.name == "mrunet"
        assert (names.model.residual, names.model.dropout) == (residual, dropout)
        for one in (config, names):
            assert one.augment.geometry is augmented
            assert one.augment.intensity is (augmented and protocol == "own")
            assert one.data.normalise == unit.overrides["data.normalise"]
            assert one.data.edition == unit.overrides["data.edition"]
        if protocol == "paper":
            assert names.data.split == "ratio" and names.data.val_fraction == 0
            assert names.train.epochs == 150 and names.optim.learning_rate == 1e-3
        if not alone:
            assert config.model.name == "chasppraunet"
            assert config.model.dropout == (0.0 if protocol == "paper" else 0.3)


def test_pipelines_share_a_first_network_that_is_the_same(capsys, tmp_path):
    def first_of(sweep, *words):
        lines = dry_run(capsys, "--config=mrunet", f"--sweep={sweep}", *words)
        return {
            name: next((w for w in shlex.split(line) if w.startswith("--first=")), "")
            for name, line in lines.items()
        }

    # Tables 7 and 8 differ from Table 6 in the second network only; within a table all differ.
    assert set(first_of("saeed2023_table8").values()) == {""}
    table_10 = first_of("saeed2023_table10")
    augmented = [table_10[f"verse20,{stage}"] for stage in ("augmented", "residual", "dropout")]
    assert len(set(augmented)) == 1 and augmented[0].startswith("--first=unused/first/")
    assert table_10["verse20,normalised"] == ""
    assert table_10["verse19,dropout"] not in ("", augmented[0])
    seeds = first_of("saeed2023_table10", "--seeds=2")
    assert len(set(seeds.values())) == 5  # two data sets, two seeds; and none
    assert set(first_of("saeed2023_table10(alone=true)").values()) == {""}


def test_a_first_network_depends_on_the_batch_of_each_device():
    configs = [
        config_files.get_config("cascade", {"train.batch_size_per_device": n}) for n in (2, 2, 4)
    ]
    same, again, other = map(plan._first, configs)
    assert same == again != other


def test_a_sweep_takes_arguments(capsys):
    words = ("--config=opconvnet", "--sweep=random_search(trials=3, seed=1)")
    three = dry_run(capsys, *words)
    assert len(three) == 3
    assert three == dry_run(capsys, "--config=opconvnet", "--sweep=random_search(seed=1,trials=3)")
    other = dry_run(capsys, "--config=opconvnet", "--sweep=random_search(trials=3)")
    assert three != other


@pytest.mark.parametrize(
    ("config", "call", "said"),
    [
        ("opconvnet", "random_search(trial=3)", "has no argument trial; it has "),
        ("opconvnet", "random_search(trials=many)", "(trials=many): must be a whole number"),
        ("opconvnet", "random_search(trials=0)", "trials=0 must be at least 1"),
        ("opconvnet", "random_search(3)", "cannot be read; give a name, or a name with arguments"),
        ("opconvnet", "random_search(trials=", "cannot be read"),
        ("opconvnet", "random_search(seed=1, seed=2)", "cannot be read"),
        ("opconvnet", "random_search(trials=__import__('os'))", "cannot be read"),
        ("opconvnet", "random(trials=3)", "is unknown"),
        ("mrunet", "saeed2023_table8(alone=perhaps)", "must be true or false"),
        ("mrunet", "saeed2023_table8(protocol=papers)", "choose from own, paper"),
        ("chasppraunet", "saeed2023_table3(protocol=papers)", "choose from own, paper"),
        ("chasppraunet:protocol=own", "saeed2023_table3", "varies the argument 'protocol'"),
        ("mrunet:table=5", "saeed2023_table8", "varies the argument 'table'"),
    ],
)
def test_arguments_that_a_sweep_does_not_have_are_refused(capsys, config, call, said):
    words = (f"--config={config}", f"--sweep={call}", "--dry_run", "--workdir=unused")
    assert said in refused(capsys, *words)


def test_seeds_and_folds_multiply_any_sweep(capsys):
    words = ("--config=configs/chasppraunet.py", "--sweep=attention")
    alone = dry_run(capsys, *words)
    both = dry_run(capsys, *words, "--seeds=2", "--folds=3")
    assert len(both) == 6 * len(alone)
    line = both["attention=gate,seed=1,fold=2"]
    for word in ("model.attention=gate", "seed=1", "data.split=kfold", "data.fold=2"):
        assert f"--config.{word}" in line
    some = dry_run(capsys, *words, "--seeds=2", "--units=*seed=1")
    assert len(some) == len(alone)


def test_another_config_lies_beside_and_gets_the_arguments():
    assert plan.beside("configs/a.py:debug", "") == "configs/a.py:debug"
    assert plan.beside("configs/a.py:debug", "b.py:net=vgg") == "configs/b.py:net=vgg,debug"
    assert plan.beside("/x/a.py", "b.py") == "/x/b.py"
    with pytest.raises(InputError, match="varies the argument 'net'"):
        plan.beside("configs/a.py:debug,net=vgg", "b.py:net=resnet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sweep=atention", "--workdir=w"), "did you mean 'attention'?"),
        (("--sweep=atention", "--workdir=w"), "'saeed2023_table3'"),
        (("--workdir=w",), "--sweep is required"),
        (("--sweep=attention",), "--workdir is required"),
        (("--sweep=attention", "--workdir=w", "--unit=a"), "unit"),
        (("--sweep=attention", "--workdir=w", "--units=x*"), "no unit of sweep attention"),
        (
            ("--sweep=attention", "--workdir=w", "--config.model.attention=gate"),
            "varies this field",
        ),
        (("--sweep=attention", "--workdir=w", "--config.nonsense=1"), "no field nonsense"),
        (("--sweep=attention", "--workdir=w", "--executor=pbs"), "pbs"),
        (("--sweep=attention", "--workdir=w", "--gpus=64"), "--gpus=64: this machine has"),
        (("--sweep=attention", "--workdir=w", "--prune=1"), "--prune=1: a rung keeps the best 1/N"),
        (("--sweep=attention", "--workdir=w", "--prune=5"), "the number of units, 4"),
        (("--sweep=attention", "--workdir=w", "--prune=2", "--seeds=2"), "one by one; prune"),
        (
            ("--sweep=saeed2023_table3", "--workdir=w", "--prune=2"),
            "unit verse20,normalise=hu has no scans to validate on",
        ),
    ],
)
def test_wrong_words_are_refused_in_one_line(capsys, tmp_path, words, said):
    words = [
        word.replace("=w", f"={tmp_path / 'w'}") if "workdir" in word else word for word in words
    ]
    assert said in refused(capsys, "--config=configs/chasppraunet.py", *words)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("config", "sweep", "field", "said"),
    [
        ("chasppraunet", "saeed2023_table3", "model.attention=foo", "model.attention = 'foo'"),
        ("chasppraunet", "attention", "train.batch_size=0", "train.batch_size=0 must be"),
        ("chasppraunet", "attention", "train.batch_size=few", "must be a whole number"),
        ("chasppraunet", "attention", "data.size=(30, 32)", "multiples of 8"),
        (
            "mrunet",
            "saeed2023_table8(alone=true)",
            "model.widths=(25,50)",
            "2 stages of model.widths",
        ),
        ("mrunet", "saeed2023_table8(alone=true)", "data.size=(64, 64)", "no field data.size"),
    ],
)
def test_a_wrong_field_reaches_no_unit(capsys, tmp_path, config, sweep, field, said):
    words = (f"--sweep={sweep}", f"--workdir={tmp_path / 'w'}", f"--config.{field}", "--dry_run")
    assert said in refused(capsys, f"--config={config}", *words)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("same", "2 units are called 'a'"),
        ("unknown", "no field optim.learning_rat; did you mean optim.learning_rate"),
        ("mistyped", "must be a whole number"),
        ("empty", "yields no units"),
        ("broken", "KeyError: nothing"),
        ("odd", "is neither a Unit nor a mapping"),
        ("nothing", "None is no finite number, word or sequence of them; correct"),
        ("stopping", "SystemExit: 3"),
        ("endless", "a value is nested too deeply"),
        ("bad_network", "unit norm=foo: "),
        ("bad_value", "unit learning_rate=-1: "),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_starts(capsys, tmp_path, sweep, said):
    folder = tmp_path / "w"
    words = (f"--sweep={sweep}", f"--workdir={folder}")
    assert said in refused(capsys, "--config=tests/support/tiny_sweep.py", *words)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("seed=0", "data.root is empty; give the folder of the scans with --config.data.root=DIR"),
        ("data.root=nowhere", "data.root=nowhere is no folder that can be read; give"),
        ("data.root=/dev/null", "data.root=/dev/null is no folder that can be read; give"),
        ("train.init_from=nowhere", "train.init_from=nowhere: there is no such model; give"),
    ],
)
def test_units_whose_scans_or_weights_are_nowhere_are_not_started(capsys, tmp_path, field, said):
    folder = tmp_path / "w"
    words = ["--config=tests/support/tiny_sweep.py", "--sweep=failing", f"--workdir={folder}"]
    if "init_from" in field:
        words.append(f"--config.data.root={tmp_path}")
    assert f"unit split=official: {said}" in refused(capsys, *words, f"--config.{field}")
    assert not folder.exists()


def test_a_config_without_sweeps_says_how_to_write_one(capsys):
    said = refused(capsys, "--config=configs/unet.py", "--sweep=a", "--workdir=w")
    assert "configs/unet.py: has no sweep; write `def sweep_NAME()`" in said


def test_a_packaged_config_has_sweeps_in_any_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    units = dry_run(capsys, "--config=opconvnet:debug", "--sweep=qadri2021_table2")
    assert "--config=opconvnet.py:net=vgg,debug" in next(u for u in units.values() if "vgg" in u)


def test_command_lines_can_be_pasted(capsys, tmp_path):
    folder = tmp_path / "a sweep of März"
    sweep = plan.make("demo", {}, "learning_rates", folder)
    for unit in sweep.units:
        program, command, *words = shlex.split(plan.shown(unit, folder))
        values = parsing.parse(command, train, words)
        assert values.workdir == folder / unit.name and values.evaluate


def test_launching_imports_no_jax(tmp_path):
    code = (
        "import sys; from spinejax.launch import local, plan, slurm, status, sweep, unit\n"
        "from spinejax.cli import main\n"
        "assert main(['sweep', '--status', '--workdir=w']) == 1\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize("module", ["launch.sweep", "spinejax.launch.sweep"])
def test_the_module_of_a_clone_is_the_command(module, capsys):
    words = ["--status", "--workdir=nowhere at all"]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (main(["sweep", *words]), "")
    assert done.stderr == capsys.readouterr().err != ""
