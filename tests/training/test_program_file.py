"""Programs, run by a process that has jax and numpy alone, against our own predictions."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from jax.extend.backend import get_backend
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from ml_collections import ConfigDict
from scipy import ndimage

from spinejax import labels, numerics, volume
from spinejax.config_files import get_config
from spinejax.configs import opconvnet
from spinejax.data import preprocess
from spinejax.errors import InputError
from spinejax.inference.outlines import make_outliner
from spinejax.inference.windows3d import make_cube_predictor
from spinejax.models import MODELS
from spinejax.tasks import build_task
from spinejax.training import program_file
from spinejax.training.model_file import SPINE
from spinejax.volume import Volume
from tests.support.pipeline_run import second_config
from tests.support.tiny_run import tiny_config
from tests.training import test_model_file

RNG = np.random.default_rng(0)
STATS = np.array([-300.0, 420.0, -900.0, 750.0], np.float32)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

# Windows of a scan on the network's grid need no smoothing in mm and no resampling.
GRID = {"data.preprocess.smoothing_sigma_mm": 0.0, "data.preprocess.spacing_mm": 1.0}


def config_of(name, **changes):
    config = get_config(name)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def network(config, seed=0):
    """A network whose activations neither vanish nor grow from layer to layer."""
    made = test_model_file.network(config, seed)
    for leaf in jax.tree.leaves(made.variables):
        leaf *= np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
    return made


def hu(*shape):
    """Noise with values beyond all clips, between whole numbers."""
    return RNG.normal(100, 700, shape).astype(np.float32)


def slices(members, scan):
    """Our prediction of each slice (n, h, w) of a scan by the mean of networks."""
    config = members[0].config
    how = preprocess.from_config(config.data)
    moved = np.moveaxis(scan, 0, volume.PLANES[how.plane])
    box = tuple(slice(0, side) for side in scan.shape)
    stack = preprocess.preprocess_box(
        Volume(np.ascontiguousarray(moved), AFFINE),
        how,
        box,
        neighbours=config.data.get("neighbours", 0),
    )
    found = [
        build_task(one.config).stack_predictor(one.variables)(stack, STATS, lambda done: None)
        for one in members
    ]
    return np.mean(found, axis=0)


def cube(config, image):
    """The preprocessed cubes (b, x, y, z) int16 of windows in HU."""
    how = preprocess.from_config(config.data)
    box = tuple(slice(0, side) for side in image.shape[1:])
    return np.stack([preprocess.preprocess_box(Volume(one, AFFINE), how, box) for one in image])


def of_slices(neighbours=0, **changes):
    fields = {"data.size": (16, 32), "data.normalise": "zscore", **GRID}
    if neighbours:
        fields |= {"data.neighbours": neighbours, "model.in_channels": 2 * neighbours + 1}
    config = tiny_config("x", **fields, **changes)
    members = [network(config), network(config, 1)]
    scan = hu(3, 16, 32)
    windows = volume.with_neighbours(scan, 0, 3, neighbours)
    return members, {"image": windows, "stats": np.tile(STATS, (3, 1))}, slices(members, scan)


def of_attention():
    fields = {"model.widths": (4, 8), "model.attention_key_size": 8, "data.size": (32, 32)}
    members = [network(config_of("chasppraunet", **fields, **GRID))]
    scan = hu(2, 32, 32)
    return members, {"image": scan}, slices(members, scan)


def of_patches():
    config = config_of("opconvnet:debug")
    assert config.data.preprocess.mode == "native"
    members = [network(config)]
    scan, places = hu(1, 40, 44), [(17, 17), (20, 25), (23, 19)]
    windows = np.stack([scan[0, y - 17 : y + 17, x - 17 : x + 17] for y, x in places])
    found = slices(members, scan)[0]
    return members, {"image": windows}, np.array([found[place] for place in places])


def of_names(config):
    member = network(config)
    image = hu(2, *config.data.cube.size)
    spine = RNG.integers(0, 2, image.shape).astype(np.uint8)
    given = {"image": image}
    if config.data.cube.spine_prior == "channel":
        given["spine"] = spine
    task = build_task(config)
    predict, _ = make_cube_predictor(task.class_probability, member.variables, batch_size=2)
    return [member], given, np.asarray(predict(cube(config, image), spine, STATS))


def of_outlines():
    config = config_of("phantom_outlines:debug", **{**GRID, "data.preprocess.spacing_mm": 2.0})
    member, task = network(config), build_task(config)
    image = hu(2, *config.data.cube.size)
    cubes = np.clip(np.rint(image), *config.data.preprocess.clamp_hu).astype(np.int16)
    predict, _ = make_outliner(task.probability, member.variables, batch_size=2)
    return [member], {"image": image}, np.asarray(predict(cubes, STATS))


SMALL_MRUNET = {
    "data.cube.size": (16, 16, 16),
    "model.widths": (8, 8),
    "model.depths": (1, 1),
    "model.expansions": (1, 2),
    "model.strides": (1, 2),
    "model.decoder_widths": (8, 4),
    "model.stem_width": 8,
}


def second():
    config = second_config("x", "channel")
    config.update_from_flattened_dict({**GRID, "loss.offset_weight": 0.1})
    return config


KINDS = {
    "unet": of_slices,
    "neighbours": lambda: of_slices(1),
    "chasppraunet": of_attention,
    "opconvnet": of_patches,
    "mrunet": lambda: of_names(config_of("mrunet:debug", **SMALL_MRUNET, **GRID)),
    "unet3d": lambda: of_names(second()),
    "outlines": of_outlines,
}

READER = """
import json, pathlib, sys
import jax, numpy as np
from jax import export
for folder in map(pathlib.Path, sys.argv[1:]):
    about = json.loads(next(folder.glob("*.json")).read_text())
    program = export.deserialize(bytearray((folder / about["program"]).read_bytes()))
    given = np.load(folder / "given.npz")
    arrays = [given[one["name"]].astype(one["dtype"]) for one in about["inputs"]]
    for one, array in zip(about["inputs"], arrays):
        assert list(array.shape[1:]) == one["shape"][1:], (folder, one, array.shape)
    np.savez(folder / "found.npz", **program.call(*arrays))
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"spinejax", "flax", "ml_collections", "safetensors", "nibabel"}, loaded
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return kind -> (folder with what a process without our code found, our prediction)."""
    root, ours = tmp_path_factory.mktemp("programs"), {}
    with numerics.fixed():
        for kind, make in KINDS.items():
            members, given, expected = make()
            program_file.write(root / kind, {"net": members}, card={"what": kind})
            np.savez(root / kind / "given.npz", **given)
            ours[kind] = root / kind, expected
    folders = [str(folder) for folder, _ in ours.values()]
    done = subprocess.run(
        [sys.executable, "-c", READER, *folders], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_our_code_finds_what_we_find(programs, kind):
    folder, expected = programs[kind]
    found = np.load(folder / "found.npz")
    about = json.loads((folder / "net.json").read_text())
    outputs = {one["name"]: one for one in about["outputs"]}
    assert set(found.files) == set(outputs)
    for name, one in outputs.items():
        assert list(found[name].shape[1:]) == one["shape"][1:] and found[name].dtype == one["dtype"]
    classes = found["probability"].shape[-1]
    if "classes" in outputs["probability"]:
        best = found["probability"].argmax(-1)
        names = [outputs["label"]["labels"][str(i)] for i in found["label"].ravel()]
        assert names == [outputs["probability"]["classes"][i] for i in best.ravel()]
        assert classes == labels.NUM_CLASSES
        assert ("offset" in outputs) == (kind == "unet3d") == (expected.shape[-1] > classes)
        if kind == "unet3d":
            np.testing.assert_allclose(found["offset"], expected[..., classes:], atol=2e-4)
        expected = expected[..., :classes]
    else:
        over = found["probability"] >= outputs["label"]["threshold"]
        np.testing.assert_array_equal(found["label"], over)
        assert expected.std() > 0
    np.testing.assert_allclose(found["probability"], expected, atol=2e-4)


@pytest.mark.parametrize("mode", ["resample", "isotropic", "resize"])
def test_the_steps_before_are_ours_by_scipy(mode):
    """With nothing but what the JSON says; see docs/programs.md."""
    name = "mrunet:debug" if mode == "isotropic" else "chasppraunet:debug"
    config = config_of(name, **{"data.preprocess.mode": mode, "data.preprocess.spacing_mm": 2.0})
    how = preprocess.from_config(config.data)
    spacing = np.array([0.9, 1.1, 2.6])
    scan = Volume(hu(14, 40, 30), np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    image = scan.array
    for one in program_file._before(how):
        if one["step"] == "smooth":
            sigma = one["sigma_mm"] / spacing
            image = ndimage.gaussian_filter(
                image, sigma, mode=one["edges"], truncate=one["truncate"]
            )
        elif one["step"] == "clip":
            image = np.clip(image, *one["range_hu"])
        else:
            kept = {"isotropic": []}.get(mode, [volume.PLANES[how.plane]])
            pixels = one.get("pixels") or [one["spacing_mm"]] * 3
            sides = (
                [
                    max(1, round(n * mm / one["spacing_mm"]))
                    for n, mm in zip(image.shape, spacing, strict=True)
                ]
                if "spacing_mm" in one
                else [0, *pixels]
            )
            factors = [
                1.0 if axis in kept else sides[axis] / n for axis, n in enumerate(image.shape)
            ]
            image = ndimage.zoom(image, factors, order=one["order"], mode="nearest", grid_mode=True)
    ours = np.concatenate([slab for _, slab, _ in preprocess.preprocess_slabs(scan, how)])
    assert ours.shape == image.shape
    assert np.abs(ours - image).max() <= 0.51


def test_other_runtimes_get_one_window_without_our_calling_convention(programs):
    """XLA itself compiles and runs the portable artifact."""
    folder, expected = programs["chasppraunet"]
    data = (folder / "net.mlirbc").read_bytes()
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        module = stablehlo.deserialize_portable_artifact(context, data)
        text = str(module)
    assert "custom_call" not in text
    client = get_backend("cpu")
    devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
    program = client.compile_and_load(text, devices)
    window = np.load(folder / "given.npz")["image"][:1]
    label, probability = (
        np.asarray(one[0])
        for one in program.execute_sharded(
            [jax.device_put(window)]
        ).disassemble_into_single_device_arrays()
    )
    np.testing.assert_allclose(probability, expected[:1], atol=2e-4)
    assert label.dtype == np.uint8


def test_networks_of_several_planes_become_several_programs(tmp_path):
    planes = ("sagittal", "axial", "axial")
    members = [
        network(tiny_config("x", **{"data.plane": plane, **GRID}), seed)
        for seed, plane in enumerate(planes)
    ]
    with numerics.fixed():
        paths = program_file.write(tmp_path, {SPINE: members}, card={})
    assert [path.name for path in paths] == ["spine-sagittal.json", "spine-axial.json"]
    found = [json.loads(path.read_text()) for path in paths]
    assert [one["averaged"] for one in found] == [1, 2]
    axes = [one["inputs"][0]["axes"] for one in found]
    assert axes == [["posterior", "superior"], ["left", "posterior"]]


@pytest.mark.parametrize("name", ["pcnn", "opconvnet:net=padbn"])
def test_what_has_no_windows_is_refused_before_anything_is_written(tmp_path, name):
    config = get_config(name)
    if name == "pcnn":
        words = "a run: model.name='apcnn' reads a whole scan at once and has no windows; give"
    else:
        config.model.rbm = 1
        words = "this run pretrained layer 1 of a PaDBN"
    fine = network(tiny_config("x", **GRID))
    with numerics.fixed(), pytest.raises(InputError, match=words):
        program_file.write(tmp_path, {"fine": [fine], "not": [network(config)]}, card={})
    assert not any(tmp_path.iterdir())


def with_network(name):
    """A config of a network, small where the packaged one has a small form."""
    if name in opconvnet.NETS:
        return get_config(f"opconvnet:net={name},debug")
    if name in ("resunet", "mobilenet"):  # no packaged config has them
        config = get_config("unet:debug" if name == "resunet" else "opconvnet:debug")
        config.model = ConfigDict({"name": name})
        return config
    return get_config(f"{name}:debug")


@pytest.mark.parametrize(
    "name", [name for name, one in MODELS.items() if one.LEARNS and name not in KINDS]
)
def test_every_network_takes_any_number_of_windows(name):
    """`write` has no way for a network that does not."""
    task = build_task(with_network(name))
    variables = jax.eval_shape(task.init, jax.random.key(0))

    def run(variables, image):
        return task.model.apply(variables, image, train=False)[0]

    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, *task.input_shape), "float32")
    exported = export.export(jax.jit(run), platforms=program_file.PLATFORMS)(variables, image)
    assert str(exported.out_avals[0].shape[0]) == "b"
