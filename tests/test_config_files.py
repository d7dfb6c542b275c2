"""Configs: found by path and name, loaded, fields set; what is wrong is named."""

import os

import pytest

from spinejax import config_files, schema, tasks
from spinejax.config_files import PACKAGED, find, find_sweep, get_config
from spinejax.errors import InputError

OWN = "from spinejax.configs.unet import get_config\n"


def test_packaged_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "chasppraunet",
        "chasppraunet:debug",
        "configs/chasppraunet.py",
        "configs/chasppraunet",
    ):
        assert find(name) == PACKAGED / "chasppraunet.py"
    assert get_config("chasppraunet:debug").model.name == "chasppraunet"


def test_a_local_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for place in ("configs/unet.py", "unet.py", "mine.py"):
        (tmp_path / place).write_text(OWN)
    assert str(find("configs/unet.py")) == "configs/unet.py"
    assert str(find("unet")) == str(find("unet.py:debug")) == "unet.py"
    (tmp_path / "unet.py").unlink()
    assert str(find("unet")) == "configs/unet.py"
    assert get_config("mine:debug").train.steps == get_config("unet:debug").train.steps


def test_a_path_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(OWN)
    assert find("~/mine.py:debug") == tmp_path / "mine.py"


@pytest.mark.parametrize(
    "name", ["other/unet.py", "unett", "", "configs", ".", "configs/nowhere.py"]
)
def test_what_is_not_there_is_named_with_the_closest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(InputError, match=f"--config={name}: there is no such file in ") as caught:
        find(name)
    hint = "did you mean unet?" if "unet" in name else "the packaged configs are cascade, "
    assert hint in str(caught.value)
    assert "common" not in str(caught.value)


def test_a_name_is_text():
    for name in (None, 3, ["unet"]):
        with pytest.raises(InputError, match="is no name of a config"):
            get_config(name)


def test_a_whole_path_is_not_sought_in_the_current_folder():
    with pytest.raises(InputError, match="--config=/nowhere/a.py: there is no such file; give"):
        find("/nowhere/a.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(arg=None):\n    return 1 / 0\n", "does not load (division by zero)"),
        ("def get_config(arg=None):\n    return 1 +\n", "own.py line 2: the config does not load"),
        ("\0", "own.py: "),
        ("raise SystemExit\n", "does not load (SystemExit)"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
        ("sweep_a = 1\n", "has no function get_config(arg)"),
    ],
)
def test_a_file_that_fails_is_named(text, said, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError) as caught:
        get_config(str(tmp_path / "own.py"))
    assert said in str(caught.value) and str(tmp_path / "own.py") in str(caught.value)


def test_arguments_of_a_config():
    assert get_config("unet:debug").train.steps != get_config("unet").train.steps
    with pytest.raises(
        InputError, match=r"unet.py: config argument 'debgu'.*\['debug', 'protocol'\]"
    ):
        get_config("unet:debgu")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("seed", 3, 3),
        ("optim.learning_rate", "1e-3", 1e-3),
        ("optim.learning_rate", 1, 1.0),
        ("augment.geometry", "False", False),
        ("augment.geometry", True, True),
        ("data.root", "3", "3"),
        ("data.size", "(64, 32)", (64, 32)),
        ("data.size", "64,32", (64, 32)),
        ("data.size", [64, 32], (64, 32)),
        ("model.widths", "(4,)", (4,)),
        ("model.widths", "4", (4,)),
    ],
)
def test_fields_are_set_by_value_or_by_text(key, text, value):
    config = get_config("unet", {key: text})
    for part in key.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


def test_words_of_a_tuple():
    config = get_config("opconvnet", {"model.paddings": "same,valid,same"})
    assert config.model.paddings == ("same", "valid", "same")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.lr", "1", "no field optim.lr; did you mean optim.learning_rate"),
        ("train.epoch", "3", "no field train.epoch; did you mean train.epochs"),
        ("dat.root", "x", "no field dat.root; did you mean data.root"),
        ("loss.foo", "1", "--config.loss.foo: the config has no field loss.foo"),
        ("seed.x", "1", "--config.seed.x: the config has no field"),
        ("train.epochs", "many", "--config.train.epochs=many: must be a number"),
        ("train.steps", "1.5", "must be a whole number"),
        ("train.steps", True, "must be a whole number"),
        ("augment.geometry", "yes", "must be true or false"),
        ("data.root", 3, "must be a word"),
        ("data.size", 64, "must be several values"),
        ("data.size[0]", "64", "a tuple is set as a whole"),
        ("data", "1", "data is a block"),
    ],
)
def test_wrong_fields_and_types_are_named(key, value, said):
    with pytest.raises(InputError) as caught:
        get_config("unet", {key: value})
    assert said in str(caught.value) and "--config." in str(caught.value)


def test_sweeps_of_a_file(tmp_path):
    assert list(find_sweep("demo", "learning_rates")())
    with pytest.raises(InputError, match="--sweep = 'learning_rate' is unknown.*did you mean"):
        find_sweep("demo:debug", "learning_rate")
    with pytest.raises(InputError, match=r"unet.py: has no sweep; write `def sweep_NAME\(\)`"):
        find_sweep("unet", "a")


def test_no_jax_is_imported(tmp_path):
    import subprocess
    import sys

    code = "import sys; from spinejax.config_files import get_config; get_config('cascade:debug')\n"
    code += "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert config_files.PACKAGED.is_dir()


def test_a_config_that_is_no_regular_file_is_not_called_missing(tmp_path):
    os.mkfifo(tmp_path / "own.py")
    with pytest.raises(InputError, match="own.py: is not a regular file"):
        config_files.get_config(str(tmp_path / "own.py"))


@pytest.mark.parametrize("name", ["unet", "dtvnet", "saunet", "multiresunet"])
@pytest.mark.parametrize("recipe", ["chasppraunet:protocol=paper", "dtvnet:protocol=paper"])
def test_a_network_of_another_config_changes_nothing_else(recipe, name):
    ours = schema.flatten(get_config(recipe))
    theirs = schema.flatten(get_config(name))
    config = get_config(recipe, {"model": name})
    tasks.check(config)
    mixed = schema.flatten(config)
    is_network = {path: path.startswith("model.") or path in schema.OF_NETWORK for path in mixed}
    assert {k: v for k, v in mixed.items() if is_network[k]} == {
        k: v for k, v in theirs.items() if k.startswith("model.") or k in schema.OF_NETWORK
    }
    assert all(ours[k] == v for k, v in mixed.items() if not is_network[k])


def test_fields_of_a_network_are_set_after_the_network():
    fields = {"model.growth": "8", "data.neighbours": 2, "model": "saunet"}
    config = get_config("chasppraunet", fields)
    assert (config.model.name, config.model.growth, config.data.neighbours) == ("saunet", 8, 2)
    config = get_config("cascade", {"vertebrae.model": "unet3d"})
    assert (config.model.name, config.vertebrae.model.name) == ("chasppraunet", "unet3d")
    assert get_config("unet", {"model": "opconvnet:net=vgg"}).model.name == "vgg"


def test_the_network_of_a_config_in_the_same_folder_comes_first(tmp_path):
    for name, widths in (("mine", (4, 8)), ("unet", (2, 4))):
        (tmp_path / f"{name}.py").write_text(
            "from spinejax.configs import unet\n"
            f"def get_config(arg):\n    config = unet.get_config(arg)\n"
            f"    config.model.widths = {widths}\n    return config\n"
        )
    for name in ("unet", "unet.py"):
        config = get_config(str(tmp_path / "mine.py"), {"model": name})
        assert config.model.widths == (2, 4)
    assert get_config(str(tmp_path / "mine.py"), {"model": "dtvnet"}).model.name == "dtvnet"


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        ("chasppraunet", {"model": "unet3d"}, "'unet3d' is no network for task='slice_segm"),
        ("chasppraunet", {"model": "opconvnet"}, "'opconvnet' is no network for task='slice_segm"),
        ("mrunet", {"model": "unet"}, "'unet' is no network for task='vertebra_recognition'"),
        ("opconvnet", {"model": "unet"}, "'unet' is no network for task='patch_classification'"),
        ("chasppraunet", {"model": "unnet"}, "--config.model=unnet: there is no such file"),
        ("chasppraunet", {"model": ""}, "--config.model=: there is no such file"),
        ("chasppraunet", {"model": "unet:layers=3"}, "config argument 'layers' is unknown"),
        ("chasppraunet", {"model": {"name": "unet"}}, "must be the name of a config, such as unet"),
        ("chasppraunet", {"vertebrae.model": "unet"}, "has no field vertebrae.model"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(config, fields, said):
    with pytest.raises(InputError) as error:
        tasks.check(get_config(config, fields))
    assert said in str(error.value) and "\n" not in str(error.value)
