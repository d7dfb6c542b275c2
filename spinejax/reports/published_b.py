"""The published numbers of paper B, and what arithmetic says of them.

Paper B: Qadri et al., "OP-convNet: A Patch Classification-Based Framework for CT Vertebrae
Segmentation", IEEE Access 2021, DOI 10.1109/ACCESS.2021.3131216, Tables 2 and 3. All values are
per cent with one decimal, as printed. `findings` holds them against each other, allowing for half a
unit of the last decimal in every number: what it lists, rounding does not explain.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spinejax.reports.paper_tables import papers, tables

PAPER_B = papers()["qadri2021"]

_HALF = 0.05
"""Half a unit of the last printed decimal."""


class _Named:
    """A row of a table; `system` is its name as printed, with the number of a reference."""

    system: str

    @property
    def name(self) -> str:
        """The name without the number of a reference or the word "(Proposed)"."""
        return re.sub(r" (\[\d+\]|\(Proposed\))$", "", self.system)


@dataclass(frozen=True)
class PatchRow(_Named):
    """One row of Table 2, of patches: PRE, SPE, ACC and F-score in per cent."""

    system: str
    precision: float
    specificity: float
    accuracy: float
    f_score: float


@dataclass(frozen=True)
class PixelRow(_Named):
    """One row of Table 3, of pixels: SEN, BF-score, JAC and DSC in per cent.

    `group` is the table's first column.
    """

    group: str
    system: str
    sensitivity: float
    bf_score: float
    jaccard: float
    dice: float


TABLE_2 = tuple(
    PatchRow(system, *map(float, cells)) for system, *cells in tables()["qadri2021_table2"].rows
)
TABLE_3 = tuple(
    PixelRow(group, system, *map(float, cells))
    for group, system, *cells in tables()["qadri2021_table3"].rows
)

QUOTED_DIFFERENCES: dict[tuple[str, str], float] = {
    **{
        (system, measure): value
        for system, values in (
            ("VGG net", (20.0, 0.8, 0.2, 8.3)),
            ("ResNet", (13.9, 0.5, 0.1, 5.7)),
            ("DenseNet", (8.0, 0.3, 0.2, 2.7)),
        )
        for measure, value in zip(
            ("precision", "specificity", "accuracy", "f_score"), values, strict=True
        )
    },
    ("MultiResuNet", "dice"): 5.0,
    ("VGG net", "dice"): 8.0,
    ("ResNet", "dice"): 5.4,
    ("DenseNet", "dice"): 2.5,
}
"""(row, measure) -> points by which the text (sections IV.A and V) sets OP-convNet above it."""

QUOTED_DICE = {
    "UNet": 83.7,
    "D-TVNet": 86.17,
    "SAU-Net": 89.8,
    "SpineParseNet": 87.3,
    "PaDBN Model": 86.1,
    "OP-convNet": 89.9,
}
"""Row of Table 3 -> its DSC in the text of section V."""

MODELS = {
    "opconvnet": "OP-convNet",
    "vgg": "VGG net",
    "resnet": "ResNet",
    "densenet": "DenseNet",
    "unet": "UNet",
}
"""Our model name -> the name of its row."""


def matching_rows(config: Mapping[str, Any]) -> tuple[PatchRow | None, PixelRow | None]:
    """Return the rows of Table 2 and of Table 3 that a config's network has.

    Args:
        config: a resolved config (nested mappings); `model.name` is read.
    """
    model = config.get("model")
    name = MODELS.get(str(model.get("name"))) if isinstance(model, Mapping) else None
    patches = next((row for row in TABLE_2 if row.name == name), None)
    pixels = next((row for row in TABLE_3 if row.name == name), None)
    return patches, pixels


def jaccard_of(dice: float) -> float:
    """Return the Jaccard index of one mask from its Dice, D / (2 - D); per cent."""
    return 100 * dice / (200 - dice)


def f1_of(precision: float, recall: float) -> float:
    """Return equation 5: the harmonic mean of precision and sensitivity; per cent."""
    return 2 * precision * recall / (precision + recall)


def recall_of(precision: float, f_score: float) -> float:
    """Return the recall that gives this F-score with this precision; per cent."""
    return f_score * precision / (2 * precision - f_score)


def prevalence_of(precision: float, specificity: float, f_score: float) -> float:
    """Return which share of the samples is vertebra, from three scores of them; per cent.

    With recall R, precision is R p / (R p + (1 - SPE) (1 - p)), solved here for p.
    """
    false_alarms = precision * (100 - specificity)
    return 100 * false_alarms / (recall_of(precision, f_score) * (100 - precision) + false_alarms)


def accuracy_of(precision: float, specificity: float, f_score: float) -> float:
    """Return the accuracy that three scores of the same samples imply; per cent."""
    share = prevalence_of(precision, specificity, f_score) / 100
    return share * recall_of(precision, f_score) + (1 - share) * specificity


@dataclass(frozen=True)
class Implied:
    """A number of one row that others imply: `low` to `high` are what rounding leaves open."""

    name: str
    value: float
    low: float
    high: float
    printed: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the printed number may be the implied one."""
        return self.printed is not None and (
            self.low <= self.printed + _HALF and self.printed - _HALF <= self.high
        )


def _implied(
    row: _Named, formula: Callable[..., float], *values: float, printed: float | None = None
) -> Implied:
    # The formulas are monotonic in each of their values, so the extremes are at corners.
    corners = itertools.product(*((value - _HALF, value + _HALF) for value in values))
    ends = [formula(*corner) for corner in corners]
    return Implied(row.name, formula(*values), min(ends), max(ends), printed)


@dataclass(frozen=True)
class Findings:
    """What follows from the printed numbers, were each row one set of counts.

    * `jaccard`: JAC of Table 3 from its DSC, D / (2 - D);
    * `bf_is_dice`: rows of Table 3 whose BF-score, by equation 5 the F1 of pixels, is its DSC,
      which is the same formula;
    * `bf_mixed`: BF-score from Table 2's precision (of patches) and Table 3's sensitivity (of
      pixels), for the networks in both tables;
    * `recall`: recall from Table 2's F-score and precision; printed: Table 3's sensitivity;
    * `prevalence`: share of vertebra among the patches of each row of Table 2, by its PRE, SPE and
      F-score;
    * `accuracy`: ACC from the same three;
    * `differences`: (how many quoted differences agree with the tables, how many there are);
    * `dice_in_text`: (row, DSC in the text, DSC in Table 3) where the two differ.
    """

    jaccard: tuple[Implied, ...]
    bf_is_dice: int
    bf_mixed: tuple[Implied, ...]
    recall: tuple[Implied, ...]
    prevalence: tuple[Implied, ...]
    accuracy: tuple[Implied, ...]
    differences: tuple[int, int]
    dice_in_text: tuple[tuple[str, float, float], ...]


def findings() -> Findings:
    """Hold the numbers of paper B against each other."""
    pixels = {row.name: row for row in TABLE_3}
    both = [(row, pixels[row.name]) for row in TABLE_2 if row.name in pixels]
    patches = {row.name: row for row in TABLE_2}
    ours = "OP-convNet"

    def difference(name: str, measure: str) -> float:
        rows: Mapping[str, _Named] = pixels if measure == "dice" else patches
        return float(getattr(rows[ours], measure) - getattr(rows[name], measure))

    quoted = [
        abs(difference(name, measure) - points) < 1e-6
        for (name, measure), points in QUOTED_DIFFERENCES.items()
    ]
    three = [(row, (row.precision, row.specificity, row.f_score)) for row in TABLE_2]
    return Findings(
        jaccard=tuple(_implied(r, jaccard_of, r.dice, printed=r.jaccard) for r in TABLE_3),
        bf_is_dice=sum(row.bf_score == row.dice for row in TABLE_3),
        bf_mixed=tuple(
            _implied(patch, f1_of, patch.precision, pixel.sensitivity, printed=pixel.bf_score)
            for patch, pixel in both
        ),
        recall=tuple(
            _implied(patch, recall_of, patch.precision, patch.f_score, printed=pixel.sensitivity)
            for patch, pixel in both
        ),
        prevalence=tuple(_implied(row, prevalence_of, *values) for row, values in three),
        accuracy=tuple(
            _implied(row, accuracy_of, *values, printed=row.accuracy) for row, values in three
        ),
        differences=(sum(quoted), len(quoted)),
        dice_in_text=tuple(
            (name, dice, pixels[name].dice)
            for name, dice in QUOTED_DICE.items()
            if dice != pixels[name].dice
        ),
    )


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def why_not_comparable(phantom: bool = False) -> list[str]:
    """Return the reasons, a few sentences each, why a run's scores are not set against these.

    Args:
        phantom: the run's scans are synthetic.
    """
    found = findings()
    rows = len(found.jaccard)
    reasons = [
        "Paper B tests on five of the fifteen scans of the MICCAI CSI set, without saying which "
        "five. Nor does it say which VGG net, ResNet and DenseNet it trained."
    ]
    mixed = [item.name for item in found.bf_mixed if item.agrees]
    apart = [
        f"for {item.name} that would be {item.value:.1f}, not {item.printed}"
        for item in found.bf_mixed
        if not item.agrees
    ]
    reasons.append(
        "Its BF-score is no boundary score: equation 5 is the F1 of precision and sensitivity, "
        "which for pixels is DSC itself (equation 8), yet the two columns agree in "
        f"{found.bf_is_dice} of {rows} rows. For {_listed(mixed)} it is the precision of patches "
        f"(Table 2) with the sensitivity of pixels (Table 3); {_listed(apart)}. Ours are the true "
        "F1 of the boundaries, and equation 5 of pixels beside it."
    )
    far = [item for item in found.recall if not item.agrees and item.printed is not None]
    reasons.append(
        "Precision and F-score of Table 2 imply a recall of "
        f"{_listed([f'{item.value:.1f} % ({item.name})' for item in far])}; the sensitivities of "
        f"Table 3 are {_listed([f'{item.printed} %' for item in far])}. One is of patches, the "
        "other of pixels."
    )
    least = min(found.prevalence, key=lambda item: item.value)
    most = max(found.prevalence, key=lambda item: item.value)
    wrong = [
        f"the accuracy of {item.name} would be {item.value:.1f} %, not {item.printed} %"
        for item in found.accuracy
        if not item.agrees
    ]
    if least.high < most.low:
        reasons.append(
            f"Taken as counts over all test patches, the rows of Table 2 imply that "
            f"{least.value:.1f} % ({least.name}) to {most.value:.1f} % ({most.name}) of them are "
            "vertebra, further apart than rounding allows, where the same patches would give one "
            f"share{''.join(f'; {words}' for words in wrong)}."
        )
    off = [
        f"{item.printed} for {item.name} where DSC gives {item.value:.1f}"
        for item in found.jaccard
        if not item.agrees
    ]
    reasons.append(
        f"JAC is D / (2 − D) of the printed DSC in {rows - len(off)} of {rows} rows, as for one "
        f"count over all pixels, but {_listed(off)}. An average over cases may exceed that, but "
        "the paper does not say what it averages."
    )
    agree, quoted = found.differences
    slips = [
        f"the DSC of {name} is {text} in the text and {printed} in Table 3"
        for name, text, printed in found.dice_in_text
    ]
    reasons.append(
        f"The text agrees with the tables in {agree} of {quoted} differences that it quotes, but "
        f"{_listed(slips)}."
    )
    synthetic = "Published on real CT, ours on synthetic phantoms: other images, and easier ones."
    return [synthetic, *reasons] if phantom else reasons
