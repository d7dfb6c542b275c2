"""OP-convNet on phantoms: two CPU cores, minutes.

    make demo CONFIG=configs/opconvnet_demo.py RUN=runs/opconvnet_demo

The code path of `opconvnet.py` on synthetic scans, with fewer channels: most of the paper's
training time goes to a network that two cores cannot feed. It shows that everything works on this
machine; it says nothing about patients.
"""

from ml_collections import ConfigDict

from spinejax.configs import common, opconvnet


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment. Arguments: those of `opconvnet.py`."""
    args = common.parse_arg(arg, net="opconvnet", debug=False)
    config = opconvnet.get_config(arg)
    config.name = f"{config.name}_demo"
    config.data.source = "phantom"
    config.data.phantom.cases = 24
    config.data.phantom.min_spacing_mm = 2.0
    config.data.phantom.max_spacing_mm = 2.0
    # Leaves phantoms as they are, and shows the network real scans at the scale that it knows.
    config.data.preprocess.mode = "resample"
    config.data.preprocess.spacing_mm = 2.0
    # Tall scans have few cut vertebrae, which are bone that is not labelled.
    config.data.phantom.min_extent_mm = 300.0
    config.data.phantom.max_extent_mm = 320.0
    # Where a patch ends up in the spine shows in sagittal slices: bodies and discs take turns.
    config.data.plane = "sagittal"
    config.data.test_fraction = 0.2
    config.data.val_fraction = 0.1
    config.data.patches.stride = 4
    # Half a patch is 32 mm here: a majority would leave nothing of the processes.
    config.data.patches.label_rule = "centre"
    config.data.patches.rus = "epoch"
    config.data.patches.rus_ratio = 2.0
    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.train.eval_every_epochs = 2.0
    config.predict.min_component_ml = 2.0
    if args.debug:
        config.data.phantom.cases = 4
        return config
    config.train.batch_size = 256
    config.train.steps = 5000
    if args.net == "opconvnet":
        config.model.widths = (16, 32, 64)
        config.model.fc_widths = (128, 64)
        config.model.dropout = 0.2
    return config
