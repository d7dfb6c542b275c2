"""OP-convNet on phantoms: two CPU cores, minutes.

    make demo CONFIG=configs/opconvnet_demo.py RUN=runs/opconvnet_demo

The code of `opconvnet.py` on synthetic scans, with fewer channels: the paper's network is too wide
for two cores. It shows that everything works on this machine; it says nothing about patients.
"""

from ml_collections import ConfigDict

from spinejax.configs import common, opconvnet


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment. Arguments: those of `opconvnet.py`."""
    args = common.parse_arg(arg, net="opconvnet", debug=False)
    config = opconvnet.get_config(arg)
    config.name = f"{config.name}_demo"
    config.data.source = "phantom"
    config.data.phantom.update(
        cases=4 if args.debug else 24,
        min_spacing_mm=2.0,
        max_spacing_mm=2.0,
        # Tall scans have few cut vertebrae, which are bone without a label.
        min_extent_mm=300.0,
        max_extent_mm=320.0,
    )
    # Keeps phantoms as they are, and resamples real scans to the scale of the phantoms.
    config.data.preprocess.update(mode="resample", spacing_mm=2.0)
    # Sagittal slices show the place of a patch in the spine: bodies and discs take turns.
    config.data.plane = "sagittal"
    config.data.test_fraction = 0.2
    config.data.val_fraction = 0.1
    config.data.patches.update(
        stride=4,
        # Half a patch is 32 mm here: by majority no patch would show a process.
        label_rule="centre",
        rus="epoch",
        rus_ratio=2.0,
    )
    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.train.eval_every_epochs = 2.0
    config.predict.min_component_ml = 2.0
    if not args.debug:
        config.train.batch_size = 256
        config.train.steps = 5000
        if args.net == "opconvnet":
            config.model.update(widths=(16, 32, 64), fc_widths=(128, 64), dropout=0.2)
    return config
