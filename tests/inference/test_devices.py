"""Calls ahead of their results, and several devices."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spinejax.inference import devices

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [1, 3])
def test_calls_are_made_ahead_of_their_results(count):
    events = []

    def calls():
        for i in range(5):
            events.append(f"call {i}")
            yield i

    for i in devices.behind(calls(), count):
        events.append(f"read {i}")
    assert [e for e in events if e.startswith("read")] == [f"read {i}" for i in range(5)]
    for i in range(5 - count):
        assert events.index(f"read {i}") == events.index(f"call {i + count}") + 1


def test_three_devices_find_what_one_finds(tmp_path):
    found = []
    for count in (1, 3):
        out = tmp_path / f"{count}.npz"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
        command = [sys.executable, "-m", "tests.support.scan_devices", str(out)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        with np.load(out) as file:
            found.append(dict(file))
    one, three = found
    for name in ("tiles", "patches"):
        assert np.ptp(one[name]) > 0.01
        np.testing.assert_allclose(three[name], one[name], atol=1e-5)
        assert one[f"devices, {name}"] == 1 and three[f"devices, {name}"] == 3
    for name in ("joined by the host", "joined on the device"):
        np.testing.assert_array_equal(three[name], one[name])
    # Where they are joined there are the classes of one device.
    assert three["devices, joined by the host"] == 3
    assert three["devices, joined on the device"] == 1
