"""What a profile says of a device: times of programs, and how much of the whole they are."""

import gzip
import json

import pytest

from tests.benchmarks import waiting


def test_busy_time_is_that_of_the_union():
    # 0-2, 1-3 and 1.5-2 are three seconds, 5-6 is one more.
    assert waiting.busy([(5, 6), (1, 3), (0, 2), (1.5, 2)]) == (4, 6)
    assert waiting.busy([(2.5, 4)]) == (1.5, 1.5)


def test_only_programs_of_the_device_are_read(tmp_path):
    path = tmp_path / "perfetto_trace.json.gz"
    events = [
        {"ph": "X", "name": waiting._BUSY, "ts": 1_000_000, "dur": 250_000},
        {"ph": "X", "name": "something else", "ts": 0, "dur": 9},
        {"ph": "M", "name": "thread_name", "args": {}},
    ]
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert waiting.programs(path) == [pytest.approx((1.0, 1.25))]
