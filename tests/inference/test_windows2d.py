"""Slices in overlapping windows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax.inference import windows2d


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(3, 70), st.integers(3, 70)),
    window=st.tuples(st.integers(8, 32), st.integers(8, 32)),
    overlap=st.floats(0, 0.8),
    batch_size=st.integers(1, 5),
    on_device=st.booleans(),
)
def test_a_pointwise_network_is_unchanged_by_windows(shape, window, overlap, batch_size, on_device):
    stack = np.random.default_rng(0).integers(-1000, 800, shape).astype(np.int16)
    shapes = set()

    def network(batch):
        shapes.add(batch.shape)
        return (batch > 150).astype(np.float32)

    result = windows2d.predict_stack(
        network,
        stack,
        window=window,
        overlap=overlap,
        batch_size=batch_size,
        fill=-1000,
        on_device=on_device,
    )
    assert shapes == {(batch_size, *window)}  # compiled once
    np.testing.assert_allclose(result, stack > 150, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(3, 60), st.integers(3, 60)),
    overlap=st.floats(0, 0.8),
    share=st.floats(0, 0.02),
    seed=st.integers(0, 99),
)
def test_pixels_that_count_are_as_if_all_windows_were_read(shape, overlap, share, seed):
    rng = np.random.default_rng(seed)
    stack = rng.integers(-1000, 800, shape).astype(np.int16)
    within = rng.random(shape) < share
    read = []

    def network(batch):
        """A network whose answer depends on the place in the window."""
        read.append(len(batch))
        return np.indices(batch.shape)[1:].sum(0) * (batch > 0).astype(np.float32)

    how = dict(window=(12, 16), overlap=overlap, batch_size=1, fill=-1000)
    done: list[int] = []
    every = windows2d.predict_stack(network, stack, **how)
    count = len(read)
    some = windows2d.predict_stack(network, stack, within=within, advance=done.append, **how)
    np.testing.assert_array_equal(some[within], every[within])
    assert sum(done) == shape[0]
    assert len(read) - count <= count and (within.any() or len(read) == count)


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    share=st.sampled_from([None, 0.0, 0.01, 0.1]),
    seed=st.integers(0, 99),
)
def test_the_device_joins_windows_as_the_host_does(count, batch_size, share, seed):
    rng = np.random.default_rng(seed)
    stack = rng.integers(-1000, 800, (count, 30, 37)).astype(np.int16)

    def network(batch):
        """A network whose answer depends on the place in the window."""
        return np.indices(batch.shape)[1:].sum(0) * (batch / 1000).astype(np.float32)

    within = None if share is None else rng.random(stack.shape) < share
    found = []
    for on_device in (False, True):
        done: list[int] = []
        probability = windows2d.predict_stack(
            network,
            stack,
            window=(12, 16),
            overlap=0.3,
            batch_size=batch_size,
            fill=-1000,
            within=within,
            on_device=on_device,
            advance=done.append,
        )
        found.append((probability, done))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert found[1][1] == found[0][1]


def test_one_window_has_the_context_of_training():
    # A slice smaller than the window is padded around its centre with air.
    seen = []

    def network(batch):
        seen.append(batch)
        return np.zeros(batch.shape, np.float32)

    windows2d.predict_stack(
        network,
        np.full((1, 2, 3), 7, np.int16),
        window=(6, 5),
        overlap=0.5,
        batch_size=1,
        fill=-1000,
    )
    expected = np.full((6, 5), -1000, np.int16)
    expected[2:4, 1:4] = 7
    np.testing.assert_array_equal(seen[0][0], expected)
