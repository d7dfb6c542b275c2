"""The networks of the packaged model `phantom`, trained further on your annotated CTs.

    spinejax train --config=finetune --config.data.root=DIR --workdir=runs/finetuned
    spinejax evaluate --workdir=runs/finetuned

Both networks begin with the packaged weights (`train.init_from`) and keep their preprocessing. The
first network of the pipeline is the one of sagittal slices.
`--config.train.init_from=''` begins both with random weights instead, at equal effort;
`FILE.spinejax` or the folder of a pipeline's run begins with those weights. With
`--config.data.test_fraction=0 --config.data.val_fraction=0` all scans train, also a single one.

Arguments: `spine` trains the first network alone, `debug` takes a few steps.
"""

from ml_collections import ConfigDict

from spinejax.configs import cascade, common


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, spine=False, debug=False)
    both = cascade.get_config("phantom").copy_and_resolve_references()
    for config in (both, both.vertebrae):
        config.data.source = "verse"
        config.train.init_from = "phantom"
        # Scans are few, so their geometry changes, too.
        config.augment.update(geometry=True, scale=(0.85, 1.15), rotation_deg=10.0)
        # The weights are close to the goal: a high rate would lose what they know.
        config.optim.learning_rate = 5e-4
        config.train.steps = 2 if args.debug else 2000
    both.name = "finetune"
    if args.spine:
        del both.vertebrae
        return both
    return cascade.join(both, both.vertebrae, own=cascade.OFTEN)
