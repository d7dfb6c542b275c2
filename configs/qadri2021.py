"""Paper B (Qadri et al., IEEE Access 2021, 9): its protocol.

`configs/opconvnet.py` says how it reads what the paper leaves open, and has the sweeps.
"""

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common
from spinejax.configs.common import Asked, Open

_SCANS = "ten cases for training, and five cases for testing"
_WINDOW = "outside the bone intensity range of 100HU"
_SLICES = "they need to be processed slice by slice"
_TRAINED = "train the network for 30 epochs with a mini-batch size of 128"
_RATE = "The initial learning rate is 0.01"
_DROP = "learning rate drop factor is 0.1 on each 10th epochs"
_DECAY = "The momentum and rate of weight decay L2 regularization are set to 0.9 and 0.0001"

ASKED = (
    Asked("data.test_fraction", 1 / 3, _SCANS, "III.A"),
    Asked("data.preprocess.intensity", "op_window", _WINDOW, "II.A"),
    Asked("data.preprocess.clamp_hu", (100.0, 1500.0), _WINDOW, "II.A"),
    Asked("data.preprocess.mode", "native", _SLICES, "II.A"),
    Asked("data.normalise", "unit", "the data are normalized to the range [0,1]", "II.A"),
    Asked("augment.scale", (1.0, 1.0), "we randomly translate each image", "II.A"),
    Asked("augment.flip_probability", 0.0, "we randomly translate each image", "II.A"),
    Asked("augment.intensity", False, "we randomly translate each image", "II.A"),
    Asked("loss.name", "ce", "L2 regularization cross-entropy loss", "IV.A"),
    Asked("optim.name", "sgd", "Stochastic gradient descent (SGD) is used", "IV"),
    Asked("optim.learning_rate", 0.01, _RATE, "IV"),
    Asked("optim.momentum", 0.9, _DECAY, "IV"),
    Asked("optim.weight_decay", 1e-4, _DECAY, "IV"),
    Asked("optim.schedule", "step", _DROP, "IV"),
    Asked("optim.decay_factor", 0.1, _DROP, "IV"),
    Asked("optim.decay_every_epochs", 10.0, _DROP, "IV"),
    Asked("train.steps", 0, _TRAINED, "IV"),
    Asked("train.epochs", 30.0, _TRAINED, "IV"),
    Asked("train.batch_size", 128, _TRAINED, "IV", (schema.PATCHES,)),
    Asked("train.best", "loss", "the lowest validation loss value is selected", "II.E"),
    Asked("predict.fill_holes", True, "applying simple morphological operations", "II.E"),
    Asked("predict.opening_mm", 0.5, "applying simple morphological operations", "II.E"),
)
"""What the paper asks for."""

OPEN = (
    Open("data.plane", "the plane of the slices"),
    Open("data.val_fraction", "which scans validate: it splits patches, not scans"),
    Open("data.patches.split_unit", "that overlapping patches of one scan must not be split"),
    Open("augment.rotation_deg", "the range of rotation"),
    Open("augment.translation_px", "the range of translation"),
    Open("optim.clip_norm", "whether gradients are limited"),
    Open("predict.opening_mm", "which morphological operations"),
)
"""What the paper leaves open, so that the config decides."""


def recipe(config: ConfigDict) -> None:
    """Set data and training as in the paper's sections II to IV."""
    common.follow(config, ASKED)
    config.data.val_fraction = 0.2  # of 10 scans: 2 validate
    if config.task != schema.CUBES:
        # The CSI masks do not number vertebrae as VerSe does.
        config.data.update(labels="binary", plane="axial")
    # OP-convNet moves in steps of 4 pixels (strides 2 and 2), training patches lie at multiples of
    # 12, and a scan at stride 1 needs the places between.
    config.augment.translation_px = 4.0
    config.optim.clip_norm = 0.0
    if config.task == schema.SLICES:
        config.data.size = (512, 512)  # whole slices
    elif config.task == schema.PATCHES:
        config.train.pictures = 0
        config.predict.batch_size = 128


def set_protocol(config: ConfigDict, protocol: str) -> None:
    """Set the fields of one network for a value of the argument `protocol`.

    Raises:
        ValueError: there is no such protocol.
    """
    common.check_protocol(protocol)
    if protocol == common.PAPER:
        recipe(config)
