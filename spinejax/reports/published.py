"""The published numbers of paper A, and what arithmetic says of them.

Paper A: Saeed et al., "An Automated Deep Learning Approach for Spine Segmentation and Vertebrae
Recognition Using Computed Tomography Images", Diagnostics 2023, 13, 2658, Tables 3-11.
All values are per cent, as printed. They are shown beside a run's own scores and never mixed with
them: `contradictions` counts the rows that no set of masks can produce.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spinejax.reports.paper_tables import PaperTable, papers, tables

PAPER_A = papers()["saeed2023"]


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


def _rows(table: PaperTable) -> tuple[Row, ...]:
    rows = []
    for dataset, setting, *cells in table.rows:
        dice, iou, precision, recall = map(float, cells)
        rows.append(Row(table.number, table.system, dataset, setting, dice, iou, precision, recall))
    return tuple(rows)


def _other_work(methodology: str, shown: str = "") -> OtherWork:
    rows = tables()["saeed2023_table11"].rows
    [(_, _, samples, parameters, dice)] = [row for row in rows if row[1] == methodology]
    count = None if parameters == "-" else int(parameters.replace(",", ""))
    return OtherWork(shown or methodology, float(dice), int(samples), count)


PUBLISHED: dict[int, tuple[Row, ...]] = {
    table.number: _rows(table)
    for table in tables().values()
    if table.paper == "saeed2023" and table.system
}
"""Table number of paper A -> its rows (60 rows in Tables 3-10)."""

OTHER_WORKS: dict[str, OtherWork] = {
    "chasppraunet": _other_work("CHASPPRAU-Net"),
    "unet": _other_work("U-Net", "U-Net (Kim et al.)"),
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
    own = "Published on VerSe, ours on synthetic phantoms: other images, easier ones, and the same "
    own += "ones in rows of VerSe’19 and of VerSe’20."
    return [own, *reasons] if phantom else reasons
