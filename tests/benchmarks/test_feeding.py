"""Samples are counted, on small scans."""

import time

from tests.benchmarks import feeding


def test_each_kind_of_samples_is_read(tmp_path):
    found = feeding.feeds(tmp_path, toy=True)
    assert [name.split()[0] for name in found] == ["slices", "patches", "cubes"]
    for batch, feed in found.values():
        wall, core = feeding.rates(feed(threads=0), batch, seconds=0.2)
        # One thread reads, on at most one core; clocks of processes are coarse.
        assert core >= wall * 0.5 and wall > 0


def test_a_slow_reader_gives_few_samples(tmp_path, monkeypatch):
    """Ten milliseconds of waiting a batch are at most a hundred batches a second."""
    batch, feed = feeding.feeds(tmp_path, toy=True)["slices of 32 x 32"]
    made = feed(threads=0)
    train = type(made).train

    def slow(self, **how):
        for one in train(self, **how):
            time.sleep(0.01)
            yield one

    monkeypatch.setattr(type(made), "train", slow)
    assert feeding.rates(made, batch, seconds=0.2)[0] <= 100 * batch
