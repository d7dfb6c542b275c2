"""OP-convNet on phantoms: two CPU cores, minutes.

    spinejax train --config=configs/opconvnet_demo.py --workdir=runs/opconvnet_demo

The whole network and the code path of `opconvnet.py`, on synthetic scans. It shows that everything
works on this machine; it says nothing about patients.
"""

from ml_collections import ConfigDict

from configs import opconvnet


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment. Arguments: those of `opconvnet.py`."""
    config = opconvnet.get_config(arg)
    config.name = f"{config.name}_demo"
    config.data.source = "phantom"
    config.data.phantom.cases = 12
    config.data.phantom.min_spacing_mm = 1.0
    config.data.phantom.max_spacing_mm = 1.0
    config.data.phantom.min_extent_mm = 160.0
    config.data.phantom.max_extent_mm = 200.0
    config.data.test_fraction = 0.25
    return config
