"""Blocks shared by the experiments: argument parsing, data, augmentation, optimiser, training.

Configs hold numbers and names only. Nothing here imports jax, so that a launcher can read a config
in milliseconds.
"""

from typing import Any

from ml_collections import ConfigDict


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parse `--config=configs/x.py:debug,fold=2` into typed values.

    `arg` is a comma-separated list of `name` (a flag set to True) or `name=value`; a value is read
    in the type of its default. An unknown name fails with the known ones listed.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f"config argument {name!r} is unknown; this config knows {sorted(defaults)}"
            )
        kind = type(defaults[name])
        if kind is bool:
            if equals and text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"config argument {name}={text!r} must be true or false")
            values[name] = text.lower() in ("true", "1") if equals else True
        else:
            try:
                values[name] = kind(text)
            except ValueError:
                raise ValueError(
                    f"config argument {name}={text!r} must be of type {kind.__name__}"
                ) from None
    return ConfigDict(values)


def data_block() -> ConfigDict:
    """Where scans come from, how they are split, preprocessed and cut into slices."""
    data = ConfigDict()
    # "verse": any layout of VerSe, or folders images/ and labels/; "phantom": synthetic scans are
    # rendered into the workdir first; "phantom_stream": training draws its own without end.
    data.source = "verse"
    data.root = ""
    data.labels = "verse"  # masks hold VerSe ids | "binary": any number above 0 is vertebra
    # "": all scans | "verse19" | "verse20": those of that edition of VerSe, which share 105 scans.
    data.edition = ""
    data.exclude_gl = False  # leave the sub-gl* scans out (their licence is stricter)
    # "auto" (the official split where the folders name it, else "ratio") | "official" | "ratio" |
    # "kfold"; always grouped by patient.
    data.split = "auto"
    data.test_fraction = 0.2
    data.val_fraction = 0.1  # of what is not test
    data.folds = 5
    data.fold = 0
    data.cache_dir = ""  # "": <workdir>/cache
    data.plane = "sagittal"  # "sagittal" | "coronal" | "axial"
    # "clamp": smooth, then clamp to clamp_hu (paper A, section 4.2) | "op_window": 0 outside
    # clamp_hu, then smooth each slice (paper B, section II.A).
    data.preprocess = ConfigDict()
    data.preprocess.intensity = "clamp"
    data.preprocess.smoothing_sigma_mm = 0.75  # of clamp
    data.preprocess.smoothing_sigma_px = 0.7  # of op_window, in a kernel of
    data.preprocess.smoothing_kernel_px = 3  # by 3 pixels
    data.preprocess.clamp_hu = (-1000.0, 800.0)
    # "resample": to spacing_mm in the plane, then crops of `size`; "resize": each whole slice
    # to `size`, as paper A words it; "native": the scan's own pixels, then crops; "isotropic": to
    # spacing_mm along all three axes, of cubes.
    data.preprocess.mode = "resample"
    data.preprocess.spacing_mm = 1.0
    data.size = (256, 256)
    # "hu" | "zscore" | "unit" | "sym" | "minmax_to_hu"
    data.normalise = "hu"
    # Patches of paper B, sections II.B and II.C; read by the task patch_classification only.
    data.patches = ConfigDict()
    data.patches.size = 32  # pixels a side
    data.patches.stride = 12  # pixels from patch to patch
    data.patches.label_rule = "majority"  # "majority" of the pixels | the "centre" pixel
    # "scan": validation has scans of its own | "patch": a share of all patches, as the paper has
    # it, which leaks.
    data.patches.split_unit = "scan"
    # Random under-sampling of background patches: "once" | anew each "epoch" | "none".
    data.patches.rus = "once"
    data.patches.rus_ratio = 1.0  # background patches to one of vertebra
    # Voxels of a cube; read by the task vertebra_recognition only, whose scans are resampled to
    # preprocess.spacing_mm along all axes (preprocess.mode = "isotropic").
    data.cube = ConfigDict()
    data.cube.size = (96, 96, 96)
    # What the network takes of an earlier one's mask of the spine: "none" | its box, "crop" | its
    # box and the mask as a second "channel".
    data.cube.spine_prior = "crop"
    # "channel": how often the mask that training makes in its place holds the top of the sacrum.
    data.cube.prior_sacrum = 0.3
    data.spine_free_fraction = 0.1  # share of training slices without any vertebra
    data.threads = 2  # Grain read threads
    data.prefetch = 4  # batches
    data.phantom = ConfigDict()
    data.phantom.cases = 12
    data.phantom.seed = 0
    data.phantom.min_spacing_mm = 0.3
    data.phantom.max_spacing_mm = 3.0
    data.phantom.min_extent_mm = 116.0  # of the height; both also of what a stream draws
    data.phantom.max_extent_mm = 400.0
    # Probabilities of variants, as in VerSe'20 (`spinejax.phantom.person.anatomy`); fractures are
    # relative to the usual number.
    data.phantom.rates = ConfigDict(
        dict(
            t13=0.025,
            l6=0.19,
            no_t12=0.036,
            no_l5=0.025,
            cervical_ribs=0.01,
            sacralised=0.08,
            fractures=1.0,
            scoliosis=0.12,
        )
    )
    # source=phantom_stream: training draws every sample anew on the device; the `cases` above are
    # written to validate and test only (0: neither).
    data.phantom.epoch_batches = 100  # that are called an epoch
    data.phantom.distractors = True  # other bones, organs, vessels, implants
    data.phantom.acquisition = True  # noise, blur, streaks, offsets of a scanner
    data.phantom.region = "any"  # that scans show: "any" | "cervical" | "thoracic" | "lumbar"
    data.phantom.label_cut = False  # vertebrae that the field of view cuts; VerSe leaves them out
    return data


def augment_block() -> ConfigDict:
    """Augmentation on the device (paper A, section 4.3.1: scaling, rotation, flips)."""
    return ConfigDict(
        dict(
            enabled=True,
            scale=(0.85, 1.15),
            rotation_deg=15.0,
            translation_px=0.0,
            # Left and right are mirrored with this probability, in coronal and axial slices; no
            # patient looks like any other mirror image.
            flip_probability=0.5,
            shift_hu=30.0,
            gain=0.1,
            noise_hu=20.0,
        )
    )


def optim_block() -> ConfigDict:
    """Adam at 0.001 (paper A, section 4.2)."""
    return ConfigDict(
        dict(
            name="adam",  # "adam" | "adamw" | "sgd"
            learning_rate=1e-3,
            momentum=0.9,  # of sgd
            weight_decay=0.0,
            schedule="cosine",  # "constant" | "cosine" | "step" | "exponential"
            warmup_steps=0,
            decay_every_epochs=50.0,  # of "step" and "exponential"
            decay_factor=0.1,
            clip_norm=1.0,  # 0: off
            accumulate_steps=1,
            ema_decay=0.0,  # 0: off
        )
    )


def train_block() -> ConfigDict:
    """Length, batch, precision, parallelism and housekeeping of a run."""
    return ConfigDict(
        dict(
            epochs=150.0,
            steps=0,  # > 0: overrides epochs
            batch_size=8,  # slices, or patches, over all devices
            eval_every_epochs=1.0,
            checkpoint_every_steps=0,  # 0: with every evaluation only
            best="dice",  # of validation: the checkpoint of highest "dice" | lowest "loss" is kept
            log_every_steps=10,
            pictures=4,  # overlay pictures written at each evaluation
            compute_dtype="float32",  # "float32" | "bfloat16"
            remat=False,
            # Folder of a run whose weights to begin with, of the same network; "": random ones.
            init_from="",
            parallel="pmap",  # "pmap" | "shard_map"
        )
    )


def predict_block() -> ConfigDict:
    """How a whole scan is predicted."""
    return ConfigDict(
        dict(
            batch_size=8,
            overlap=0.25,  # of neighbouring windows, share of `data.size`
            padding="zero",  # around slices, for patches: "zero" (empty) | "reflect"
            threshold=0.5,
            # Of the task vertebra_recognition: around the box of the mask; variants of the spine
            # that the decoder allows; leave vertebrae out that the scan cuts, as VerSe does.
            margin_mm=20.0,
            anomalies=("T13", "L6", "no T12", "no L5"),
            drop_cut=False,
            # And: the network also reads the scan on grids moved by parts of a voxel, this many
            # along each axis; vertebrae are told apart on the grid of all. n^3 times as many cubes.
            shifts=1,
            opening_mm=0.0,  # radius of the opening within slices; 0: off
            min_component_ml=1.0,  # smaller pieces are dropped
            fill_holes=False,
            drop_islands=False,  # drop pieces away from the line of the spine, such as hips
        )
    )


def base(name: str, model: dict[str, Any]) -> ConfigDict:
    """Return an experiment with every block at its default."""
    config = ConfigDict()
    config.name = name
    config.seed = 0
    config.task = "slice_segmentation"
    config.data = data_block()
    config.augment = augment_block()
    config.model = ConfigDict(model)
    # "dice_ce" | "dice" | "ce" | "focal" (gamma) | "tversky" (alpha weighs false positives)
    config.loss = ConfigDict(
        dict(
            name="dice_ce",
            dice_weight=1.0,
            ce_weight=1.0,
            gamma=2.0,
            alpha=0.3,
            # Above 0, a network of cubes also learns where each voxel's vertebra has its centre,
            # which parts vertebrae that touch; weight of the error in cm.
            offset_weight=0.0,
        )
    )
    config.optim = optim_block()
    config.train = train_block()
    config.predict = predict_block()
    return config
