"""The schema: defaults fit, limits hold, one line for what is wrong, and code that follows it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from spinejax import augment, config_files, losses, models, schema, tasks
from spinejax.configs import cascade, chasppraunet, common, demo, mrunet, opconvnet, unet
from spinejax.data import normalise
from spinejax.errors import InputError
from spinejax.inference import sequence
from spinejax.models.attention import ATTENTIONS
from spinejax.phantom.person.anatomy import RATES
from spinejax.phantom.scanner import scan_plan
from spinejax.schema import (
    CUBES,
    OUTLINES,
    PATCHES,
    SLICES,
    Choice,
    Field,
    Flag,
    Number,
    Range,
    Several,
    Whole,
)
from spinejax.tasks.patch_classification import PATCH_LABELS
from spinejax.training import optim
from spinejax.training.run_folder import check_same, read_config
from spinejax.volume import PLANES

ROOT = Path(__file__).parents[1]
NETWORK_FIELDS = [field for name in models.MODELS for field in models.fields(name).values()]
EVERY = [*schema.FIELDS, *NETWORK_FIELDS]
VOLUMES = (CUBES, OUTLINES)


# Allowed values


@pytest.mark.parametrize("field", EVERY, ids=lambda field: field.path)
def test_every_default_is_allowed_and_every_field_has_a_meaning(field):
    field.check(field.default)
    field.check(field.missing)
    assert field.meaning.endswith(".") and str(field.allowed)


def items(allowed):
    """Return the numbers within an allowed value, and how to put one into a value."""
    if isinstance(allowed, Several):
        count = allowed.count or max(1, allowed.least)
        return [(inner, lambda x: (x,) * count) for inner, _ in items(allowed.item)]
    if isinstance(allowed, Range):
        return [(inner, lambda x: (x, x)) for inner, _ in items(allowed.item)]
    return [(allowed, lambda x: x)] if isinstance(allowed, Number | Whole) else []


BOUNDS = [
    (field, kind, bound, outside, put)
    for field in EVERY
    for kind, put in items(field.allowed)
    for bound, outside in ((kind.low, -1), (kind.high, 1))
    if bound < math.inf
]


@pytest.mark.parametrize("index", range(len(BOUNDS)), ids=lambda i: BOUNDS[i][0].path)
def test_every_bound_refuses_just_outside(index):
    field, kind, bound, outside, put = BOUNDS[index]
    whole = isinstance(kind, Whole) or kind.whole
    beyond = bound + outside if whole else math.nextafter(bound, outside * math.inf)
    assert not field.allowed.fits(put(beyond))
    with pytest.raises(InputError, match=field.path) as error:
        field.check(put(beyond))
    assert "\n" not in str(error.value)
    open_end = getattr(kind, "above" if outside < 0 else "below", False)
    strict = isinstance(field.allowed, Range) and field.allowed.strict
    assert strict or field.allowed.fits(put(bound)) != open_end


ODD = [
    *(1e20, 1e30, 1e308, -1e30, 1e-300, math.nan, math.inf, -math.inf, -1, -1.5, 0.5, 10**400),
    *(2**31, 2**63, True, None, "", "1", "1e20", (), (1,) * 1000, ((1,),), [None], {}, {1}, 1j),
    *(b"1", object(), np.ones(100), np.float32(1), np.nan, lambda: 1, Path("x"), "x\ny" * 100),
]


@pytest.mark.parametrize("field", EVERY, ids=lambda field: field.path)
def test_odd_values_are_refused_in_one_short_line_or_are_sane(field):
    for value in ODD:
        for one in (value, (value,), (value, value), (value,) * 3):
            try:
                field.check(one)
            except InputError as error:
                text = str(error)
                assert text.startswith(field.path) and "\n" not in text
                assert len(text) < 700 + len(str(field.allowed)), text
            else:
                assert not items(field.allowed) or abs(np.array(one)).max(initial=0) < 2**31


def test_every_number_has_limits():
    for field in EVERY:
        for kind, _ in items(field.allowed):
            assert math.isfinite(kind.low) and math.isfinite(kind.high), field.path


@pytest.mark.parametrize("experiment", [chasppraunet, mrunet, opconvnet], ids=lambda e: e.__name__)
def test_a_config_at_the_limit_of_a_field_is_checked_without_work(experiment):
    """Values at both ends pass, or are refused with others in one line; nothing hangs or breaks."""
    config = experiment.get_config()
    known = schema.fields(config.task) | {
        field.path: field for field in models.fields(config.model.name).values()
    }
    for field in known.values():
        for kind, put in items(field.allowed):
            for bound in (kind.low, kind.high):
                try:
                    tasks.check(changed(config, **{field.path: put(bound)}))
                except InputError as error:
                    assert "\n" not in str(error)


def test_an_override_of_any_text_is_refused_in_one_line_or_set():
    config = chasppraunet.get_config()
    words = ["1e20", "nan", "", "9" * 5000, "(" * 3000, "[1e30]", "\x00"]
    for path in schema.flatten(config):
        for word in (*words, 10**400, np.ones((2, 2))):
            try:
                config_files.get_config("chasppraunet", {path: word})
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 300, path


def test_a_batch_that_is_too_large_for_a_call_is_refused():
    changes = {"train.batch_size": 65536}
    with pytest.raises(InputError, match=r"train\.batch_size=65536 inputs of 256x256x3 numbers"):
        tasks.check(changed(unet.get_config(), **changes))


@given(st.one_of(st.none(), st.text(max_size=3), st.booleans(), st.lists(st.none(), max_size=2)))
def test_a_number_is_no_other_type(value):
    assert not Number(-math.inf).fits(value) and not Whole(-(2**31)).fits(value)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_are_finite_and_within_their_limits(value):
    assert Number(0, 1).fits(value) == (0 <= value <= 1)
    assert Number(0, above=True).fits(value) == (0 < value < math.inf)
    assert not Whole().fits(value)


@pytest.mark.parametrize(
    ("allowed", "value"),
    [
        (Whole(), True),
        (Whole(), 1.0),
        (Whole(1, 9, odd=True), 4),
        (Number(), "1"),
        (Number(whole=True), 1.5),
        (Flag(), 1),
        (Choice(("a", "b")), ["a"]),
        (Choice({"a": 1, "b": 2}), ["a"]),
        (Several(Whole(1), 2), (1,)),
        (Several(Whole(1)), ()),
        (Several(Whole(1)), 3),
        (Several(Choice(("a",))), "a"),
        (Range(Number()), (2.0, 1.0)),
        (Range(Number(), strict=True), (1.0, 1.0)),
    ],
)
def test_values_of_another_type_or_shape_are_refused(allowed, value):
    assert not allowed.fits(value)
    with pytest.raises(InputError) as error:
        Field("a.field", None, allowed, "").check(value)
    assert str(error.value).startswith("a.field") and "\n" not in str(error.value)


def test_a_choice_may_grow():
    words = {"one": 1}
    choice = Choice(words)
    words["two"] = 2
    assert choice.fits("two") and "'two'" in str(choice)


# Whole configs


@pytest.mark.parametrize("task", schema.TASKS)
def test_the_defaults_of_a_task_are_a_config_of_it(task):
    blocks = schema.defaults(task)
    schema.check(blocks | {"model": {"name": "any"}})
    assert blocks["task"] == task
    assert schema.nested(schema.flatten(blocks)) == blocks
    assert "model" not in blocks and ("patches" in blocks["data"]) == (task == PATCHES)
    assert ("cube" in blocks["data"]) == ("size" not in blocks["data"]) == (task in VOLUMES)
    assert ("margin_mm" in blocks["predict"]) == ("threshold" not in blocks["predict"])
    assert ("margin_mm" in blocks["predict"]) == (task == CUBES)


def changed(config, **changes):
    flat = schema.flatten(config) | {k.replace("__", "."): v for k, v in changes.items()}
    return ConfigDict(schema.nested(flat))


REFUSED = {
    "type": (dict(optim__learning_rate="fast"), "optim.learning_rate='fast' must be a number"),
    "value": (
        dict(train__batch_size=0),
        "train.batch_size=0 must be .* from 1 to 65536",
    ),
    "choice": (dict(loss__name="dicece"), "loss.name = 'dicece'.*did you mean 'dice_ce'"),
    "field": (dict(optim__lr=0.1), "no field optim.lr; did you mean optim.learning_rate"),
    "block": (dict(optimiser__lr=0.1), "no field optimiser.lr; did you mean optim.learning_rate"),
    "other task": (dict(data__cube__size=(8, 8, 8)), "no field data.cube.size"),
    "nothing": (dict(train__epochs=0.0, train__steps=0), "train.epochs and train.steps are both 0"),
    "limits": (dict(data__phantom__min_extent_mm=500.0), "min_extent_mm=500.0 must be at most"),
    "fold": (dict(data__split="kfold", data__fold=5), "data.fold=5 must be below data.folds=5"),
    "not finite": (dict(augment__scale=(1.0, math.inf)), "augment.scale"),
    "network": (dict(model__name="unett"), "model.name = 'unett'.*did you mean 'unet'"),
    "network's field": (dict(model__width=(4, 8)), "no field model.width; .* model.widths"),
    "network's choice": (dict(model__attention="foo"), "model.attention = 'foo' .*'gate'"),
    "network's value": (dict(model__dropout=1.0), "model.dropout=1.0 must be .* below 1"),
    "network's size": (dict(data__size=(65, 64)), "data.size=.* must be multiples of 8"),
    "network's task": (dict(model__name="mrunet"), "no field model.attention"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case):
    changes, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as error:
        tasks.check(changed(chasppraunet.get_config("debug"), **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(data__plane="axial"), "data.plane='axial' must be 'sagittal'"),
        (dict(model__depths=(1, 1)), "model.depths = .* each of the 5 stages"),
        (dict(model__strides=(1, 2, 2, 3, 1)), "model.strides=.* from 1 to 2"),
        (dict(model__decoder_widths=(8, 8)), "needs 4 decoder widths"),
        (dict(data__cube__size=(32, 32, 20)), "data.cube.size"),
    ],
)
def test_what_cannot_work_with_cubes_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        tasks.check(changed(mrunet.get_config("debug"), **changes))


def test_the_second_network_of_a_pipeline_is_checked_too():
    config = cascade.get_config("phantom,debug")
    config.vertebrae.predict.anomalies = ("L7",)
    with pytest.raises(InputError, match=r"vertebrae\.predict\.anomalies = 'L7'"):
        schema.check(config)
    config = cascade.get_config("phantom,debug")
    config.vertebrae.model.norm = "layer"
    with pytest.raises(InputError, match=r"vertebrae\.model\.norm = 'layer'"):
        tasks.check(config)
    config.vertebrae = unet.get_config()
    with pytest.raises(InputError, match="a pipeline segments the spine first"):
        schema.check(config)


def test_a_field_that_is_missing_is_named():
    config = unet.get_config()
    del config.data.plane
    with pytest.raises(InputError, match=r"no data\.plane, which task=slice_segmentation needs"):
        schema.check(config)
    config = unet.get_config()
    del config.model
    with pytest.raises(InputError, match=r"no model\.name"):
        tasks.check(config)
    with pytest.raises(InputError, match="task = '' is unknown"):
        schema.check({"name": "x"})


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("optim.lr", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("train.learning_rate", "optim.learning_rate"),
        ("data.sise", "data.size"),
        ("data.clamp_hu", "data.preprocess.clamp_hu"),
        ("model.attentoin", "model.attention"),
        ("augment.rotation", "augment.rotation_deg"),
        ("train.batch", "train.batch_size"),
    ],
)
def test_the_closest_field_is_named_by_its_full_path(path, nearest):
    assert schema.nearest(chasppraunet.get_config(), path)[0] == nearest


def test_no_field_is_named_where_none_is_close():
    assert schema.nearest(unet.get_config(), "data.zzz") == []
    assert "`spinejax config`" in schema.unknown(unet.get_config(), "data.zzz")


def test_the_schema_loads_without_jax():
    code = "import sys, spinejax.schema; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_check_starts_no_device():
    """A launcher must leave the memory of a GPU to its units."""
    code = (
        "import sys; from jax._src import xla_bridge; from spinejax import tasks; "
        "from spinejax.configs import cascade, opconvnet; "
        "[tasks.check(c.get_config()) for c in (cascade, opconvnet)]; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Runs


def test_a_run_that_lacks_a_field_did_what_the_field_says(tmp_path):
    old = schema.plain(mrunet.get_config())
    del old["data"]["cube"]["prior_sacrum"], old["predict"]["shifts"], old["optim"]["ema_decay"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = read_config(tmp_path)
    tasks.check(found)
    assert found.data.cube.prior_sacrum == 0.0 != schema.defaults(CUBES)["data"]["cube"]
    assert (found.predict.shifts, found.optim.ema_decay) == (1, 0.0)


def test_free_fields_may_change_when_a_run_is_resumed(tmp_path):
    config, other = demo.get_config(), demo.get_config()
    free = {"data.threads": 0, "predict.threshold": 0.4, "vertebrae.predict.shifts": 3}
    other.update_from_flattened_dict(free)
    check_same(config, other, tmp_path)
    other.optim.learning_rate = 0.5
    with pytest.raises(InputError, match=r"optim\.learning_rate \(there 0.004, now 0.5\)"):
        check_same(config, other, tmp_path)
    assert not schema.is_free("data.size") and schema.is_free("vertebrae.data.root")


# What people read


def test_the_reference_is_up_to_date():
    page = schema.reference({name: models.fields(name) for name in models.MODELS})
    found = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert found == page, "run `spinejax config --reference > docs/config.md`"


@pytest.mark.parametrize("experiment", [demo, opconvnet, mrunet])
def test_every_field_of_a_config_is_described(experiment):
    config = experiment.get_config("debug")
    text = schema.describe(config, models.fields)
    shown = {line.split()[0] for line in text.splitlines() if not line.startswith(" ")}
    assert shown == set(schema.flatten(config))
    assert f"train.steps  {config.train.steps} steps  (default 0)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_differences_are_those_of_two_configs():
    text = schema.differences(chasppraunet.get_config(), chasppraunet.get_config("debug"))
    assert [line.split()[0] for line in text.splitlines()] == [
        "data.size", "model.widths", "train.batch_size", "train.steps",
    ]  # fmt: skip
    assert schema.differences(unet.get_config(), unet.get_config()) == "no field differs"


# The code dispatches on exactly these words


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("task", tasks.TASKS),
        ("data.source", ("verse", "phantom", schema.STREAM)),
        ("data.plane", PLANES),
        ("data.plane", augment.FLIP_AXES),
        ("data.normalise", normalise.INPUT_SCALE),
        ("data.phantom.region", scan_plan.REGIONS),
        ("data.patches.label_rule", PATCH_LABELS),
        ("loss.name", losses.LOSSES),
        ("optim.name", optim.OPTIMIZERS),
        ("optim.schedule", optim.SCHEDULES),
        ("predict.anomalies", sequence.ANOMALIES),
    ],
)
def test_choices_are_those_of_the_code(path, words):
    assert set(schema.choices(path)) == set(words)


def test_rates_are_those_of_phantoms():
    assert set(schema.block("data.phantom.rates")) == set(RATES)


def test_fields_of_networks_follow_their_classes():
    fields = models.fields("chasppraunet")
    assert fields["attention"].allowed.words is ATTENTIONS
    assert fields["widths"].default == (24, 48, 96, 192)
    assert set(fields) >= {"name", "dropout", "norm"} and "out_channels" not in fields
    assert common.base("x", {}).task == SLICES
    assert isinstance(common.base("x", {}), ConfigDict)


def test_runs_of_earlier_fields_keep_their_meaning():
    new = schema.defaults()
    flat = schema.flatten(new)
    for name in ("augment.geometry", "augment.intensity", "augment.flip_axes", "data.split_seed"):
        del flat[name]
    old = {**flat, "augment.enabled": False, "seed": 7, "model.name": "unet"}
    found = schema.flatten(schema.complete(schema.nested(old)))
    assert "augment.enabled" not in found
    assert found["augment.geometry"] is False and found["augment.intensity"] is False
    assert found["augment.flip_axes"] == "left_right"
    assert found["data.split_seed"] == 7  # the seed of the split was that of the run
    assert schema.complete(schema.nested(found)) == schema.nested(found)
