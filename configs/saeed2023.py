"""Parts of sweeps that the tables of paper A share (Saeed et al., Diagnostics 2023, 13, 2658).

`configs/chasppraunet.py` has the sweeps of Tables 3, 5, 9 and 11, `configs/mrunet.py` has those of
Tables 4, 6, 7, 8 and 10. `cell` holds the words of the printed row.
"""

from spinejax.configs import sweeps
from spinejax.configs.sweeps import Sweep, Unit

DATASETS = (
    Unit("verse20", {"data.edition": "verse20"}, {"Dataset": "VerSe 2020"}),
    Unit("verse19", {"data.edition": "verse19"}, {"Dataset": "VerSe 2019"}),
)

NORMALISATIONS = tuple(
    Unit(f"normalise={mode}", {"data.normalise": mode}, {"Normalization": printed})
    for mode, printed in (
        ("hu", "−1000 to 800"),
        ("zscore", "Zero mean"),
        ("unit", "0 to 1"),
        ("sym", "−1 to 1"),
    )
)


def table(number: int, *parts: Sweep) -> list[Unit]:
    """Return the product of `parts` as the units of a table."""
    return sweeps.product([Unit("", {}, {"table": f"saeed2023_table{number}"})], *parts)
