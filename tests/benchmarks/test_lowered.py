"""The training steps lower for CUDA on any machine, to what `docs/scaling.md` shows."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from spinejax.models import MODELS
from tests.benchmarks import lowered

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def test_a_function_counts_as_often_as_it_is_called_and_a_loop_once():
    @jax.jit
    def product(x):
        return x @ x

    def program(x):
        x = jax.lax.fori_loop(0, 5, lambda _, y: product(y), product(product(x)))
        return jax.pure_callback(lambda x: x, x, x.T)

    # A program with callbacks lowers for this machine alone.
    counts = lowered.operations(jax.jit(program).lower(jnp.ones((2, 2))).as_text())
    found = [counts[kind] for kind in ("dot_general", "while", "transpose", "host call")]
    assert found == [3, 1, 1, 1]


def test_every_network_that_learns_has_a_row():
    assert set(lowered.NETWORKS) == {name for name, model in MODELS.items() if model.LEARNS}


@pytest.mark.parametrize("form", lowered.DRAWN_FOR)
def test_phantoms_are_drawn_by_the_loops_in_the_docs(form):
    shown = re.search(rf"^\| {form} \|.*$", DOCS.read_text(), re.MULTILINE)
    found = lowered.phantom_row(form)
    assert f"| {' | '.join(found)} |" == shown[0], "python -m tests.benchmarks.lowered"


def test_loops_count_with_those_within_them():
    def program(x, n):
        inner = lambda _, y: jax.lax.fori_loop(0, n, lambda _, z: z + 1.0, y)  # noqa: E731
        return jax.lax.fori_loop(0, 3, inner, x)

    assert lowered.loops(jax.make_jaxpr(program)(1.0, 2).jaxpr) == lowered.Loops(open=1, fixed=1)


@pytest.mark.parametrize("name", lowered.NETWORKS)
def test_a_training_step_lowers_to_the_operations_in_the_docs(name):
    shown = re.search(rf"^\| {name} \|.*$", DOCS.read_text(), re.MULTILINE)
    found = lowered.row(name)
    assert f"| {' | '.join(found)} |" == shown[0], "python -m tests.benchmarks.lowered"
    counts = lowered.operations(lowered.program_of(name))
    assert counts["while"] == counts["host call"] == 0


def test_each_convolution_of_unet_counts_with_its_two_gradients_but_for_that_by_the_image():
    learnt = 2 + 2 + 2 + 1  # of two encoders, of one decoder, the logits
    assert int(lowered.row("unet")[1]) == 3 * learnt - 1


def test_at_paper_size_only_the_logits_are_not_convolved_in_bfloat16():
    text = lowered.program_of("chasppraunet")
    kinds = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]*x(\w+)>", text)
    assert len(kinds) == lowered.operations(text)["convolution"]
    # A convolution, and its gradients by input and by kernel.
    assert kinds.count("f32") == 3 and kinds.count("bf16") == len(kinds) - 3
    main = next(line for line in text.splitlines() if "@main(" in line)
    assert "bf16" not in main  # neither in parameters and optimiser, nor in loss and metrics
