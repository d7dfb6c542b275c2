r"""The third network: it outlines each named vertebra in its own cube, trained on phantoms alone.

    spinejax train --config=configs/phantom_outlines.py --workdir=runs/outlines
    spinejax predict --workdir=SPINE --vertebrae=VERTEBRAE --outlines=runs/outlines \
        --input=CT.nii.gz --output=out

After the pipeline of `configs/cascade.py` has named the vertebrae, this network sees a cube of
1.5 mm voxels about each (Payer et al., VISAPP 2020). The training step draws every cube anew. With
`--config.data.source=verse --config.data.root=DIR` it trains on scans instead. Arguments: `debug`
(a few steps).
"""

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common, phantom_to_real


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, debug=False)
    # Blocks of 2 x 2 x 2 voxels are folded: the finest level works at 3 mm.
    model = dict(name="unet3d", widths=(16, 48, 96), norm="group", dropout=0.0, fold=2)
    config = common.base("phantom_outlines", model, schema.OUTLINES)
    first = phantom_to_real.get_config()
    config.data.source = "phantom_stream"
    config.data.normalise = "sym"
    config.data.preprocess.update(
        clamp_hu=first.data.preprocess.clamp_hu, spacing_mm=1.5, smoothing_sigma_mm=0.75
    )
    # With its processes a large lumbar vertebra is 105 mm wide and reaches 30 mm forward and 75 mm
    # back from the centre of its body; the spinous process of a thoracic one, 40 mm down.
    config.data.cube.update(size=(72, 72, 48), shift_mm=(24.0, -4.0), jitter_mm=3.0)
    config.data.phantom.update(first.data.phantom)
    # Every sample is another person in another pose: augmentation changes intensities only.
    config.augment.update(first.augment)
    config.train.steps = 4000
    config.train.batch_size = 2
    config.train.checkpoint_every_steps = 200
    config.optim.learning_rate = 3e-3
    config.optim.ema_decay = 0.99
    config.predict.batch_size = 1
    if args.debug:
        config.model.widths = (4, 8)
        config.data.cube.size = (16, 16, 16)
        config.train.steps = 4
    return config
