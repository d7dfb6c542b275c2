"""Summary: counts against closed forms and against XLA."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs import chasppraunet, unet
from spinejax.models import build_model
from spinejax.models.summary import flops, summarize


def test_flops_of_one_convolution_are_the_closed_form():
    x, kernel = jnp.zeros((2, 16, 12, 5)), jnp.zeros((3, 3, 5, 7))

    def conv(x, kernel):
        return nn.Conv(7, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x)

    assert flops(conv, x, kernel) == 2 * (2 * 16 * 12 * 7) * (3 * 3 * 5)


def test_flops_of_a_product_in_a_loop_count_every_turn():
    def loop(x):
        return jax.lax.map(lambda row: row @ jnp.zeros((4, 6)), x)

    assert flops(jax.jit(loop), jnp.zeros((3, 5, 4))) == 3 * (2 * 5 * 6 * 4)


def test_flops_agree_with_xla_on_the_unet():
    model = build_model(unet.model())
    x = jnp.zeros((1, 64, 64, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def forward(variables, x):
        return model.apply(variables, x)[0]

    theirs = jax.jit(forward).lower(variables, x).cost_analysis()["flops"]
    # Theirs leaves out taps over the padding and adds the element-wise operations.
    assert abs(flops(forward, variables, x) / theirs - 1) < 0.1


def test_summary_lists_layers_that_add_up_to_the_total():
    text = summarize(build_model(chasppraunet.model()), (64, 64, 1))
    lines = text.splitlines()
    assert lines[-2] == "parameters: 1,272,313"
    assert re.fullmatch(r"GFLOPs: \d+\.\d\d", lines[-1])
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[2:-2]]
    assert sum(counts) == 1_272_313
    first = lines[2].split()
    assert first[:2] == ["encoder1/block/conv1/conv", "Conv"]
    assert "(64, 64, 24)" in lines[2]


def test_summary_of_a_rematerialised_network_is_the_same():
    fields = {**chasppraunet.model(), "widths": (4, 8)}
    plain, remat = (build_model(fields, remat=remat) for remat in (False, True))
    assert summarize(plain, (16, 16, 1)) == summarize(remat, (16, 16, 1))
