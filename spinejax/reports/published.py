"""The published numbers of paper A, and what arithmetic says of them.

Paper A: Saeed et al., "An Automated Deep Learning Approach for Spine Segmentation and Vertebrae
Recognition Using Computed Tomography Images", Diagnostics 2023, 13, 2658, Tables 3-11.
All values are per cent, as printed. They are shown beside a run's own scores and never mixed with
them: `contradictions` counts the rows that no set of masks can produce.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PAPER_A = "Saeed et al., Diagnostics 2023, 13, 2658"


@dataclass(frozen=True)
class Row:
    """One row of Tables 3-10: scores in per cent; `setting` is the paper's second column."""

    table: int
    system: str
    dataset: str
    setting: str
    dice: float
    iou: float
    precision: float
    recall: float

    @property
    def source(self) -> str:
        """Where the row is printed."""
        return f"{PAPER_A}, Table {self.table}"


@dataclass(frozen=True)
class OtherWork:
    """One row of Table 11: Dice in per cent as printed there; None where a cell is a dash."""

    system: str
    dice: float
    test_samples: int
    parameters: int | None
    source: str = f"{PAPER_A}, Table 11"


_CHASPPRAU = "CHASPPRAU-Net"
_MRU = "3D MRU-Net"
NORMALISATIONS = ("−1000 to 800", "Zero mean", "0 to 1", "−1 to 1")
"""The paper's intensity normalisations, in the order of its tables."""

_STAGES = ("Image normalization", "Data augmentation", "Residual blocks", "Dropout")

# Dice, IoU, precision, recall; VerSe 2020 first, then VerSe 2019, as printed.
_SCORES: dict[int, tuple[str, tuple[str, ...], str]] = {
    3: (
        _CHASPPRAU,
        NORMALISATIONS,
        "90.45 91.48 94.37 95.07  89.91 90.34 95.16 94.32  90.18 94.01 93.41 94.08"
        "  88.75 92.17 91.62 91.43"
        "  91.63 90.89 95.84 94.77  88.42 89.37 93.25 92.98  89.79 90.48 94.62 93.10"
        "  90.51 89.17 92.48 91.79",
    ),
    4: (
        _MRU,
        NORMALISATIONS,
        "87.96 88.39 92.76 92.46  82.41 81.64 88.45 87.45  83.75 84.78 89.37 88.17"
        "  82.63 83.79 86.97 85.39"
        "  86.58 87.35 90.49 91.48  84.72 84.98 88.21 87.91  81.15 82.47 85.79 86.48"
        "  83.49 84.09 87.89 86.12",
    ),
    5: (
        _CHASPPRAU,
        NORMALISATIONS,
        "93.72 92.25 97.04 96.87  92.63 93.14 96.13 94.53  90.59 90.28 93.08 92.48"
        "  93.14 94.60 94.05 93.75"
        "  94.58 95.93 98.71 97.10  92.49 91.68 95.62 95.78  93.64 94.84 96.38 94.63"
        "  94.34 95.08 97.14 96.31",
    ),
    6: (
        _MRU,
        NORMALISATIONS,
        "89.59 90.78 95.27 95.88  84.64 86.47 90.34 91.15  85.37 84.39 92.13 90.72"
        "  84.19 85.47 89.78 88.34"
        "  90.18 91.48 96.05 95.94  86.17 87.19 90.75 89.11  84.65 85.94 89.19 89.78"
        "  85.48 84.97 90.12 88.95",
    ),
    7: (
        _MRU,
        NORMALISATIONS,
        "93.46 93.66 98.71 98.47  88.95 88.14 92.49 93.75  89.18 90.79 95.64 95.46"
        "  88.28 88.34 91.93 92.62"
        "  94.96 95.61 98.15 97.91  89.75 89.72 92.86 91.85  87.48 88.63 92.45 92.14"
        "  88.96 87.98 91.43 92.48",
    ),
    8: (
        _MRU,
        NORMALISATIONS,
        "93.89 94.01 99.12 98.79  89.46 90.48 92.89 94.18  90.02 91.37 96.15 95.97"
        "  89.71 88.52 92.45 93.14"
        "  95.19 95.81 99.48 98.36  89.92 90.72 93.62 92.34  88.16 87.25 93.48 93.03"
        "  89.52 88.16 92.19 93.14",
    ),
    9: (
        _CHASPPRAU,
        _STAGES[:2],
        "90.45 91.48 94.37 95.07  93.72 92.25 97.04 96.87"
        "  91.63 90.89 95.84 94.77  94.58 95.93 98.71 97.10",
    ),
    10: (
        _MRU,
        _STAGES,
        "87.96 88.39 92.76 92.46  89.59 90.78 95.27 95.88  93.46 93.66 98.71 98.47"
        "  93.89 94.01 99.12 98.79"
        "  86.58 87.35 90.49 91.48  90.18 91.48 96.05 95.94  94.96 95.61 98.15 97.91"
        "  95.19 95.81 99.48 98.36",
    ),
}


def _rows(table: int) -> tuple[Row, ...]:
    system, settings, text = _SCORES[table]
    values = [float(value) for value in text.split()]
    rows = []
    for i in range(len(values) // 4):
        dataset = "VerSe 2020" if i < len(settings) else "VerSe 2019"
        dice, iou, precision, recall = values[4 * i : 4 * i + 4]
        setting = settings[i % len(settings)]
        rows.append(Row(table, system, dataset, setting, dice, iou, precision, recall))
    return tuple(rows)


PUBLISHED: dict[int, tuple[Row, ...]] = {table: _rows(table) for table in _SCORES}
"""Table number of paper A -> its rows (60 rows in Tables 3-10)."""

OTHER_WORKS: dict[str, OtherWork] = {
    "chasppraunet": OtherWork("CHASPPRAU-Net", 94.58, 60, 1_245_155),
    "unet": OtherWork("U-Net (Kim et al.)", 90.40, 14, 1_941_105),
}
"""Our model name -> its row of Table 11. Kim et al. is that table's [14], on its own data; the
table prints one parameter count for "CHASPPRAU-Net, 3D MRU-Net" together."""

PAPER_NORMALISATION = {
    "hu": "−1000 to 800",
    "minmax_to_hu": "−1000 to 800",
    "zscore": "Zero mean",
    "unit": "0 to 1",
    "sym": "−1 to 1",
}
"""`config.data.normalise` -> the paper's name for it (two readings of the first one exist)."""


def matching_rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    """Return the rows of paper A that describe the experiment of a config.

    Args:
        config: a resolved config (nested mappings): `model.name`, `data.normalise` and
            `augment.enabled` are read.

    Returns:
        The rows of Table 5 (with augmentation) or Table 3 (without) with that normalisation, VerSe
        2020 first; empty for a network or a normalisation that those tables do not have.
    """
    if _get(config, "model", "name") != "chasppraunet":
        return ()
    setting = PAPER_NORMALISATION.get(_get(config, "data", "normalise"))
    table = 5 if _get(config, "augment", "enabled") else 3
    return tuple(row for row in PUBLISHED[table] if row.setting == setting)


def _get(config: Mapping[str, Any], *keys: str) -> Any:
    value: Any = config
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


@dataclass(frozen=True)
class Contradictions:
    """What cannot be, counted over `rows` published rows; gaps in percentage points.

    With D, J, P, R the Dice, IoU, precision and recall of one mask (as shares):

    * J = D / (2 - D) <= D, so J <= D also for any average over cases: `iou_above_dice`;
    * `nearest_iou`: how near the printed IoU comes to D / (2 - D) in the best row;
    * `dice_below_both`: D is the harmonic mean of P and R and lies between them. An average over
      cases can fall below both averages, but D >= P + R - 1 holds for every mask and therefore
      for every average: `dice_below_bound` counts the rows below even that;
    * `mean_iou_gap`, `mean_miou_gap`: mean distance of the printed IoU from D / (2 - D), and from
      the two-class mean (D / (2 - D) + B) / 2 with a background IoU of B = 99.5 %;
    * `background_above_one`: rows whose printed IoU, read as that two-class mean, would need a
      background IoU above 100 %.
    """

    rows: int
    iou_above_dice: int
    nearest_iou: float
    dice_below_both: int
    dice_below_bound: int
    mean_iou_gap: float
    mean_miou_gap: float
    background_above_one: int


def contradictions(rows: Iterable[Row] | None = None) -> Contradictions:
    """Count what is impossible in published rows (by default all 60 of Tables 3-10)."""
    if rows is None:
        rows = [row for table in PUBLISHED.values() for row in table]
    rows = list(rows)
    if not rows:
        raise ValueError("`rows` is empty")
    implied = [100 * row.dice / (200 - row.dice) for row in rows]
    gaps = [abs(row.iou - iou) for row, iou in zip(rows, implied, strict=True)]
    two_class = [abs(row.iou - (iou + 99.5) / 2) for row, iou in zip(rows, implied, strict=True)]
    return Contradictions(
        rows=len(rows),
        iou_above_dice=sum(row.iou > row.dice for row in rows),
        nearest_iou=min(gaps),
        dice_below_both=sum(row.dice < min(row.precision, row.recall) for row in rows),
        dice_below_bound=sum(row.dice < row.precision + row.recall - 100 for row in rows),
        mean_iou_gap=sum(gaps) / len(rows),
        mean_miou_gap=sum(two_class) / len(rows),
        background_above_one=sum(
            2 * row.iou - iou > 100 for row, iou in zip(rows, implied, strict=True)
        ),
    )


def why_not_comparable(phantom: bool = False, quoted: bool = False) -> list[str]:
    """Return the reasons, one sentence or two each, why a run's scores are not set against these.

    Args:
        phantom: the run's scans are synthetic.
        quoted: the row is one of Table 11 that quotes another group's work.
    """
    synthetic = "Published on real CT, ours on synthetic phantoms: other images, and easier ones."
    if quoted:
        elsewhere = (
            "The published row quotes another group’s result on its own few test scans (Table 11); "
            "neither those scans nor how the score was averaged is known here."
        )
        return [synthetic, elsewhere] if phantom else [elsewhere]
    found = contradictions()
    rows = found.rows
    reasons = [
        f"The published scores contradict each other. IoU is never above Dice, for one mask or any "
        f"average of masks, yet it is in {found.iou_above_dice} of the {rows} rows of "
        f"Tables 3–10; no row comes within {int(found.nearest_iou)} points of the identity "
        f"IoU = D / (2 − D) that holds for a mask.",
        f"Dice is the harmonic mean of precision and recall and so lies between them, yet it is "
        f"printed below both in {found.dice_below_both} of {rows} rows. Averaging over scans can "
        f"pull it below both, but never below precision + recall − 100 %, where it is printed in "
        f"{found.dice_below_bound} rows.",
        f"The printed IoU resembles our mean IoU with background (miou_with_background; "
        f"{found.mean_miou_gap:.1f} points away on average, were the background’s IoU 99.5 %) more "
        f"than our IoU of the spine ({found.mean_iou_gap:.1f} points away). Even so "
        f"{found.background_above_one} rows would need a background IoU above 100 %.",
        "The paper does not say over what it averages (pixels, slices or scans), nor which scans "
        "or patients form the 20 % that it tests on.",
    ]
    return [synthetic.replace("real CT", "VerSe"), *reasons] if phantom else reasons
