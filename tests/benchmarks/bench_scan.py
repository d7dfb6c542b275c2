"""The mask of the spine in a whole scan, beside MONAI's sliding window around the PyTorch network.

The packaged network segments a phantom of 0.8 mm in all windows, and only in those that touch the
spine which a search finds (`predict.search`). MONAI's windows have the same size, overlap, weights
and batches, and take the place of ours within the same prediction: resampling and cleaning are the
same code. The benchmark fails unless the masks agree.
"""

import numpy as np

from spinejax import predictor
from spinejax.data import normalise
from spinejax.inference import planes, windows2d
from spinejax.tasks import build_task
from spinejax.training import model_file
from tests.benchmarks import phantom_scans, timing

# In pixels of 2 mm a slice has 200 x 224: 80 + 2 x 60 rows and 128 + 96 columns. Then MONAI's
# windows, which lie a fixed distance apart, and ours, which spread evenly, are the same.
SPACING_MM = 0.8
SEARCH_LIMIT = 0.33
LEAST_DICE = 0.995


def monai_windows(config, task, parameters):
    """Return MONAI's sliding window as a `masks.StackPredictor` that reads all windows."""
    import torch
    from monai.inferers import sliding_window_inference

    from tests.benchmarks import torch_networks

    network = torch_networks.network(task.model, parameters)
    size, how = tuple(config.data.size), predictor.scan_settings(config, task).preprocess
    weights = torch.tensor(windows2d.blend_weights(size), device=torch_networks.DEVICE)

    def to_input(hu, stats):
        hu = np.asarray(hu, np.float32)
        return normalise.network_input(hu, config.data.normalise, how.range_hu, stats)

    def predict(stack, stats, advance, within=None):
        with torch.inference_mode():
            found = sliding_window_inference(
                torch_networks.images(to_input(stack, stats)[..., None]),
                size,
                config.predict.batch_size,
                lambda x: torch.sigmoid(network(x)),
                overlap=config.predict.overlap,
                roi_weight_map=weights,
                cval=float(to_input(how.fill_hu, stats)),
            )
        return found[:, 0].cpu().numpy()

    return predict


def dice(a, b):
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / both if both else 1.0


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    from tests.benchmarks.torch_networks import PEER

    shape = (64, 64, 96) if toy else (500, 500, 560)
    small, large = phantom_scans.coarse_and_fine(shape, SPACING_MM)
    (packaged,) = model_file.read(model_file.located("phantom")).networks["spine"]
    config = packaged.config
    task = build_task(config)
    settings = predictor.scan_settings(config, task)
    ours = task.stack_predictor(packaged.variables)
    how = settings.size, config.predict.overlap
    theirs = monai_windows(config, task, packaged.variables["params"])
    networks = {
        who: [planes.PlaneNetwork(config.data.plane, *how, predict)]
        for who, predict in (("ours", ours), ("theirs", theirs))
    }
    found = {}

    def keep(name, who, search):
        def call(volume=large):
            found[name] = planes.predict_scan(networks[who], volume, settings, search=search)

        return call

    calls = {
        "all": keep("all", "ours", False),
        "search": keep("search", "ours", True),
        "MONAI": keep("MONAI", "theirs", False),
    }
    for call in calls.values():
        call(small)
    times = timing.interleaved(calls, 1 if toy else 2, warm_up=0)
    if dice(found["all"], found["MONAI"]) < LEAST_DICE and not toy:
        raise RuntimeError("the mask of MONAI's windows is another one")
    of = f"of {' x '.join(map(str, large.shape))}"
    peer = times["MONAI"]
    return [
        timing.versus(f"mask {of}, all windows", times["all"], f"MONAI, {PEER}", peer),
        timing.versus(
            f"mask {of}, search", times["search"], f"MONAI, {PEER}", peer, limit=SEARCH_LIMIT
        ),
        timing.against(
            f"mask {of}, search: 1 - Dice to all windows",
            100 * (1 - dice(found["all"], found["search"])),
            "%",
            100 * (1 - LEAST_DICE),
        ),
    ]
