"""All fields of a config, each stated once: default, allowed values, unit, meaning, tasks.

Defaults, checks, error messages, `docs/config.md` and `spinejax config` all come from `FIELDS`. A
config holds the fields that its task reads, and no others. The fields of a network come from its
module: `spinejax.models.fields` derives them from the types and the docstring of the class.
"""

import difflib
import json
import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from spinejax import label_schemes
from spinejax.errors import InputError, check_choice, shown
from spinejax.text_table import text_table

SLICES, PATCHES, CUBES, OUTLINES = TASKS = (
    "slice_segmentation",
    "patch_classification",
    "vertebra_recognition",
    "vertebra_outlines",
)
SECOND = "vertebrae"
"""Block of a pipeline's config that holds the whole config of the second network."""
THIRD = "outlines"
"""Role of the network that outlines the named vertebrae of a pipeline, and its folder in a run."""
FLIPS = ("left_right", "all")
"""Values of `augment.flip_axes`."""
OF_NETWORK = ("data.neighbours", "loss.auxiliary_weight")
"""Fields outside of the block `model` that belong to a network: what it sees beside the slice, and
the loss of logits that only it has."""
STREAM = "phantom_stream"
"""Value of `data.source` with which training draws its own phantoms."""


# Allowed values. Each class has `fits(value)`; its `str` completes "must be ...".


@dataclass(frozen=True, eq=False)
class Number:
    """A number from `low` to `high`; `above` excludes `low`, `below` excludes `high`.

    `whole` refuses fractions, but allows floats such as 100.0.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def fits(self, value: Any) -> bool:
        """Whether `value` is such a number."""
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and -math.inf < value < math.inf
            and (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
            and (not self.whole or value == round(value))
        )

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        high = f" and {'below' if self.below else 'at most'} {self.high:g}"
        return f"a {'whole ' * self.whole}number {low}{high * (self.high < math.inf)}"


LARGEST = 2**31 - 1
"""The largest number of jax's integers."""


@dataclass(frozen=True, eq=False)
class Whole:
    """A whole number from `low` to `high`; only odd numbers if `odd`."""

    low: int = 0
    high: int = LARGEST
    odd: bool = False

    def fits(self, value: Any) -> bool:
        """Whether `value` is such a number."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (not self.odd or value % 2 == 1)

    def __str__(self) -> str:
        high = "up" if self.high == LARGEST else f"to {self.high}"
        return f"a{'n odd' * self.odd} whole number from {self.low} {high}"


@dataclass(frozen=True, eq=False)
class Choice:
    """One of some words. `words` may be a dictionary that grows later."""

    words: Collection[str]

    def fits(self, value: Any) -> bool:
        """Whether `value` is one of the words."""
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        return " or ".join(repr(word) for word in self.words)


@dataclass(frozen=True, eq=False)
class Flag:
    """True or False."""

    def fits(self, value: Any) -> bool:
        """Whether `value` is one of them."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, eq=False)
class Text:
    """Any text."""

    def fits(self, value: Any) -> bool:
        """Whether `value` is text."""
        return isinstance(value, str)

    def __str__(self) -> str:
        return "text"


@dataclass(frozen=True, eq=False)
class Several:
    """A sequence whose items are all allowed: `count` of them, or from `least` to `most`."""

    item: "Allowed"
    count: int = 0
    least: int = 1
    most: int = 64

    def fits(self, value: Any) -> bool:
        """Whether `value` is such a sequence."""
        return (
            isinstance(value, list | tuple)
            and (len(value) == self.count if self.count else self.least <= len(value) <= self.most)
            and all(map(self.item.fits, value))
        )

    def __str__(self) -> str:
        return (
            f"a sequence of {self.count or f'{self.least} to {self.most}'} values, each {self.item}"
        )


@dataclass(frozen=True, eq=False)
class Range:
    """(low, high), two allowed items with low <= high; `strict` refuses low = high."""

    item: Number | Whole
    strict: bool = False

    def fits(self, value: Any) -> bool:
        """Whether `value` is such a pair."""
        if not Several(self.item, count=2).fits(value):
            return False
        return value[0] < value[1] if self.strict else value[0] <= value[1]

    def __str__(self) -> str:
        return f"(low, high) with low {'<' if self.strict else '<='} high, each {self.item}"


Allowed = Number | Whole | Choice | Flag | Text | Several | Range

_SAME = object()


@dataclass(frozen=True, eq=False)
class Field:
    """One field of a config.

    Attributes:
        path: dotted, as on the command line.
        default: its value unless a config sets it.
        allowed: which values the field may have.
        meaning: one sentence or two.
        unit: of the value; "" for none.
        tasks: those that have the field. A path whose tasks differ has several entries.
        free: whether the field may change between two starts of a run, because no parameter
            depends on it.
        before: the value in runs that lack the field, if not the default.
    """

    path: str
    default: Any
    allowed: Allowed
    meaning: str
    unit: str = ""
    tasks: Collection[str] = TASKS
    free: bool = False
    before: Any = _SAME

    @property
    def missing(self) -> Any:
        """The value that a run without the field had."""
        return self.default if self.before is _SAME else self.before

    def check(self, value: Any, path: str = "") -> None:
        """Raise InputError unless `value` is allowed; `path` is how the message names the field."""
        if self.allowed.fits(value):
            return
        path = path or self.path
        allowed, reason = self.allowed, ""
        if isinstance(allowed, Whole) and isinstance(value, int) and value > allowed.high:
            raise InputError(f"{path}={shown(value)} must be at most {allowed.high}")
        if isinstance(allowed, Several) and isinstance(value, list | tuple):
            wrong = [item for item in value if not allowed.item.fits(item)]
            if isinstance(allowed.item, Choice) and wrong:
                allowed, value = allowed.item, wrong[0]
        if isinstance(allowed, Choice):
            if isinstance(value, str) and len(allowed.words) > 1:
                check_choice(path, value, allowed.words)
            reason = f": {self.meaning}"
        raise InputError(f"{path}={shown(value)} must be {allowed}{reason}")


def _rates() -> Iterator[Field]:
    share = Number(0, 1)
    for name, default, allowed, meaning in (
        ("t13", 0.025, share, "a 13th thoracic vertebra"),
        ("l6", 0.19, share, "a sixth lumbar vertebra"),
        ("no_t12", 0.036, share, "a missing 12th thoracic vertebra"),
        ("no_l5", 0.025, share, "a missing fifth lumbar vertebra"),
        ("cervical_ribs", 0.01, share, "ribs at C7"),
        ("sacralised", 0.08, share, "a last lumbar vertebra that is fused with the sacrum"),
        ("fractures", 1.0, Number(0, 1000), ""),
        ("scoliosis", 0.12, share, "scoliosis"),
    ):
        says = f"Probability of {meaning}; the default is VerSe'20's."
        if not meaning:
            says = "Number of fractured vertebrae, as a multiple of VerSe'20's."
        yield Field(f"data.phantom.rates.{name}", default, allowed, says)


_WINDOWED = (SLICES, CUBES)
_MASKS = (SLICES, PATCHES)
_VOLUMES = (CUBES, OUTLINES)
_SHARE = Number(0, 1)
_WEIGHT = Number(0, 1e6)

FIELDS: tuple[Field, ...] = (
    Field("name", "", Text(), "Name of the experiment, for reports."),
    Field("seed", 0, Whole(), "Seed of the first weights, and of the choice and order of samples."),
    Field(
        "task", SLICES, Choice(TASKS),
        meaning="What the network learns: to segment the spine in slices, to classify patches, to "
        "name the vertebra of every voxel in cubes, or to outline one vertebra in its own cube.",
    ),
    # Where scans come from.
    Field(
        "data.source", "verse", Choice(("verse", "phantom", STREAM)),
        meaning="'verse': the folder data.root. 'phantom': synthetic scans, written into the "
        "workdir first. 'phantom_stream': training draws every sample anew on the device.",
    ),
    Field(
        "data.root", "", Text(), free=True,
        meaning="Folder of the scans: VerSe in any layout, or the folders images/ and labels/.",
    ),
    Field(
        "data.labels", "verse", Choice(label_schemes.NAMES), tasks=_MASKS,
        meaning="Numbers in the masks: VerSe's ids, those of another program, or with 'binary' any "
        "number above 0 for a vertebra.",
    ),
    Field(
        "data.labels", "verse", Choice(tuple(label_schemes.SCHEMES)), tasks=_VOLUMES,
        meaning="Numbers in the masks: VerSe's ids, or those of another program.",
    ),
    Field(
        "data.edition", "", Choice(("", "verse19", "verse20")),
        meaning="Edition of VerSe whose scans are used; '': all. The editions share 105 scans.",
    ),
    Field(
        "data.exclude_gl", False, Flag(),
        meaning="Leave out the scans sub-gl*, whose licence is stricter.",
    ),
    Field(
        "data.split", "auto", Choice(("auto", "official", "ratio", "kfold")),
        meaning="How patients are split into training, validation and test set. 'auto': 'official' "
        "where the folders name the official split, else 'ratio'.",
    ),
    Field(
        "data.test_fraction", 0.2, Number(0, 1, below=True),
        meaning="Share of the patients in the test set, for the split 'ratio'; 0: no test set.",
    ),
    Field(
        "data.val_fraction", 0.1, Number(0, 1, below=True),
        meaning="Share of the remaining patients in the validation set; 0: none, and training "
        "keeps its latest checkpoint only.",
    ),
    Field(
        "data.split_seed", 0, Whole(),
        meaning="Seed of the split of scans, or of patches, apart from 'seed', so that runs with "
        "other seeds see the same split.",
    ),
    Field("data.folds", 5, Whole(2, 1000), "Number of folds, for the split 'kfold'."),
    Field(
        "data.fold", 0, Whole(0, 999),
        meaning="Number of the fold that is the test set, for the split 'kfold'.",
    ),
    Field(
        "data.cache_dir", "", Text(), free=True,
        meaning="Folder of preprocessed scans, which runs may share; '': the folder cache in the "
        "workdir. It stays when a start fails: its entries are named by their content, and the "
        "next start uses them.",
    ),
    # Preprocessing.
    Field(
        "data.plane", "sagittal", Choice(("sagittal", "coronal", "axial")), tasks=_MASKS,
        meaning="Plane of the slices.",
    ),
    Field(
        "data.plane", "sagittal", Choice(("sagittal",)), tasks=_VOLUMES,
        meaning="Plane of the slices in which cubes are stored.",
    ),
    Field(
        "data.preprocess.intensity", "clamp", Choice(("clamp", "op_window")), tasks=_MASKS,
        meaning="'clamp': smooth, then clamp to clamp_hu (paper A, section 4.2). 'op_window': set "
        "to 0 what lies outside clamp_hu, then smooth each slice (paper B, section II.A).",
    ),
    Field(
        "data.preprocess.intensity", "clamp", Choice(("clamp",)), tasks=_VOLUMES,
        meaning="Smooth, then clamp to clamp_hu (paper A, section 4.2).",
    ),
    Field(
        "data.preprocess.smoothing_sigma_mm", 0.75, Number(0, 50, below=True), unit="mm",
        meaning="Standard deviation of the smoothing of 'clamp'.",
    ),
    Field(
        "data.preprocess.smoothing_sigma_px", 0.7, Number(0, 50, below=True), unit="pixels",
        tasks=_MASKS,
        meaning="Standard deviation of the smoothing of 'op_window'.",
    ),
    Field(
        "data.preprocess.smoothing_kernel_px", 3, Whole(1, 301, odd=True), unit="pixels",
        tasks=_MASKS,
        meaning="Side of the kernel of the smoothing of 'op_window'.",
    ),
    Field(
        "data.preprocess.clamp_hu", (-1000.0, 800.0),
        Range(Number(-32768, 32767, whole=True), strict=True), unit="HU",
        meaning="Range of intensities that preprocessing keeps.",
    ),
    Field(
        "data.preprocess.mode", "resample", Choice(("resample", "resize", "native")), tasks=_MASKS,
        meaning="'resample': to spacing_mm in the plane, then crops of data.size. 'resize': each "
        "whole slice to data.size, as paper A words it. 'native': the scan's own pixels, then "
        "crops.",
    ),
    Field(
        "data.preprocess.mode", "isotropic", Choice(("isotropic",)), tasks=_VOLUMES,
        meaning="Resample to spacing_mm along all three axes.",
    ),
    Field(
        "data.preprocess.spacing_mm", 1.0, Number(0.05, 50), unit="mm",
        meaning="Spacing of pixels or voxels after resampling.",
    ),
    Field(
        "data.size", (256, 256), Several(Whole(1, 4096), 2), unit="pixels", tasks=_MASKS,
        meaning="Rows and columns of a slice or crop.",
    ),
    Field(
        "data.neighbours", 0, Whole(0, 16), unit="slices", tasks=(SLICES,),
        meaning="Slices on each side that the network also sees, as channels, so that n gives "
        "2 n + 1 of them. The label is that of the slice in the middle. Beyond the scan's end the "
        "last slice is repeated.",
    ),
    Field(
        "data.normalise", "hu", Choice(("hu", "zscore", "unit", "sym", "minmax_to_hu")),
        meaning="'hu': preprocessed HU as they are. 'zscore': zero mean and unit variance of the "
        "scan. 'unit': 0 to 1. 'sym': -1 to 1. 'minmax_to_hu': the scan's range to -1000 to 800.",
    ),
    Field(
        "data.spine_free_fraction", 0.1, _SHARE, tasks=_MASKS,
        meaning="Share of training slices without any vertebra.",
    ),
    # Patches (paper B, sections II.B and II.C).
    Field(
        "data.patches.size", 32, Whole(1, 4096), unit="pixels", tasks=(PATCHES,),
        meaning="Side of a patch.",
    ),
    Field(
        "data.patches.stride", 12, Whole(1, 4096), unit="pixels", tasks=(PATCHES,),
        meaning="Distance between neighbouring patches.",
    ),
    Field(
        "data.patches.label_rule", "majority", Choice(("majority", "centre", "redundant")),
        tasks=(PATCHES,),
        meaning="Label of a patch: the label of most of its pixels, or of its central pixel. "
        "'redundant': one of four classes, which part the central pixel's label by its distance to "
        "the bone's edge; prediction joins them again.",
    ),
    Field(
        "data.redundant.edge_mm", 2.0, Number(0, 1000), unit="mm", tasks=(PATCHES,),
        meaning="Largest distance to background of a pixel of the class edge, with 'redundant'; "
        "farther ones are interior.",
    ),
    Field(
        "data.redundant.near_mm", 5.0, Number(0, 1000), unit="mm", tasks=(PATCHES,),
        meaning="Largest distance to bone of a pixel of the class near background, with "
        "'redundant'; farther ones are deep background.",
    ),
    Field(
        "data.patches.split_unit", "scan", Choice(("scan", "patch")), tasks=(PATCHES,),
        meaning="Validation set. 'scan': patches of other scans. 'patch': a share of all patches, "
        "as in the paper; this leaks, because patches overlap.",
    ),
    Field(
        "data.patches.rus", "once", Choice(("once", "epoch", "none")), tasks=(PATCHES,),
        meaning="Random under-sampling of background patches: once, anew in each epoch, or none.",
    ),
    Field(
        "data.patches.rus_ratio", 1.0, Number(0, 1e6, above=True), tasks=(PATCHES,),
        meaning="Number of background patches for each vertebra patch.",
    ),
    # Cubes.
    Field(
        "data.cube.size", (96, 96, 96), Several(Whole(1, 1024), 3), unit="voxels", tasks=_VOLUMES,
        meaning="Sides of a cube: left, back, up.",
    ),
    Field(
        "data.cube.spine_prior", "crop", Choice(("none", "crop", "channel")), tasks=(CUBES,),
        meaning="How the network uses an earlier network's mask of the spine: not at all, its box "
        "only, or its box and the mask as a second channel.",
    ),
    Field(
        "data.cube.prior_sacrum", 0.3, Number(0, 0.75), tasks=(CUBES,), before=0.0,
        meaning="Share of training masks that include the top of the sacrum, with 'channel'.",
    ),
    Field(
        "data.cube.shift_mm", (24.0, -4.0), Several(Number(-500, 500), 2), unit="mm",
        tasks=(OUTLINES,),
        meaning="Shift of the cube's centre from the centre of the vertebral body: back, up. The "
        "processes reach further back and down than the body reaches forward and up.",
    ),
    Field(
        "data.cube.jitter_mm", 3.0, Number(0, 100), unit="mm", tasks=(OUTLINES,),
        meaning="Standard deviation, along each axis, of the error of the body's centre in "
        "training; the network that names vertebrae errs, too.",
    ),
    Field(
        "data.threads", -1, Whole(-1, 256), free=True,
        meaning="Threads that read samples, in each worker if there are workers; -1: one for each "
        "core, at most 16, shared among the workers; 0: none, and the training itself reads.",
    ),
    Field(
        "data.prefetch", 4, Whole(0, 1024), free=True,
        meaning="Batches that are read ahead, at least one for each thread; 0: none, and the "
        "training itself reads.",
    ),
    Field(
        "data.workers", 0, Whole(0, 256), free=True,
        meaning="Processes that read training samples; 0: the threads of the training process.",
    ),
    # Phantoms.
    Field(
        "data.phantom.cases", 12, Whole(0, 100_000),
        meaning="Number of phantoms written as scans; 'phantom_stream' only validates and tests on "
        "them.",
    ),
    Field("data.phantom.seed", 0, Whole(), "Seed of the phantoms that are written."),
    Field("data.phantom.min_spacing_mm", 0.3, Number(0.1, 10), "Finest voxel size.", unit="mm"),
    Field("data.phantom.max_spacing_mm", 3.0, Number(0.1, 10), "Coarsest voxel size.", unit="mm"),
    Field(
        "data.phantom.min_extent_mm", 116.0, Number(0, 2000, above=True), unit="mm",
        meaning="Smallest height of a scan.",
    ),
    Field(
        "data.phantom.max_extent_mm", 400.0, Number(80, 2000), unit="mm",
        meaning="Longest side of a scan.",
    ),
    *_rates(),
    Field(
        "data.phantom.epoch_batches", 100, Whole(1, 10**6),
        meaning="Number of batches in an epoch of 'phantom_stream'.",
    ),
    Field(
        "data.phantom.updates_per_slice", 8, Whole(1, 10**6),
        meaning="Number of updates in a row that cut patches from the same slices of "
        "'phantom_stream'. With more, training draws less often, and batches are more alike.",
    ),
    Field(
        "data.phantom.distractors", True, Flag(),
        meaning="Draw other bones, organs, vessels and implants.",
    ),
    Field("data.phantom.acquisition", True, Flag(), "Add noise, blur, streaks and offsets."),
    Field(
        "data.phantom.region", "any", Choice(("any", "cervical", "thoracic", "lumbar")),
        meaning="Part of the spine that scans show.",
    ),
    Field(
        "data.phantom.label_cut", False, Flag(),
        meaning="Label vertebrae that the scan's edge cuts; VerSe does not.",
    ),
    # Augmentation (paper A, section 4.3.1: scaling, rotation, flips).
    Field(
        "augment.geometry", True, Flag(),
        meaning="Scale, turn, shift and mirror training samples at random.",
    ),
    Field("augment.intensity", True, Flag(), "Change their intensities at random."),
    Field(
        "augment.scale", (0.85, 1.15), Range(Number(0.05, 20)),
        meaning="Range of the magnification.",
    ),
    Field(
        "augment.rotation_deg", 15.0, Number(0, 180), unit="degrees",
        meaning="Largest rotation, either way.",
    ),
    Field(
        "augment.translation_px", 0.0, Number(0, 4096), unit="pixels",
        meaning="Largest shift along each axis, either way.",
    ),
    Field(
        "augment.flip_probability", 0.5, _SHARE,
        meaning="Probability that an axis is mirrored.",
    ),
    Field(
        "augment.flip_axes", "left_right", Choice(FLIPS), tasks=_MASKS,
        meaning="'left_right': only left and right are mirrored, so sagittal slices never are. "
        "'all': both axes of a slice are, which turns patients upside down and, in sagittal "
        "slices, back to front.",
    ),
    Field(
        "augment.flip_axes", "left_right", Choice(("left_right",)), tasks=_VOLUMES,
        meaning="Only left and right are mirrored, because names follow from what is up and what "
        "is front.",
    ),
    Field(
        "augment.shift_hu", 30.0, Number(0, 10_000), unit="HU",
        meaning="Largest offset of all intensities, either way.",
    ),
    Field(
        "augment.gain", 0.1, _SHARE,
        meaning="Intensities are multiplied by 1 plus or minus at most this.",
    ),
    Field(
        "augment.noise_hu", 20.0, Number(0, 10_000), unit="HU",
        meaning="Largest standard deviation of the added noise.",
    ),
    # Loss.
    Field(
        "loss.name", "dice_ce", Choice(("dice_ce", "dice", "ce", "focal", "tversky")),
        meaning="Loss; 'dice_ce' is the weighted sum of Dice and cross entropy.",
    ),
    Field("loss.dice_weight", 1.0, _WEIGHT, "Weight of Dice in 'dice_ce'."),
    Field("loss.ce_weight", 1.0, _WEIGHT, "Weight of cross entropy in 'dice_ce'."),
    Field("loss.gamma", 2.0, Number(0, 100), "Exponent of 'focal'."),
    Field("loss.alpha", 0.3, _SHARE, "Weight of false positives in 'tversky'."),
    Field(
        "loss.offset_weight", 0.0, _WEIGHT, unit="1/cm", tasks=(CUBES,),
        meaning="Weight of the error of the predicted offset to the vertebra's centre; 0: the "
        "network predicts no offsets. Offsets part vertebrae that touch.",
    ),
    Field(
        "loss.auxiliary_weight", 0.0, _WEIGHT, tasks=_WINDOWED,
        meaning="Weight of the cross entropy of a network's auxiliary logits: dtvnet predicts the "
        "mask's contour, spineparsenet the class of each voxel before its graph. 0: without.",
    ),
    # Optimiser (the defaults are paper A's, section 4.2).
    Field("optim.name", "adam", Choice(("adam", "adamw", "sgd")), "Optimiser."),
    Field("optim.learning_rate", 1e-3, Number(1e-12, 1e6), "Learning rate after the warm-up, for "
          "a batch of base_batch_size where scale_rate is set."),
    Field("optim.momentum", 0.9, _SHARE, "Momentum of 'sgd'."),
    Field(
        "optim.weight_decay", 0.0, _WEIGHT,
        meaning="Decay of kernels: L2 with 'adam' and 'sgd', decoupled with 'adamw'.",
    ),
    Field(
        "optim.schedule", "cosine", Choice(("constant", "cosine", "step", "exponential")),
        meaning="Schedule of the learning rate after the warm-up.",
    ),
    Field("optim.warmup_steps", 0, Whole(), "Steps over which the learning rate first rises."),
    Field(
        "optim.scale_rate", "none", Choice(("none", "linear", "sqrt")),
        meaning="How the learning rate follows the batch of all devices: 'linear' multiplies it by "
        "batch / base_batch_size (Goyal et al. 2017, section 2.1), 'sqrt' by the square root of it "
        "(Krizhevsky 2014, section 5; for Adam Malladi et al. 2022).",
    ),
    Field(
        "optim.base_batch_size", 0, Whole(0, 65536), unit="samples",
        meaning="Batch that learning_rate is meant for; 'linear' and 'sqrt' need it.",
    ),
    Field(
        "optim.decay_every_epochs", 50.0, Number(0, 1e6, above=True), unit="epochs",
        meaning="Period in which 'step' and 'exponential' multiply the rate by decay_factor.",
    ),
    Field(
        "optim.decay_factor", 0.1, Number(0, 1, above=True),
        meaning="Factor of 'step' and 'exponential'.",
    ),
    Field("optim.clip_norm", 1.0, _WEIGHT, "Largest norm of the gradient; 0: no limit."),
    Field("optim.accumulate_steps", 1, Whole(1, 65536), "Parts of a batch, processed one by one."),
    Field(
        "optim.ema_decay", 0.0, Number(0, 0.999999),
        meaning="Decay of the moving average of the parameters, used to predict; 0: no average.",
    ),
    # Training.
    Field("train.epochs", 150.0, Number(0, 1e6), "Length of the training.", unit="epochs"),
    Field(
        "train.steps", 0, Whole(), unit="steps",
        meaning="Length of the training; 0: train.epochs sets the length.",
    ),
    Field(
        "train.batch_size", 8, Whole(1, 65536),
        meaning="Number of samples in an update, over all devices, unless batch_size_per_device "
        "is set.",
    ),
    Field(
        "train.batch_size_per_device", 0, Whole(0, 65536), free=True,
        meaning="Number of samples in an update on each device; it sets train.batch_size when a "
        "run begins, and a resumed run keeps that on any number of devices. 0: train.batch_size is "
        "divided among the devices.",
    ),
    Field(
        "train.eval_every_epochs", 1.0, Number(0, 1e6, above=True), unit="epochs",
        meaning="Period of the evaluations.",
    ),
    Field(
        "train.eval_every_steps", 0, Whole(), unit="steps",
        meaning="Period of the evaluations; 0: train.eval_every_epochs sets it.",
    ),
    Field(
        "train.checkpoint_every_steps", 0, Whole(), unit="steps", free=True,
        meaning="Period of further checkpoints; 0: one with every evaluation only.",
    ),
    Field(
        "train.best", "dice", Choice(("dice", "loss")),
        meaning="The best checkpoint has the highest validation Dice, or the lowest validation "
        "loss.",
    ),
    Field(
        "train.patience", 0, Whole(), unit="evaluations",
        meaning="Training ends after so many evaluations in a row without a better one, by "
        "train.best; 0: it runs to its end.",
    ),
    Field(
        "train.log_every_steps", 10, Whole(1), unit="steps", free=True,
        meaning="Period of the log lines. Metrics stay on the device until a line, an evaluation "
        "or a save.",
    ),
    Field(
        "train.steps_per_call", 1, Whole(1, 1024), unit="steps", free=True,
        meaning="The most updates in one call of a GPU or TPU; more than 1 helps a network whose "
        "update takes a few milliseconds or less.",
    ),
    Field(
        "train.profile_steps", (0, 0), Several(Whole(), 2), unit="steps", free=True,
        meaning="First and last step of a profile for TensorBoard and Perfetto, in profile/ of the "
        "run; 0, 0: none.",
    ),
    Field(
        "train.pictures", 4, Whole(0, 1000), free=True,
        meaning="Number of pictures that each evaluation writes.",
    ),
    Field(
        "train.trackers", (), Several(Choice(("mlflow", "wandb")), least=0, most=2), free=True,
        meaning="Programs beside TensorBoard that get the metrics, in the folder of the run: "
        "MLflow, Weights & Biases.",
    ),
    Field(
        "train.compute_dtype", "float32", Choice(("float32", "bfloat16")),
        meaning="Precision of the computation; parameters and losses are float32.",
    ),
    Field("train.remat", False, Flag(), "Recompute in the backward pass, to save memory."),
    Field(
        "train.init_partly", False, Flag(),
        meaning="The model of init_from may be another network, such as one with another last "
        "layer or other input channels: arrays of the same name and shape are taken, the others "
        "are random and listed.",
    ),
    Field(
        "train.init_from", "", Text(),
        meaning="Model with the same network, whose weights are the initial weights: phantom, the "
        "packaged one; FILE.spinejax; or the folder of a run. '': random weights.",
    ),
    Field(
        "train.parallel", "auto", Choice(("auto", "pmap", "shard_map")), free=True,
        meaning="How devices share a batch; auto: pmap in one process, shard_map in several. Both "
        "run the same program.",
    ),
    # Prediction of whole scans.
    Field(
        "predict.batch_size", 8, Whole(1, 1024), free=True,
        meaning="Number of windows in a call of the network.",
    ),
    Field(
        "predict.overlap", 0.25, Number(0, 0.95), tasks=_WINDOWED, free=True,
        meaning="Share of a window that its neighbour also covers.",
    ),
    Field(
        "predict.padding", "zero", Choice(("zero", "reflect")), tasks=(PATCHES,), free=True,
        meaning="Pixels around a slice: empty, or its mirror image.",
    ),
    Field(
        "predict.search", "full", Choice(("full", "coarse")), tasks=(SLICES,), free=True,
        meaning="'full': every slice of the scan is read. 'coarse': the scan is resampled to "
        "spacing_mm along all axes, slices 12 mm apart show where the spine is, and only windows "
        "that touch its surroundings are read.",
    ),
    Field(
        "predict.threshold", 0.5, _SHARE, tasks=(*_MASKS, OUTLINES), free=True,
        meaning="Pixels or voxels of at least this probability are vertebra.",
    ),
    Field(
        "predict.opening_mm", 0.0, Number(0, 50), unit="mm", tasks=_MASKS, free=True,
        meaning="Radius of the morphological opening within slices; 0: none.",
    ),
    Field(
        "predict.min_component_ml", 1.0, Number(0, 1e6), unit="ml", tasks=_MASKS, free=True,
        meaning="Smaller pieces are dropped.",
    ),
    Field("predict.fill_holes", False, Flag(), "Fill cavities.", tasks=_MASKS, free=True),
    Field(
        "predict.drop_islands", False, Flag(), tasks=_MASKS, free=True,
        meaning="Drop pieces away from the line of the spine, such as hips.",
    ),
    Field(
        "predict.margin_mm", 20.0, Number(0, 2000), unit="mm", tasks=(CUBES,), free=True,
        meaning="Margin around the box of the spine's mask.",
    ),
    Field(
        "predict.anomalies", ("T13", "L6", "no T12", "no L5"),
        Several(Choice(("T13", "L6", "no T12", "no L5")), least=0), tasks=(CUBES,), free=True,
        meaning="Variants of the spine that the decoder allows.",
    ),
    Field(
        "predict.name_weight", 0.7, Number(0, 1, above=True), tasks=(CUBES,), free=True,
        meaning="Weight of the network's evidence for names; `spinejax calibrate` fits it.",
    ),
    Field(
        "predict.level_error", 0.0, Number(0, 1, below=True), tasks=(CUBES,), free=True,
        meaning="Probability that the network names all vertebrae of a scan too high or too low; "
        "`spinejax calibrate` fits it. 0: the probabilities of names are not calibrated.",
    ),
    Field(
        "predict.drop_cut", False, Flag(), tasks=(CUBES,), free=True,
        meaning="Leave out vertebrae that the scan's edge cuts, as VerSe does.",
    ),
    Field(
        "predict.shifts", 1, Whole(1, 8), tasks=(CUBES,), free=True,
        meaning="Grids along each axis, shifted by parts of a voxel, that read the scan; n takes "
        "n^3 times as long.",
    ),
)  # fmt: skip


def fields(task: str) -> dict[str, Field]:
    """Return the fields of a task by path, without those of its network.

    Raises:
        InputError: there is no such task.
    """
    check_choice("task", task, TASKS)
    return {field.path: field for field in FIELDS if task in field.tasks}


def defaults(task: str = SLICES) -> dict[str, Any]:
    """Return the nested blocks of a task's config at their defaults, without `model`."""
    return nested({**{p: f.default for p, f in fields(task).items()}, "task": task})


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": value}} of {"a.b": value}; the reverse of `flatten`."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        *blocks, name = path.split(".")
        block = result
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = value
    return result


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of nested mappings."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as JSON holds it: nested dicts, sequences as lists."""
    return json.loads(config.to_json())


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested fields of a run, completed by the fields that it lacks."""
    config = dict(config)
    if isinstance(second := config.pop(SECOND, None), Mapping):
        config[SECOND] = complete(second)
    if config.get("task") in TASKS:
        flat = flatten(config)
        if (enabled := flat.pop(_ENABLED, None)) is not None:
            flat = dict.fromkeys(_ENABLES, enabled) | flat
        if "seed" in flat:
            flat.setdefault("data.split_seed", flat["seed"])
        known = {path: field.missing for path, field in fields(config["task"]).items()}
        return nested(known | flat)
    return config


_ENABLED, _ENABLES = "augment.enabled", ("augment.geometry", "augment.intensity")
"""A field of earlier runs, and the two that it has become. Their splits had the run's seed."""


def batch_size(train: Mapping[str, Any] | ConfigDict, devices: int) -> int:
    """Return the number of samples in an update over all devices, of a run that begins.

    Args:
        train: block of a config. `batch_size_per_device` wins over `batch_size`.
        devices: number of devices of all processes.
    """
    return train["batch_size_per_device"] * devices or train["batch_size"]


def block(name: str) -> dict[str, Field]:
    """Return the fields of one block in any task, e.g. "loss", by their last names."""
    within = [field for field in FIELDS if field.path.rpartition(".")[0] == name]
    return {field.path.rpartition(".")[2]: field for field in within}


def check_value(path: str, value: Any) -> None:
    """Raise InputError unless some task allows this value of a field."""
    known = [field for field in FIELDS if field.path == path]
    if not any(field.allowed.fits(value) for field in known):
        known[0].check(value)


def choices(path: str) -> tuple[str, ...]:
    """Return the words that a field may have in any task."""
    words: dict[str, None] = {}
    for field in FIELDS:
        allowed = field.allowed.item if isinstance(field.allowed, Several) else field.allowed
        if field.path == path and isinstance(allowed, Choice):
            words |= dict.fromkeys(allowed.words)
    return tuple(words)


def is_free(path: str) -> bool:
    """Whether a field of any network may change between two starts of a run."""
    path = path.removeprefix(f"{SECOND}.")
    return any(field.free for field in FIELDS if field.path == path)


def check(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> None:
    """Refuse a config with a missing or unknown field, or a value that is not allowed.

    `spinejax.models.check` checks the values of `model`. Messages put `prefix` before field names.

    Raises:
        InputError: names the field, its value, what is allowed, and the closest names.
    """
    blocks = dict(config.items())
    second = blocks.pop(SECOND, None)
    flat = flatten(blocks)
    known = fields(flat.get("task", ""))
    for path, value in flat.items():
        if path not in known and not path.startswith("model."):
            model = {key: None for key in flat if key.startswith("model.")}
            raise InputError(unknown({**known, **model}, path, prefix))
        if path in known:
            known[path].check(value, prefix + path)
    for path in (*known, "model.name"):
        if path not in flat:
            raise InputError(
                f"the config has no {prefix}{path}, which task={flat['task']} needs; begin with "
                "`base` of configs/common.py for this task"
            )
    _check_together(flat, prefix)
    if second is not None:
        task = second.get("task") if isinstance(second, Mapping | ConfigDict) else None
        if flat["task"] == CUBES or task != CUBES:
            raise InputError(
                f"task={flat['task']} with {SECOND}.task={task}: a pipeline segments the spine "
                f"first; its second task is {CUBES}"
            )
        check(second, f"{prefix}{SECOND}.")


def _check_together(flat: Mapping[str, Any], prefix: str) -> None:
    """Refuse values that are allowed, but not together."""
    if not flat["train.steps"] and not flat["train.epochs"]:
        raise InputError(
            f"{prefix}train.epochs and {prefix}train.steps are both 0; set one of them"
        )
    begin, end = flat["train.profile_steps"]
    if begin > end or (end and not begin):
        raise InputError(
            f"{prefix}train.profile_steps={begin}, {end} must be the first and the last step, from "
            "1 on, or 0, 0 for no profile"
        )
    rule = flat["optim.scale_rate"]
    if rule != "none" and not flat["optim.base_batch_size"]:
        raise InputError(
            f"{prefix}optim.scale_rate={rule} needs {prefix}optim.base_batch_size, the batch that "
            "optim.learning_rate is meant for; set it, or optim.scale_rate=none"
        )
    for low in ("data.phantom.min_spacing_mm", "data.phantom.min_extent_mm"):
        high = low.replace("min", "max")
        if flat[low] > flat[high]:
            raise InputError(f"{prefix}{low}={flat[low]!r} must be at most {high}={flat[high]!r}")
    if flat["data.split"] == "kfold" and flat["data.fold"] >= flat["data.folds"]:
        raise InputError(
            f"{prefix}data.fold={flat['data.fold']} must be below data.folds={flat['data.folds']}"
        )


def check_block(
    values: Mapping[str, Any], known: Mapping[str, Field], block: str, prefix: str = ""
) -> None:
    """Refuse unknown fields and values of one block, e.g. "model"; `known` are its fields by name.

    Raises:
        InputError: as `check`.
    """
    for name, value in values.items():
        if name not in known:
            flat = {f"{block}.{other}": None for other in known}
            raise InputError(unknown(flat, f"{block}.{name}", prefix))
        known[name].check(value, f"{prefix}{block}.{name}")


def unknown(config: Mapping[str, Any] | ConfigDict, path: str, prefix: str = "") -> str:
    """Return the message that a config has no field `path`, with the closest fields it has."""
    close = nearest(config, path)
    hint = f"did you mean {' or '.join(prefix + p for p in close)}?" if close else ""
    hint = hint or "see `spinejax config` for the fields"
    return f"the config has no field {prefix}{path}; {hint}"


def nearest(config: Mapping[str, Any] | ConfigDict, path: str, count: int = 3) -> list[str]:
    """Return the full paths of the fields of a config that are closest to an unknown path.

    The last word counts, or its initials ("lr" is "learning_rate"); a field of the same block
    comes first.
    """
    block, _, word = path.rpartition(".")
    found = []
    for candidate in flatten(config):
        its_block, _, name = candidate.rpartition(".")
        likeness = difflib.SequenceMatcher(None, word.lower(), name).ratio()
        if word.lower() == "".join(part[:1] for part in name.split("_")) and len(word) > 1:
            likeness = 0.9
        elif len(word) > 2 and word.lower() in name.split("_"):
            likeness = max(likeness, 0.75)
        if likeness >= 0.6:
            found.append((likeness + 0.2 * (its_block == block), candidate))
    best = max((score for score, _ in found), default=0.0)
    found = sorted((f for f in found if f[0] > best - 0.15), key=lambda f: -f[0])
    return [candidate for _, candidate in found[:count]]


Networks = Callable[[str], Mapping[str, Field]]
"""Name of a network -> its fields by name, such as `spinejax.models.fields`."""


def describe(config: ConfigDict, networks: Networks) -> str:
    """Return every field of a checked config: value, other default, unit, meaning, limits."""
    lines = []
    for prefix, block in (("", config), (f"{SECOND}.", config.get(SECOND))):
        if block is None:
            continue
        flat = flatten(plain(block))
        network = networks(block.model.name).values()
        for field in (*fields(block.task).values(), *network):
            value = flat.get(field.path, field.default)
            value = tuple(value) if isinstance(value, list) else value
            default = f"  (default {field.default!r})" * (value != field.default)
            unit = f" {field.unit}" * bool(field.unit)
            text = field.meaning
            if not isinstance(field.allowed, Flag | Text):
                text += f" Must be {field.allowed}."
            indent = "    "
            lines.append(f"{prefix}{field.path}  {value!r}{unit}{default}")
            lines += textwrap.wrap(text, 96, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def at_defaults(config: ConfigDict, networks: Networks) -> ConfigDict:
    """Return a checked config with its fields at their defaults; task and network stay."""
    network = networks(config.model.name).values()
    known = {f.path: f.default for f in (*fields(config.task).values(), *network)}
    flat = {path: known[path] for path in flatten(config) if path in known}
    found = nested(flat | {"name": config.name, "task": config.task})
    if SECOND in config:
        found[SECOND] = at_defaults(config[SECOND], networks).to_dict()
    return ConfigDict(found)


def differences(config: ConfigDict, other: ConfigDict) -> str:
    """Return the fields in which two configs differ, "-" where a config lacks the field."""
    before, after = flatten(plain(config)), flatten(plain(other))
    rows = [
        (path, *(str(flat.get(path, "-")) for flat in (before, after)))
        for path in sorted(before | after)
        if before.get(path, "-") != after.get(path, "-")
    ]
    return text_table(rows, "l") if rows else "no field differs"


def reference(networks: Mapping[str, Mapping[str, Field]]) -> str:
    """Return docs/config.md: every field of every task and network, as Markdown tables."""
    parts = [
        "# Config reference\n\n"
        "`spinejax config --reference` writes this page from `spinejax/schema.py` and the classes "
        "in `spinejax/models/`. Every field is set on the command line as `--config.FIELD=VALUE`; "
        "`spinejax config --config=NAME` shows the values of a config. A config holds the fields "
        "of its task. A field with ↻ may change when a run is resumed."
    ]
    blocks: dict[str, list[Field]] = {}
    for field in FIELDS:
        blocks.setdefault(field.path.rpartition(".")[0], []).append(field)
    for block, members in blocks.items():
        parts += [f"## {block or 'The experiment'}", _table(members, with_tasks=True)]
    parts.append(
        "## model\n\nThe fields depend on the network, `model.name`. "
        "`--config.model=NAME` takes the whole network of another config, with "
        f"{' and '.join(f'`{path}`' for path in OF_NETWORK)}."
    )
    for network, own in networks.items():
        members = [field for name, field in own.items() if name != "name"]
        parts += [f"### {network}", _table(members, with_tasks=False)]
    return "\n\n".join(parts) + "\n"


_SHORT = {SLICES: "slices", PATCHES: "patches", CUBES: "cubes", OUTLINES: "outlines"}


def _table(members: Collection[Field], *, with_tasks: bool) -> str:
    header = ["field", "default", "allowed", "meaning"]
    rows = []
    for field in members:
        name = f"`{field.path.rpartition('.')[2]}`{' ↻' * field.free}"
        default = f"`{field.default!r}` {field.unit}".rstrip()
        row = [name, default, str(field.allowed), field.meaning]
        tasks = (
            "all"
            if len(field.tasks) == len(TASKS)
            else ", ".join(_SHORT[task] for task in field.tasks)
        )
        rows.append([*row, tasks] if with_tasks else row)
    lines = [[*header, "tasks"] if with_tasks else header]
    lines += [["---"] * len(lines[0]), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in r)} |" for r in lines)
