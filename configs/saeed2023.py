"""Paper A (Saeed et al., Diagnostics 2023, 13, 2658): its protocol, and what its sweeps share.

`configs/chasppraunet.py` has the sweeps of Tables 3, 5, 9 and 11, `configs/mrunet.py` has those of
Tables 4, 6, 7, 8 and 10. `cell` holds the words of the printed row.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common, sweeps
from spinejax.configs.common import Asked, Open
from spinejax.configs.sweeps import Sweep, Unit

_RESIZED = "The VerSe datasets were resized"
_CLEANED = "pre-processed with smoothing, clamping, and reorienting as used by Payer et al."
_PARTS = "eighty percent was used for training and twenty percent was used for testing"
_CHANGED = "scaling, rotation, and flip rotation were used to produce augmented images"
_DROPPED = "residual blocks, and dropout regularization"
_TRAINED = "trained with 150 epochs, using 0.001 as the initial learning rate"

ASKED = (
    Asked("data.preprocess.mode", "resize", _RESIZED, "4.2"),
    Asked("data.size", (256, 256), _RESIZED, "4.2"),
    Asked("data.preprocess.intensity", "clamp", _CLEANED, "4.2"),
    Asked("data.preprocess.smoothing_sigma_mm", 0.75, _CLEANED, "4.2"),
    Asked("data.preprocess.clamp_hu", (-1000.0, 800.0), "the clamping range used", "4.2"),
    Asked("data.split", "ratio", _PARTS, "4.2"),
    Asked("data.test_fraction", 0.2, _PARTS, "4.2"),
    Asked("data.val_fraction", 0.0, _PARTS, "4.2"),
    Asked("augment.intensity", False, _CHANGED, "4.3.1"),
    Asked("augment.flip_axes", "all", _CHANGED, "4.3.1"),
    Asked("augment.translation_px", 0.0, _CHANGED, "4.3.1"),
    Asked("train.steps", 0, _TRAINED, "4.2"),
    Asked("train.epochs", 150.0, _TRAINED, "4.2"),
    Asked("optim.learning_rate", 1e-3, _TRAINED, "4.2"),
    Asked("model.dropout", 0.0, _DROPPED, "4.3.3, Table 8", (schema.SLICES,)),
)
"""What the paper asks for. Only the vertebrae's network gets dropout, with Table 8 (`STAGES`)."""

OPEN = (
    Open("data.plane", "the plane of the slices"),
    Open("data.spine_free_fraction", "whether slices without vertebrae train"),
    Open("augment.scale", "the range of scaling"),
    Open("augment.rotation_deg", "the range of rotation"),
    Open("augment.flip_probability", "how often slices are flipped"),
    Open("model.views", "whether the encoder of each view learns by a loss of its own"),
    Open("loss.name", "the loss"),
    Open("optim.name", "the optimiser"),
    Open("optim.schedule", "how the learning rate falls"),
    Open("optim.clip_norm", "whether gradients are limited"),
    Open("train.batch_size", "the batch size"),
)
"""What the paper leaves open, so that the config decides."""

NORMALISATIONS = tuple(
    Unit(f"normalise={mode}", {"data.normalise": mode}, {"Normalization": printed})
    for mode, printed in (
        ("hu", "−1000 to 800"),
        ("zscore", "Zero mean"),
        ("unit", "0 to 1"),
        ("sym", "−1 to 1"),
    )
)

DATASETS = (
    Unit("verse20", {"data.edition": "verse20"}, {"Dataset": "VerSe 2020"}),
    Unit("verse19", {"data.edition": "verse19"}, {"Dataset": "VerSe 2019"}),
)


class Stage(NamedTuple):
    """What the paper had added to the network of the vertebrae by a table."""

    augment: bool
    residual: bool
    dropout: float


STAGES = {
    4: Stage(False, False, 0.0),
    6: Stage(True, False, 0.0),
    7: Stage(True, True, 0.0),
    8: Stage(True, True, 0.3),
}


def stage(table: int) -> Stage:
    """Return the stage of a table.

    Raises:
        ValueError: the table is none of STAGES.
    """
    if table not in STAGES:
        raise ValueError(f"table={table} is unknown; choose from {', '.join(map(str, STAGES))}")
    return STAGES[table]


def set_protocol(config: ConfigDict, protocol: str) -> None:
    """Set the fields of one network for a value of the argument `protocol`.

    Raises:
        ValueError: there is no such protocol.
    """
    common.check_protocol(protocol)
    if protocol == common.PAPER:
        common.follow(config, ASKED)


def augmented(on: bool, protocol: str) -> dict[str, bool]:
    """Return the switches of augmentation; the paper does not change intensities."""
    return {"geometry": on, "intensity": on and protocol == common.OWN}


def table(number: int, *parts: Sweep) -> list[Unit]:
    """Return the product of `parts` as the units of a table."""
    return sweeps.product([Unit("", {}, {"table": f"saeed2023_table{number}"})], *parts)
