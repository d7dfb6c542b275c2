"""The demo: phantoms, a small pipeline of two networks, two CPU cores, minutes.

    make demo

A CHASPPRAU-Net finds the spine in slices and an MRU-Net names the vertebrae in coarse cubes. Their
training steps draw synthetic scans of the lumbar spine, each of another person. A few scans of
other persons are written, to validate and test on. The code is that of real experiments; only the
sizes are small. The demo shows that everything works on this machine. For scans of patients use
`phantom_to_real.py` and `cascade.py:phantom`, which train on phantoms of every kind.
"""

from ml_collections import ConfigDict

from spinejax.configs import cascade, chasppraunet, common, sweeps
from spinejax.configs.sweeps import Unit


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment. Arguments: `debug` (seconds)."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("demo", chasppraunet.model(widths=(12, 24, 48, 96), dropout=0.0))
    config.data.source = "phantom_stream"
    config.data.test_fraction = 0.8
    config.data.spine_free_fraction = 0.25
    config.data.normalise = "sym"
    config.data.size = (80, 128)
    # Scans of one region, without transitional anatomy, are learnt in minutes.
    config.data.phantom.update(
        cases=6,
        region="lumbar",
        min_spacing_mm=2.0,
        max_spacing_mm=2.0,
        min_extent_mm=300.0,
        max_extent_mm=320.0,
    )
    for name in ("t13", "l6", "no_t12", "no_l5", "cervical_ribs", "sacralised"):
        config.data.phantom.rates[name] = 0.0
    # A bone window: marrow is often within 50 HU of discs and muscle.
    config.data.preprocess.update(clamp_hu=(-200.0, 600.0), spacing_mm=2.0)
    # Every slice is another person, so augmentation adds nothing.
    config.augment.update(geometry=False, intensity=False)
    config.train.steps = 450
    config.train.eval_every_epochs = 4.0
    config.optim.learning_rate = 4e-3
    config.optim.ema_decay = 0.98
    config.predict.fill_holes = True
    second = cascade.phantom_vertebrae()
    second.augment.update(geometry=False, intensity=False)
    second.model.width_multiplier = 0.25
    second.model.decoder_widths = (64, 32, 16, 16)
    second.optim.learning_rate = 5e-3
    # In minutes the network learns names by the end of the mask. Patients need more, see
    # `phantom_vertebrae.py`.
    second.data.cube.prior_sacrum = 0.0
    second.train.steps = 1200
    second.optim.ema_decay = 0.98
    second.predict.anomalies = ()
    # Vertebrae that the scan's edge cuts have no labels here, as in VerSe.
    second.predict.drop_cut = True
    if args.debug:
        config.model.widths = (4, 8)
        config.data.phantom.cases = 2
        config.data.size = (32, 32)
        config.train.steps = 4
        config.train.batch_size = 2
        second.data.cube.size = (16, 16, 16)
        second.train.steps = 2
    return cascade.join(config, second)


def sweep_learning_rates() -> list[Unit]:
    """Yield three learning rates of the first network, each with two seeds."""
    return sweeps.product(sweeps.axis("optim.learning_rate", (2e-3, 4e-3, 8e-3)), sweeps.seeds(2))
