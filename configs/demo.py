"""The demo: phantoms, a small CHASPPRAU-Net, two CPU cores, minutes.

    make demo

Synthetic scans are rendered into the workdir, the real code path trains on them (only the sizes are
small), and scans of other phantoms are segmented and scored. It shows that everything works on this
machine; it says nothing about patients.
"""

from ml_collections import ConfigDict

from configs import chasppraunet, common


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment. Arguments: `debug` (seconds)."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("demo", chasppraunet.model(widths=(12, 24, 48, 96)))
    config.model.dropout = 0.0
    config.data.source = "phantom"
    config.data.phantom.cases = 24
    config.data.phantom.min_spacing_mm = 2.0
    config.data.phantom.max_spacing_mm = 2.0
    # Tall scans have few cut vertebrae, the hardest thing to learn: bone that is not labelled.
    config.data.phantom.min_extent_mm = 300.0
    config.data.phantom.max_extent_mm = 320.0
    config.data.preprocess.spacing_mm = 2.0
    config.data.size = (80, 160)
    # At 2 mm, rotating and scaling blur the very borders that are scored; another phantom is the
    # better augmentation.
    config.augment.enabled = False
    config.train.steps = 750
    config.optim.learning_rate = 4e-3
    config.predict.fill_holes = True
    if args.debug:
        config.model.widths = (4, 8)
        config.data.phantom.cases = 4
        config.data.size = (32, 32)
        config.train.steps = 4
        config.train.batch_size = 2
    return config
