"""Summary: counts against closed forms and against XLA."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from spinejax.configs import chasppraunet, unet
from spinejax.models import build_model
from spinejax.models.layer_table import flops, summarize


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
    assert first[0] == "encoder1/block/conv1/conv"
    assert first[1] == "Conv"
    assert "(64, 64, 24)" in lines[2]


def test_summary_of_a_rematerialised_network_is_the_same():
    fields = {**chasppraunet.model(), "widths": (4, 8)}
    plain, remat = (build_model(fields, remat=remat) for remat in (False, True))
    assert summarize(plain, (16, 16, 1)) == summarize(remat, (16, 16, 1))


def test_summary_of_opconvnet_is_table_1_of_the_paper():
    lines = summarize(build_model(dict(name="opconvnet"), out_channels=2), (32, 32, 1)).splitlines()
    rows = [re.split(r"  +", line) for line in lines[2:-3]]
    assert [(name, shape, count) for name, _, shape, count in rows] == [
        ("conv_1", "(15, 15, 64)", "640"),
        ("maxpool_1", "(7, 7, 64)", "0"),
        ("conv_2", "(5, 5, 128)", "73,856"),
        ("maxpool_2", "(3, 3, 128)", "0"),
        ("conv_3", "(3, 3, 256)", "295,168"),
        ("maxpool_3", "(2, 2, 256)", "0"),
        ("fc_1", "(1024,)", "1,049,600"),
        ("fc_2", "(256,)", "262,400"),
        ("fc_3", "(2,)", "514"),
    ]
    convolutions = 15**2 * 9 * 64 + 5**2 * 9 * 64 * 128 + 3**2 * 9 * 128 * 256
    operations = 2 * (convolutions + 1024 * 1024 + 1024 * 256 + 256 * 2)
    assert lines[-3:] == [
        "activations: 15-7-5-3-3-2",
        "parameters: 1,682,178",
        f"GFLOPs: {operations / 1e9:.4f}",
    ]


@pytest.mark.parametrize(
    ("width", "digits"),
    [(500_000_000, "1.00"), (61_700_000, "0.12"), (49_600_000, "0.0992"), (500, "0.00000100")],
)
def test_small_networks_keep_three_digits_of_their_gflops(width, digits):
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(width, use_bias=False)(x[:, 0, 0]), {}

    assert summarize(Wide(), (1, 1, 1)).splitlines()[-1] == f"GFLOPs: {digits}"
