"""Pulse-coupled networks: the neuron, the adaptive rule, the filter, and a run without training."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from spinejax import predictor, tasks
from spinejax.cli import main
from spinejax.configs import pcnn as config_of
from spinejax.errors import InputError
from spinejax.models import build_model, pcnn
from spinejax.models.pcnn import Parameters, adapted, firing_times, linked, median, otsu
from spinejax.training import search
from tests.support.cli_runs import bright_box, fails

# exp(-alpha_f), beta, first threshold, exp(-alpha_e), V
UNLINKED = Parameters(0.0, 0.0, 1.0, math.exp(-0.2), 20.0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def two_levels(low, high):
    """A bright block in a darker scan."""
    image = np.full((9, 10, 11), low, np.float32)
    image[3:7, 2:6, 4:9] = high
    return image, image == high


def times(image, neurons, iterations=200):
    run = jax.jit(firing_times, static_argnames="iterations")
    return np.asarray(run(jnp.asarray(image), neurons, iterations=iterations))


def test_neighbours_are_weighted_by_their_distance():
    fired = noise(5, 6, 7) < 0.3
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    kernel = np.zeros(27)
    kernel[steps.any(1)] = 1 / np.linalg.norm(steps[steps.any(1)], axis=1)
    expected = ndimage.convolve(fired.astype(float), kernel.reshape(3, 3, 3), mode="constant")
    np.testing.assert_allclose(linked(jnp.asarray(fired)), expected, atol=1e-5)
    assert pcnn.WEIGHT == pytest.approx(6 + 12 / math.sqrt(2) + 8 / math.sqrt(3))


def test_without_linking_a_voxel_fires_when_the_threshold_has_fallen_to_its_brightness():
    image = noise(4, 5, 6) * 0.98 + 0.01
    # The threshold of iteration n is exp(-0.2 (n - 1)).
    expected = np.floor(-np.log(image.astype(np.float64)) / 0.2) + 2
    np.testing.assert_array_equal(times(image, UNLINKED), expected)


def test_without_linking_the_brighter_voxel_never_fires_later():
    image = noise(6, 6, 6)
    fired = times(image, UNLINKED).ravel()[np.argsort(image.ravel())]
    assert (np.diff(fired.astype(int)) <= 0).all() and len(set(fired)) > 5


@pytest.mark.parametrize("beta", [0.02, 0.1])
def test_linking_only_makes_voxels_fire_earlier(beta):
    image = ndimage.gaussian_filter(noise(8, 8, 8), 1.0)
    image = image / image.max()
    alone, together = (times(image, UNLINKED._replace(linking=b)) for b in (0.0, beta))
    assert (together <= alone).all() and (together < alone).any()


def test_fast_linking_reaches_a_chain_in_one_iteration():
    # Only the first voxel is above the threshold; each other one needs its neighbour.
    image = np.zeros((1, 1, 7), np.float32)
    image[0, 0] = [0.95, *[0.85] * 6]
    neurons = UNLINKED._replace(linking=0.1, decay=0.9)
    assert (times(image, neurons) == 2).all()
    image[0, 0, 3] = 0.1
    assert (times(image, neurons)[0, 0] == 2).tolist() == [True] * 3 + [False] * 4


def test_what_has_no_brightness_never_fires_and_the_rest_does():
    image = np.where(noise(4, 4, 4) < 0.5, 0, noise(4, 4, 4, seed=1) * 0.9 + 0.1)
    assert ((times(image.astype(np.float32), UNLINKED) > 0) == (image > 0)).all()


# The adaptive rule


def test_otsu_is_the_best_of_all_thresholds():
    image = np.concatenate([noise(500) * 0.3, 0.5 + noise(200, seed=1) * 0.4]).astype(np.float32)

    def within(threshold):
        parts = image[image < threshold], image[image >= threshold]
        return sum(len(part) * part.var() for part in parts if len(part))

    edges = np.arange(1, 256) / 256
    variances = np.array([within(edge) for edge in edges])
    assert within(float(otsu(jnp.asarray(image)))) <= variances.min() * 1.01


def test_otsu_of_two_values_lies_halfway_between_their_bins():
    image = jnp.asarray(two_levels(0.25, 0.75)[0])
    # Bins of 1/256: from the end of that of 0.25 to the beginning of that of 0.75.
    assert float(otsu(image)) == pytest.approx((65 / 256 + 192 / 256) / 2)


def test_the_parameters_of_a_small_image_are_those_worked_by_hand():
    """Half of the voxels are 1 and half are 0.5: sigma 0.25, S_max 1."""
    image = np.full((2, 2, 2), 0.5, np.float32)
    image[0] = 1
    found = adapted(jnp.asarray(image))
    threshold = (129 + 255) / 2 / 256  # 0.75
    weight = 6 + 12 / math.sqrt(2) + 8 / math.sqrt(3)
    alpha_f = math.log(1 / 0.25)
    linking = (1 / threshold - 1) / weight
    jump = math.exp(-alpha_f) + 1 + weight * linking  # 0.25 + 1 + 1/3
    activity = (1 - math.exp(-3 * alpha_f)) / (1 - math.exp(-alpha_f))
    activity += weight * linking * math.exp(-alpha_f)
    alpha_e = math.log(jump / (threshold * activity))
    expected = (math.exp(-alpha_f), linking, 0.0, math.exp(-alpha_e), jump)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert jump == pytest.approx(0.25 + 4 / 3) and activity == pytest.approx(1.3125 + 1 / 12)


def test_by_the_adaptive_rule_nothing_fires_second_and_all_above_otsu_fire_third():
    image = ndimage.gaussian_filter(noise(12, 12, 12), 1.0)
    image = (image - image.min()) / (image.max() - image.min())
    found = times(image, adapted(jnp.asarray(image)), iterations=pcnn.FIRST)
    inner = (slice(2, -2),) * 3  # the rule supposes that all 26 neighbours are there
    assert not (found == 2)[inner].any()
    above = image > float(otsu(jnp.asarray(image))) + 1e-4
    assert (found == pcnn.FIRST)[inner][above[inner]].all()


@pytest.mark.parametrize("net", ["apcnn", "pcnn"])
@pytest.mark.parametrize("low", [0.1, 0.2, 0.3])
def test_two_levels_are_separated_exactly(net, low):
    image, bright = two_levels(low, 1.0)
    neurons = {
        "apcnn": adapted(jnp.asarray(image)),
        "pcnn": UNLINKED._replace(linking=config_of.NETS["pcnn"]["beta"]),
    }[net]
    found = times(image, neurons)
    assert found[bright].max() < found[~bright].min()
    assert (found > 0).all() and len(np.unique(found[bright])) == 1


# The filter and the networks


def test_the_median_is_that_of_scipy():
    for share in (0.3, 0.5, 0.7):
        mask = noise(6, 7, 8) < share
        expected = ndimage.median_filter(mask, 3, mode="nearest")
        np.testing.assert_array_equal(median(jnp.asarray(mask)), expected)


@pytest.mark.parametrize("net", ["apcnn", "pcnn"])
def test_a_network_finds_bright_tissue_whatever_unit_its_input_has(net):
    model = build_model(dict(name=net))
    image, bright = two_levels(40.0, 700.0)
    apply = jax.jit(lambda x: model.apply({}, x)[0][..., 0] > 0)
    found = apply(jnp.asarray(image)[..., None])
    expected = ndimage.median_filter(bright, 3, mode="nearest")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(apply(jnp.asarray(image)[..., None] / 800 - 1), expected)
    assert not apply(jnp.full((3, 4, 5, 1), 7.0)).any()
    assert not jax.tree.leaves(model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))))


@pytest.mark.parametrize("deviation", [0.2, 0.3])
def test_in_noise_the_adaptive_network_is_better_than_the_threshold_that_it_begins_with(deviation):
    bright = np.zeros((24, 24, 24), bool)
    bright[6:18, 6:18, 6:18] = True
    generator = np.random.default_rng(0)
    image = np.where(bright, 0.6, 0.1) + deviation * generator.standard_normal(bright.shape)
    image = np.clip(image, 0, 1).astype(np.float32)

    def dice(found):
        return 2 * np.sum(found & bright) / (found.sum() + bright.sum())

    model = build_model(dict(name="apcnn"))
    logits = jax.jit(lambda x: model.apply({}, x)[0])(jnp.asarray(image)[..., None])
    plain = dice(image > float(otsu(jnp.asarray(image))))
    assert dice(np.asarray(logits)[..., 0] > 0) > plain + 0.15


# A run


def scans_of_boxes(root):
    """Scans of two bright boxes in noise, and their labels."""
    for number in range(3):
        hu, labels = bright_box(number)
        for folder, array in (("images", hu), ("labels", labels)):
            path = root / folder / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 2.0, 1.0])), path)
    return root


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = scans_of_boxes(tmp_path_factory.mktemp("scans"))
    return [
        "--config=pcnn:net=apcnn",
        f"--config.data.root={root}",
        "--config.data.split=ratio",
        "--config.data.test_fraction=0.5",
        "--config.data.preprocess.spacing_mm=2.0",
        "--config.predict.min_component_ml=0.0",
    ]


def test_a_run_without_steps_is_scored_predicts_and_is_exported(words, tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    assert main(["train", *words, f"--workdir={workdir}", "--evaluate"]) == 0
    assert (workdir / "DONE").read_text() == "0 steps\n"
    assert "apcnn has no parameters: nothing to train" in caplog.text + capsys.readouterr().err
    record = json.loads((workdir / "run.json").read_text())
    assert (record["steps"], record["parameters"]) == (0, 0)
    scores = json.loads((workdir / "evaluation/test/scores.json").read_text())
    dice = [case["binary"]["dice"] for case in scores["cases"].values()]
    assert len(dice) == 1 and dice[0] > 0.85  # corners of the boxes are rounded
    # Again, with another config, as a report, and as a file.
    assert main(["train", *words, f"--workdir={workdir}"]) == 0
    other = [*words, f"--workdir={workdir}", "--config.data.preprocess.spacing_mm=3.0"]
    fails(capsys, ["train", *other], "spacing_mm")
    assert main(["report", f"--workdir={workdir}"]) == 0
    assert main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'm.safetensors'}"]) == 0
    model = predictor.load(tmp_path / "m.safetensors")
    scan = next(iter(json.loads((workdir / "evaluation/test/cases.json").read_text()).values()))
    found = model.segment(scan["image"])
    assert found.mask.any() and not found.named


def test_a_network_without_parameters_is_not_searched(tmp_path):
    with pytest.raises(InputError, match="'apcnn' has no parameters"):
        search.run(config_of.get_config(), lambda _: [], tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.preprocess.mode", "native"),
        ("data.preprocess.intensity", "op_window"),
        ("predict.search", "coarse"),
    ],
)
def test_what_cuts_a_scan_into_slices_is_refused(path, value):
    config = config_of.get_config()
    config.update_from_flattened_dict({path: value})
    with pytest.raises(InputError, match=f"{path}='{value}' must be"):
        tasks.check(config)


def test_it_can_be_summarised_and_compared(capsys):
    assert main(["summarize", "--config=pcnn"]) == 0
    assert "parameters: 0" in capsys.readouterr().out
    assert main(["summarize", "--config=pcnn", "--against=mlpnn:debug"]) == 0
    assert "181" in capsys.readouterr().out


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="choose from apcnn, pcnn"):
        config_of.get_config("net=mlpnn")
