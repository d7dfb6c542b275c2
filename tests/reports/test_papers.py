"""The published tables against the text of the papers, and the arithmetic behind our remarks.

The remarks (why a cell is doubtful, why scores may not be compared) stand in published.json. These
tests compute them from the printed numbers.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import pytest

from spinejax.reports import papers

FILES = {"saeed2023": "000_*.txt", "qadri2021": "001_*.txt"}


@pytest.fixture(scope="module")
def texts(real_data):
    """Short name of a paper -> its text, cells of its tables parted by tabs."""
    found = {
        name: sorted((real_data.parent / "papers").glob(pattern)) for name, pattern in FILES.items()
    }
    if not all(found.values()):
        pytest.skip("the texts of the papers are not here")
    return {name: paths[0].read_text(encoding="utf-8") for name, paths in found.items()}


def printed(text, number):
    """Header and rows of a table; a cell that stands for those below it is repeated."""
    text = re.sub(r"</?b>|\$|(?<=\d)\s(?=%)", "", text)
    text = re.sub(r"(?<![\w-])-(?=\d)", "−", text)
    caption = rf"^\**(?:Table|TABLE) {number}\.(?:\**.*|\** Cont\.)\n+((?:.*\t.*\n)+)"
    blocks = [block.splitlines() for block in re.findall(caption, text, re.MULTILINE)]
    header, rows = blocks[0][0].split("\t"), []
    for line in (line for block in blocks for line in block[1:]):
        cells = line.split("\t")
        if not any(cells[2:]):  # the second line of a cell
            rows[-1][1] += f" {cells[1]}"
            continue
        if not cells[0]:
            cells[0] = rows[-1][0]
        rows.append(cells)
    return header, rows


def by_network(row):
    """The rows of the networks that a row of Table 11 names; one that is named twice has one."""
    reference, networks, *others, dice = row
    found = {}
    for network, value in zip(networks.split(", "), dice.split(", "), strict=True):
        found[network] = f"{found[network]}, {value}" if network in found else value
    return [[reference, network, *others, value] for network, value in found.items()]


@pytest.mark.parametrize("name", papers.tables())
def test_every_cell_is_the_printed_one(texts, name):
    table = papers.tables()[name]
    header, rows = printed(texts[table.paper], table.number)
    ours = [list(row) for row in table.rows]
    if name == "saeed2023_table11":
        # Rows of several networks there, a row for each of them here.
        rows = [cells for row in rows for cells in by_network(row)]
        assert header == ["Reference", "Methodology", *table.columns]
    else:
        assert header == [*table.labels, *table.columns]
    assert ours == [[cell.strip() for cell in row] for row in rows]


def test_all_tables_of_results_are_there():
    names = [f"saeed2023_table{n}" for n in range(3, 12)]
    assert list(papers.tables()) == [*names, "qadri2021_table2", "qadri2021_table3"]
    for table in papers.tables().values():
        assert len(table.columns) == len(table.metrics)
        places = [table.place(row) for row in table.rows]
        assert len(set(places)) == len(places)
        assert {len(row) for row in table.rows} == {len(table.labels) + len(table.columns)}
        for row, column in itertools.chain(*table.doubts.values()):
            assert row < len(table.rows) and column < len(table.columns)


def test_papers_are_cited_as_they_name_themselves(texts):
    assert papers.citation("qadri2021").rpartition(" ")[2] in texts["qadri2021"]
    assert "Saeed" in texts["saeed2023"] and "Saeed" in papers.citation("saeed2023")


def test_reasons_say_phantom_only_for_phantoms():
    for paper in FILES:
        for quoted in (False, True) if paper == "saeed2023" else (False,):
            reasons = papers.reasons(paper, phantom=False, quoted=quoted)
            first, *others = papers.reasons(paper, phantom=True, quoted=quoted)
            assert others == reasons and "phantoms" in first
            assert "phantom" not in " ".join(reasons)


def doubted(table, words):
    """Cells that a reason with these words marks."""
    return {cell for why, cells in table.doubts.items() if words in why for cell in cells}


# Paper A.


def rows_of_a():
    """(table, row number, DSC, IoU, precision, recall) of Tables 3 to 10."""
    return [
        (table, at, *map(float, table.cells(row)))
        for table in papers.tables().values()
        if table.paper == "saeed2023" and table.system
        for at, row in enumerate(table.rows)
    ]


def jaccard_of(dice):
    """Jaccard index of one mask from its Dice, D / (2 - D); per cent."""
    return 100 * dice / (200 - dice)


def test_tables_3_to_10_have_sixty_rows_of_percentages():
    numbers = [table.number for table, *_ in rows_of_a()]
    assert {n: numbers.count(n) for n in numbers} == {
        **dict.fromkeys((3, 4, 5, 6, 7, 8), 8),
        9: 4,
        10: 8,
    }
    assert all(80 < value < 100 for _, _, *values in rows_of_a() for value in values)


def test_rows_that_paper_a_prints_twice_agree():
    """Tables 9 and 10 repeat the best rows of Tables 3 to 8: a slip of typing would show."""
    origin = {
        ("CHASPPRAU-Net", "Image Normalization"): 3,
        ("CHASPPRAU-Net", "Data Augmentation"): 5,
        ("3D MRU-Net", "Image Normalization"): 4,
        ("3D MRU-Net", "Data Augmentation"): 6,
        ("3D MRU-Net", "Residual Blocks"): 7,
        ("3D MRU-Net", "Dropout Regularization"): 8,
    }
    for number in (9, 10):
        table = papers.tables()[f"saeed2023_table{number}"]
        for data, setting, *cells in table.rows:
            other = papers.tables()[f"saeed2023_table{origin[table.system, setting]}"]
            [same] = [r for r in other.rows if r[:2] == (data, "−1000 to 800")]
            assert list(other.cells(same)) == cells


def test_scores_of_paper_a_contradict_themselves_cell_by_cell_as_marked():
    for table, at, dice, iou, precision, recall in rows_of_a():
        below = dice < min(precision, recall)
        impossible = dice < precision + recall - 100  # for masks, and so for their means
        # One mask has a Dice between precision and recall and an IoU of D / (2 - D).
        assert ((at, 0) in doubted(table, "precision + recall − 100")) == impossible
        assert ((at, 0) in doubted(table, "below both")) == (below and not impossible)
        # IoU <= Dice holds for masks, and so for their means.
        assert ((at, 1) in doubted(table, "IoU is above DSC")) == (iou > dice)
        # Two decimals of both explain 0.02 points.
        apart = abs(iou - jaccard_of(dice)) > 0.02 and iou <= dice
        assert ((at, 1) in doubted(table, "its value for a single mask")) == apart


def test_the_reasons_of_paper_a_have_the_counts_of_its_tables():
    values = np.array([numbers for _, _, *numbers in rows_of_a()])
    dice, iou, precision, recall = values.T
    implied = jaccard_of(dice)
    nearest = np.abs(iou - implied).min()
    two_class = np.abs(iou - (implied + 99.5) / 2).mean()
    words = " ".join(papers.reasons("saeed2023", phantom=False))
    for part in (
        f"above Dice in {(iou > dice).sum()} of the {len(dice)} rows",
        f"within {int(nearest)} points",
        f"below both in {(dice < np.minimum(precision, recall)).sum()} of {len(dice)} rows",
        f"printed below that in {(dice < precision + recall - 100).sum()} rows",
        f"would be {two_class:.1f} points, against {np.abs(iou - implied).mean():.1f} points",
        f"{(2 * iou - implied > 100).sum()} rows would need",
    ):
        assert part in words, part


def test_the_bounds_that_the_contradictions_use_hold_for_masks_and_their_averages():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(500):
        truth, guess = generator.random((2, 12)) < generator.random((2, 1))
        tp = np.sum(truth & guess)
        if not truth.any() or not guess.any():
            continue
        found.append(
            (
                2 * tp / (truth.sum() + guess.sum()),
                tp / (truth | guess).sum(),
                tp / guess.sum(),
                tp / truth.sum(),
            )
        )
    dice, iou, precision, recall = np.array(found).T
    np.testing.assert_allclose(iou, dice / (2 - dice), atol=1e-12)
    assert (dice >= np.minimum(precision, recall) - 1e-12).all()
    assert (dice >= precision + recall - 1 - 1e-12).all()
    groups = np.array(found)[: len(found) // 7 * 7].reshape(-1, 7, 4).mean(axis=1)
    assert (groups[:, 1] <= groups[:, 0]).all()
    assert (groups[:, 0] >= groups[:, 2] + groups[:, 3] - 1).all()
    assert (groups[:, 0] < groups[:, 2:].min(axis=1)).any()  # which averages can do


# Paper B: every number is printed with one decimal, so half a unit of it is open.

HALF = 0.05

QUOTED_DIFFERENCES = {
    **{
        (system, measure): value
        for system, values in (
            ("VGG net", (20.0, 0.8, 0.2, 8.3)),
            ("ResNet", (13.9, 0.5, 0.1, 5.7)),
            ("DenseNet", (8.0, 0.3, 0.2, 2.7)),
        )
        for measure, value in zip(("PRE", "SPE", "ACC", "F-score"), values, strict=True)
    },
    ("MultiResuNet", "DSC"): 5.0,
    ("VGG net", "DSC"): 8.0,
    ("ResNet", "DSC"): 5.4,
    ("DenseNet", "DSC"): 2.5,
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


def rows_of_b(number):
    """Name of a row -> column -> number, of Table 2 or 3."""
    table = papers.tables()[f"qadri2021_table{number}"]
    columns = [column.removesuffix(" (%)") for column in table.columns]
    names = [papers.short_name(row[len(table.labels) - 1]) for row in table.rows]
    return {
        name: dict(zip(columns, map(float, table.cells(row)), strict=True))
        for name, row in zip(names, table.rows, strict=True)
    }


def f1_of(precision, recall):
    """Equation 5: the harmonic mean of precision and sensitivity."""
    return 2 * precision * recall / (precision + recall)


def recall_of(precision, f_score):
    """The recall that gives this F-score with this precision."""
    return f_score * precision / (2 * precision - f_score)


def prevalence_of(precision, specificity, f_score):
    """The share of vertebra: precision is R p / (R p + (1 - SPE) (1 - p)), solved for p."""
    false_alarms = precision * (100 - specificity)
    return 100 * false_alarms / (recall_of(precision, f_score) * (100 - precision) + false_alarms)


def accuracy_of(precision, specificity, f_score):
    """The accuracy that three scores of the same samples imply."""
    share = prevalence_of(precision, specificity, f_score) / 100
    return share * recall_of(precision, f_score) + (1 - share) * specificity


@dataclass(frozen=True)
class Implied:
    """A number that others imply: `low` to `high` are what rounding leaves open."""

    value: float
    low: float
    high: float

    def agrees(self, number):
        """Whether the printed number may be the implied one."""
        return self.low <= number + HALF and number - HALF <= self.high


def implied(formula, *values):
    # The formulas are monotonic in each of their values, so the extremes are at corners.
    corners = itertools.product(*((value - HALF, value + HALF) for value in values))
    ends = [formula(*corner) for corner in corners]
    return Implied(formula(*values), min(ends), max(ends))


def three(row):
    return row["PRE"], row["SPE"], row["F-score"]


def test_the_formulas_are_those_of_counts():
    generator = np.random.default_rng(0)
    for tp, fp, fn, tn in generator.integers(1, 1000, (200, 4)).astype(float):
        precision, recall = 100 * tp / (tp + fp), 100 * tp / (tp + fn)
        specificity, dice = 100 * tn / (tn + fp), 200 * tp / (2 * tp + fp + fn)
        total = tp + fp + fn + tn
        assert jaccard_of(dice) == pytest.approx(100 * tp / (tp + fp + fn))
        assert f1_of(precision, recall) == pytest.approx(dice)
        assert recall_of(precision, dice) == pytest.approx(recall)
        scores = precision, specificity, dice
        assert prevalence_of(*scores) == pytest.approx(100 * (tp + fn) / total)
        assert accuracy_of(*scores) == pytest.approx(100 * (tp + tn) / total)


def test_what_rounding_leaves_open_is_not_wider_than_said():
    """The bounds come from the corners; nothing inside the box may leave them."""
    generator = np.random.default_rng(1)
    for row in rows_of_b(2).values():
        share, accuracy = implied(prevalence_of, *three(row)), implied(accuracy_of, *three(row))
        for values in np.array(three(row)) + generator.uniform(-HALF, HALF, (500, 3)):
            assert share.low <= prevalence_of(*values) <= share.high
            assert accuracy.low <= accuracy_of(*values) <= accuracy.high


def test_paper_b_contradicts_itself_as_stated():
    patches, pixels = rows_of_b(2), rows_of_b(3)
    table_2, table_3 = (papers.tables()[f"qadri2021_table{n}"] for n in (2, 3))
    words = " ".join(papers.reasons("qadri2021", phantom=False))
    names = list(pixels)

    # JAC is D / (2 - D), but for two rows.
    jaccard = {name: implied(jaccard_of, row["DSC"]) for name, row in pixels.items()}
    apart = [name for name in names if not jaccard[name].agrees(pixels[name]["JAC"])]
    assert apart == ["VGG net", "OP-convNet"]
    assert f"In {len(names) - len(apart)} of {len(names)} rows JAC is" in words
    for name in apart:
        value = f"{jaccard[name].value:.1f}"
        assert f"{name} ({pixels[name]['JAC']}, where DSC gives {value})" in words
        assert doubted(table_3, f"would be {value}") == {(names.index(name), 2)}

    # The BF-score is the F1 of precision of patches and sensitivity of pixels.
    same = sum(row["BF-score"] == row["DSC"] for row in pixels.values())
    assert f"the two columns agree in {same} of {len(names)} rows" in words
    assert doubted(table_3, "not of boundaries") == {(at, 1) for at in range(len(names))}
    mixed = {n: implied(f1_of, row["PRE"], pixels[n]["SEN"]) for n, row in patches.items()}
    apart = [n for n, value in mixed.items() if not value.agrees(pixels[n]["BF-score"])]
    assert apart == ["ResNet"]
    assert f"would be {mixed['ResNet'].value:.1f}, not {pixels['ResNet']['BF-score']}" in words

    # Table 2 implies another recall than Table 3 prints.
    recall = {n: implied(recall_of, row["PRE"], row["F-score"]) for n, row in patches.items()}
    apart = [n for n, value in recall.items() if not value.agrees(pixels[n]["SEN"])]
    assert apart == ["VGG net", "ResNet", "DenseNet"]
    for name in apart:
        value = f"{recall[name].value:.1f}"
        assert f"{value} % ({name})" in words and f"{pixels[name]['SEN']} %" in words
        assert doubted(table_3, f"Table 2 implies {value}") == {(names.index(name), 0)}

    # The share of vertebra differs from row to row, and one accuracy does not follow.
    shares = {n: implied(prevalence_of, *three(row)) for n, row in patches.items()}
    pairs = itertools.combinations(("VGG net", "ResNet", "DenseNet", "OP-convNet"), 2)
    assert all(shares[a].high < shares[b].low for a, b in pairs)
    assert f"{shares['VGG net'].value:.1f} % (VGG net) to " in words
    assert f"{shares['OP-convNet'].value:.1f} % (OP-convNet)" in words
    accuracy = {n: implied(accuracy_of, *three(row)) for n, row in patches.items()}
    apart = [n for n, value in accuracy.items() if not value.agrees(patches[n]["ACC"])]
    assert apart == ["DenseNet"]
    value = f"{accuracy['DenseNet'].value:.1f}"
    assert f"accuracy of DenseNet would be {value} %, not {patches['DenseNet']['ACC']} %" in words
    assert doubted(table_2, f"imply {value}") == {(list(patches).index("DenseNet"), 2)}

    # The text quotes differences that agree, and one DSC that does not.
    agree = sum(
        abs((pixels if m == "DSC" else patches)["OP-convNet"][m]
            - (pixels if m == "DSC" else patches)[name][m] - points) < 1e-6
        for (name, m), points in QUOTED_DIFFERENCES.items()
    )  # fmt: skip
    assert f"in {agree} of {len(QUOTED_DIFFERENCES)} differences" in words
    apart = [name for name, dice in QUOTED_DICE.items() if dice != pixels[name]["DSC"]]
    assert apart == ["D-TVNet"] and "D-TVNet is 86.17 in the text and 86.7 in Table 3" in words
    assert doubted(table_3, "the text says 86.17") == {(names.index("D-TVNet"), 3)}
    assert len(doubted(table_2, "")) == 1 and len(doubted(table_3, "")) == 10 + 3 + 2 + 1


def test_what_the_text_of_paper_b_quotes_is_quoted_so(texts):
    text, quoted = texts["qadri2021"], QUOTED_DIFFERENCES
    measures = ("PRE", "SPE", "ACC", "F-score")
    groups = [
        "(" + ", ".join(f"{quoted[name, measure]:g}%" for measure in measures) + ")"
        for name in ("VGG net", "ResNet", "DenseNet")
    ]
    assert ", ".join(groups[:2]) + f", and {groups[2]} average in (PRE, SPE, ACC, F-score)" in text
    dice = [f"{quoted[name, 'DSC']:g}%" for name in ("VGG net", "ResNet", "DenseNet")]
    assert f"{dice[0]}, {dice[1]}, and {dice[2]} average in DSC" in text
    assert f"improvement of {quoted['MultiResuNet', 'DSC']:g}% DSC" in text
    for words in (
        "achieved 83.7% of Dice",
        "mean DSC of 86.17%",
        "(89.8% DSC)",
        "a mean DSC of 87.3%",
        "achieved an 86.1% DSC",
        "(89.9% DSC)",
    ):
        assert words in text
    assert sorted(QUOTED_DICE.values()) == [83.7, 86.1, 86.17, 87.3, 89.8, 89.9]
