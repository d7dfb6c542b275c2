"""PaDBN: its layers, and contrastive divergence against an RBM small enough to enumerate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from spinejax.errors import InputError
from spinejax.models import build_model, padbn
from spinejax.models.layer_table import count_parameters
from spinejax.models.padbn import RBM
from tests.support.networks import apply, init, normal, quick_jit

V, H = 5, 3


@pytest.fixture(scope="module")
def rbm() -> RBM:
    return RBM(normal(0, V, H), normal(1, H), normal(2, V))


def states(units: int) -> np.ndarray:
    """All states of binary units, (2 ** units, units)."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=units)))


def energies(rbm: RBM) -> np.ndarray:
    """E(v, h) of all states, (2 ** V, 2 ** H), in float64."""
    kernel, hidden_bias, visible_bias = (np.float64(part) for part in rbm)
    v, h = states(V), states(H)
    return -(v @ visible_bias)[:, None] - h @ hidden_bias - v @ kernel @ h.T


def test_the_classifier_has_the_parameters_of_its_layers():
    model = build_model(dict(name="padbn"), out_channels=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    by_hand = 1024 * 1000 + 1000 + 1000 * 500 + 500 + 500 * 250 + 250 + 250 * 2 + 2
    assert count_parameters(shapes["params"]) == by_hand == 1_651_252
    pretraining = build_model(dict(name="padbn", rbm=1), out_channels=2)
    shapes = jax.eval_shape(pretraining.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert count_parameters(shapes["params"]) == by_hand + 1024 + 1000 + 500


def test_logits_are_those_of_the_layers_in_numpy():
    model = build_model(dict(name="padbn", widths=(6, 4), init_std=0.9), out_channels=2)
    x = normal(0, 3, 5, 5, 1)
    variables = init(model, x)
    logits, out = apply(model, variables, x)
    units = np.asarray(x).reshape(3, 25)
    for number in (1, 2):
        layer = variables["params"][f"fc_{number}"]
        units = special.expit(units @ layer["kernel"] + layer["bias"])
        np.testing.assert_allclose(out[f"hidden_{number}"], units, atol=1e-5)
    layer = variables["params"]["fc_3"]
    np.testing.assert_allclose(logits, units @ layer["kernel"] + layer["bias"], atol=1e-5)


def test_the_free_energy_sums_over_the_hidden_states(rbm):
    found = padbn.free_energy(rbm, states(V).astype(np.float32))
    np.testing.assert_allclose(found, -special.logsumexp(-energies(rbm), axis=1), rtol=1e-5)


def test_units_given_the_other_layer_have_their_conditional_probabilities(rbm):
    joint = np.exp(-energies(rbm))
    hidden = (joint @ states(H)) / joint.sum(1, keepdims=True)
    visible = (joint.T @ states(V)) / joint.sum(0)[:, None]
    np.testing.assert_allclose(rbm.hidden(states(V).astype(np.float32)), hidden, atol=1e-5)
    np.testing.assert_allclose(rbm.visible(states(H).astype(np.float32)), visible, atol=1e-5)


def test_after_many_steps_the_gradient_is_that_of_the_likelihood(rbm):
    """CD-k tends to the gradient of -log p(v), which is enumerated here in float64."""
    data = np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], np.float32)
    many = 20_000
    samples = np.tile(data, (many // 2, 1))

    @jax.jit
    def found(keys):
        def loss(rbm):
            return padbn.contrastive_divergence(rbm, samples, keys, steps=20).mean()

        return jax.grad(loss)(rbm)

    joint = np.exp(-energies(rbm))
    joint /= joint.sum()
    v, h = states(V), states(H)
    model = RBM(v.T @ joint @ h, joint.sum(0) @ h, joint.sum(1) @ v)
    hidden = np.asarray(rbm.hidden(data), np.float64)
    seen = RBM(data.T @ hidden / 2, hidden.mean(0), data.mean(0))
    keys = jax.random.split(jax.random.key(0), many)
    # The error of a mean of 0 to 1 over so many draws is below 0.5 / sqrt(20000) = 0.0035.
    for part, there, here in zip(found(keys), model, seen, strict=True):
        np.testing.assert_allclose(part, there - here, atol=5 * 0.0035)


def test_one_step_is_drawn_from_the_two_conditional_distributions(rbm):
    """The distribution of the sample from one state, by enumeration of the hidden states."""
    many, begin = 20_000, np.array([1, 0, 0, 1, 1], np.float32)
    keys = jax.random.split(jax.random.key(1), many)
    drawn = quick_jit(lambda k: padbn.gibbs_sample(rbm, jnp.tile(begin, (many, 1)), k))(keys)
    given = np.asarray(rbm.hidden(begin[None]))[0]
    chance = np.prod(np.where(states(H) > 0, given, 1 - given), axis=1)
    expected = chance @ np.asarray(rbm.visible(states(H).astype(np.float32)))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), expected, atol=5 * 0.0035)


def test_a_sample_depends_on_its_own_key_alone(rbm):
    visible, keys = states(V)[:8].astype(np.float32), jax.random.split(jax.random.key(2), 8)
    whole = padbn.gibbs_sample(rbm, visible, keys, 2)
    np.testing.assert_array_equal(padbn.gibbs_sample(rbm, visible[3:5], keys[3:5], 2), whole[3:5])


def test_the_classifier_takes_all_but_the_visible_biases():
    fields = dict(name="padbn", widths=(6, 4))
    x = normal(0, 1, 5, 5, 1)
    before = build_model({**fields, "rbm": 2}, out_channels=2)
    variables = init(before, x)
    assert before.adopted(variables).keys() == variables.keys()
    assert before.adopted(variables)["params"].keys() == variables["params"].keys()
    after = build_model(fields, out_channels=2)
    taken = after.adopted(variables)
    assert jax.tree.structure(taken) == jax.tree.structure(init(after, x))
    np.testing.assert_array_equal(
        taken["params"]["fc_2"]["kernel"], variables["params"]["fc_2"]["kernel"]
    )


def test_a_layer_that_is_not_there_is_refused():
    model = build_model(dict(name="padbn", widths=(6, 4), rbm=3), out_channels=2)
    with pytest.raises(InputError, match=r"^model\.rbm=3 must be at most 2, .*model\.widths"):
        model.check_input((1, 5, 5, 1))
