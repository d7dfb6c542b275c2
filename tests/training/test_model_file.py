"""The file of a model: what it holds, and what is refused when it is read."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from spinejax.errors import InputError
from spinejax.schema import SECOND, flatten, plain
from spinejax.tasks import build_task
from spinejax.training import model_file
from spinejax.training.model_file import SPINE, Network
from tests.support.pipeline_run import second_config
from tests.support.tiny_run import tiny_config


def network(config, seed=0, pixels_mm=(0.5, 2.0)):
    """Return an untrained network with random variables."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(build_task(config).init, jax.random.key(0))
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    training = {"commit": "abcdef0", "steps": seed}
    return Network("a run", config, {"batch_stats": {}, **variables}, pixels_mm, training)


@pytest.fixture(scope="module")
def parts():
    spine = tiny_config("/home/somebody/scans", **{"model.norm": "batch"})
    names = second_config("/home/somebody/scans", "crop")
    names.train.init_from = "/home/somebody/run"
    return {SPINE: [network(spine), network(spine, 1, None)], SECOND: [network(names, 2)]}


@pytest.fixture
def file(parts, tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.write(path, parts, card={"seeds": [0, 1]}, half=[SECOND])
    return path


def test_networks_come_back_as_float32(file, parts):
    found = model_file.read(file)
    assert found.card == {"seeds": [0, 1]}
    for name, members in parts.items():
        for before, after in zip(members, found.networks[name], strict=True):
            assert after.pixels_mm == before.pixels_mm and after.training == before.training
            old, new = (jax.tree.leaves(one.variables) for one in (before, after))
            for a, b in zip(old, new, strict=True):
                assert b.dtype == np.float32
                expected = a.astype(np.float16) if name == SECOND else a
                np.testing.assert_array_equal(b, expected)
    assert found.networks[SPINE][0].variables["batch_stats"]
    # Running variances may be smaller than float16's smallest number, so only parameters are half.
    with safe_open(file, framework="numpy") as opened:
        kinds = {name.split("/")[0]: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
    assert kinds == {SPINE: np.float32, SECOND: np.float16}


def test_configs_come_back_without_the_folders_of_the_machine(file, parts):
    assert b"somebody" not in file.read_bytes()
    for name, members in model_file.read(file).networks.items():
        before, after = (flatten(plain(one[0].config)) for one in (parts[name], members))
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        assert changed == {"data.root"} | ({"train.init_from"} if name == SECOND else set())


def changed(file, tensor=lambda name, array: array, **notes):
    """Write the file again with other tensors or metadata, and the SHA-256 that they have."""
    with safe_open(file, framework="numpy") as opened:
        old = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = opened.metadata() | notes
    tensors = {name: tensor(name, array) for name, array in old.items()}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    about.setdefault("sha256", "")
    if "sha256" not in notes:
        about["sha256"] = model_file._digest(about["networks"], tensors)
    save_file(tensors, file, metadata={key: text for key, text in about.items() if text})


def of_networks(file, change):
    with safe_open(file, framework="numpy") as opened:
        about = json.loads(opened.metadata()["networks"])
    change(about)
    changed(file, networks=json.dumps(about))


BAD = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "no model .* or it is damaged"),
    "short": (lambda f: f.write_bytes(b"\0" * 5), "no model .* or it is damaged"),
    "a NIfTI": (lambda f: f.write_bytes(b"\x5c\1\0\0" * 99), "no model .* or it is damaged"),
    "another program's": (lambda f: save_file({"a": np.zeros(2)}, f), "is no model of spinejax;"),
    "newer": (
        lambda f: changed(f, format="2", spinejax="9.9"),
        r"spinejax 9\.9 wrote this file in format 2, .* reads format 1; install a newer version",
    ),
    "another role": (
        lambda f: of_networks(f, lambda about: about.update(discs=about.pop(SPINE))),
        "networks of the role 'discs', .*; install a newer version",
    ),
    "a changed byte": (
        lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\x7f"),
        "damaged .the content differs from its SHA-256",
    ),
    "no digest": (lambda f: changed(f, sha256=""), "it has no sha256"),
    "no JSON": (lambda f: changed(f, card="{"), "its metadata are no JSON"),
    "no object": (lambda f: changed(f, card="[]"), "is damaged"),
    "no networks": (lambda f: changed(f, networks="{}"), "holds no networks"),
    "no config": (
        lambda f: of_networks(f, lambda about: about[SPINE][0].pop("config")),
        r"it has no spine\.0\.config",
    ),
    "a bad config": (
        lambda f: of_networks(f, lambda about: about[SPINE][1]["config"].update(seed="x")),
        r"\(spine/1\) is damaged \(seed",
    ),
    "exchanged": (
        lambda f: of_networks(
            f, lambda about: about.update(spine=about[SECOND], vertebrae=about[SPINE])
        ),
        "has another role",
    ),
    "a missing tensor": (
        lambda f: changed(f, lambda name, x: None if "spine/1/params" in name else x),
        r"\(spine/1\) is damaged \(the network has the array .* and the model lacks it\)",
    ),
    "another shape": (
        lambda f: changed(f, lambda name, x: x[..., :1].copy() if name.startswith(SECOND) else x),
        r"\(vertebrae/0\) is damaged \(the array params/.* has shape \(.*\) in the model and \(",
    ),
    "missing": (lambda f: f.unlink(), "no such file"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "a folder, not a regular file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(kind, file):
    damage, words = BAD[kind]
    damage(file)
    with pytest.raises(InputError, match=words) as caught:
        model_file.read(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert re.search(r"; (give|install|restore)", str(caught.value))


def test_what_float16_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    large = network(tiny_config("x"))
    next(iter(jax.tree.leaves(large.variables["params"])))[...] = 1e6
    with pytest.raises(InputError, match="float16 cannot hold; leave --half out"):
        model_file.write(tmp_path / "m.safetensors", {SPINE: [large]}, card={}, half=[SPINE])
    assert not any(tmp_path.iterdir())


def test_only_a_bare_name_means_a_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_file.located("phantom") == model_file.FOLDER / "phantom.safetensors"
    for path in ("./phantom", tmp_path / "phantom", "phantoms"):
        assert model_file.located(path).name == str(path).rpartition("/")[2]


def test_a_packaged_model_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="packaged model 'phantom' is missing .* --model=RUN"):
        model_file.read(model_file.located("phantom"))


@pytest.mark.parametrize("name", model_file.PACKAGED)
def test_the_networks_of_a_packaged_file_fit_their_configs(name):
    """`read` does not compare them anew in every process."""
    for members in model_file.read(model_file.located(name)).networks.values():
        for member in members:
            assert model_file.misfit(build_task(member.config), member.variables) == ""
