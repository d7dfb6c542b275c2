"""Where units run on this machine: GPUs and their memory, from a made-up CUDA_VISIBLE_DEVICES."""

import re

import pytest

from spinejax.errors import InputError
from spinejax.launch import local

MEMORY = "XLA_CLIENT_MEM_FRACTION"


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab12")
    for name in local._MEMORY_NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def devices(places):
    return [place["CUDA_VISIBLE_DEVICES"] for place in places]


def test_a_unit_has_a_gpu_or_several_to_itself_and_all_of_its_memory(two_gpus):
    places = local.slots(0, -1)
    assert devices(places) == ["4", "GPU-ab12"]
    assert devices(local.slots(0, 2)) == ["4,GPU-ab12"]
    assert devices(local.slots(3, 0)) == [""] * 3
    assert not any(MEMORY in place for place in places)


def test_units_that_share_a_gpu_divide_what_jax_reserves_on_it(two_gpus):
    places = local.slots(0, -1, 3)
    # The first places are on different GPUs, so that two units never share one needlessly.
    assert devices(places) == ["4", "GPU-ab12"] * 3
    for gpu in ("4", "GPU-ab12"):
        shares = [float(p[MEMORY]) for p in places if p["CUDA_VISIBLE_DEVICES"] == gpu]
        assert sum(shares) == pytest.approx(0.75, abs=1e-3)
    assert devices(local.slots(3, 1, 3)) == ["4", "GPU-ab12", "4"]


@pytest.mark.parametrize("name", local._MEMORY_NAMES)
def test_what_the_user_says_about_gpu_memory_counts(two_gpus, name):
    two_gpus.setenv(name, "0.1")
    assert not any(MEMORY in place for place in local.slots(0, -1, 2))
    two_gpus.setenv(name, "")  # jaxlib takes it for unset
    assert all(MEMORY in place for place in local.slots(0, -1, 2))


def test_jaxlib_knows_the_variable(two_gpus):
    xla_client = pytest.importorskip("jaxlib.xla_client")
    two_gpus.setenv(MEMORY, local.slots(0, -1, 4)[0][MEMORY])
    assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.75 / 4


@pytest.mark.parametrize(
    ("visible", "gpus", "said"),
    [
        ("0,1", 2, "--units_per_gpu=2: units that share a GPU have one each, not --gpus=2"),
        ("0,1", 0, "--units_per_gpu=2: units that share a GPU have one each, not --gpus=0"),
        ("", -1, "--units_per_gpu=2: this machine has no GPU that can be used; --at_once=N"),
        ("-1", 1, "--units_per_gpu=2: this machine has no GPU that can be used; --at_once=N"),
    ],
)
def test_units_cannot_share_what_is_not_there(monkeypatch, visible, gpus, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError, match=re.escape(said)):
        local.slots(0, gpus, 2)
