"""Sections of a run that classifies patches: class balance, confusion matrices, paper B's tables.

All text is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from spinejax.errors import InputError
from spinejax.reports import markup, published_b, tables, tables_b
from spinejax.reports.pictures import chosen_cases
from spinejax.reports.run import Run, read_json

_CLASSES = ("background", "vertebra")
_MANY_SCANS = 24


def class_distribution(run: Run) -> str:
    """Return how many patches of each class training had, before and after under-sampling.

    Figures 5 and 6 of paper B, from `<workdir>/patches.json`.
    """
    path = run.workdir / "patches.json"
    if not run.is_patches and not path.exists():
        return ""
    head = "<section><h2>Training patches</h2>"
    if not path.is_file():
        return (
            f'{head}<p class="nothing">There is no patches.json in this workdir: how many patches '
            "of each class there were is not recorded.</p></section>"
        )
    try:
        record = read_json(path)
        bars = _bars(record, str(path))
    except InputError as error:
        return f"{head}{markup.missing(error)}</section>"
    return f"{head}<p>{_how_sampled(record)}</p>{bars}</section>"


def _how_sampled(record: Mapping[str, Any]) -> str:
    cut = tables_b.how_cut(record)
    words = [f"Patches of {escape(cut)}." if cut else ""]
    rus, ratio = record.get("rus"), tables.finite(record.get("rus_ratio"))
    if rus == "none":
        words.append("No under-sampling: training sees every patch.")
    elif rus in ("once", "epoch"):
        when = "once, before training" if rus == "once" else "anew in each epoch"
        kept = "as many" if ratio == 1 else f"{ratio:g} times as many" if ratio else "some"
        words.append(
            "Random under-sampling leaves out background patches until there are at most "
            f"{kept} as vertebra patches; it is drawn {when}."
            if ratio
            else f"Background patches are under-sampled at random, {when}."
        )
    if record.get("split_unit") == "patch":
        words.append(
            "<b>Validation patches overlap training patches of the same scans</b> "
            "(split_unit = patch): their loss and accuracy flatter the network."
        )
    elif record.get("split_unit") == "scan":
        words.append("Validation patches come from other scans than training patches.")
    return " ".join(filter(None, words))


def _bars(record: Mapping[str, Any], path: str) -> str:
    stages = []
    for key, title in (
        ("before", "Before under-sampling"),
        ("after", "After under-sampling"),
        ("validation", "Validation"),
    ):
        found = [tables_b.whole(tables.item(record, key, name)) for name in _CLASSES]
        numbers = [value for value in found if value is not None]
        if len(numbers) == len(_CLASSES):
            stages.append((title, numbers))
    if not stages:
        raise InputError(f"{path}: has no counts of patches; train again to have it written")
    most = max(max(counts) for _, counts in stages) or 1
    parts = []
    for title, counts in stages:
        total = sum(counts)
        parts.append(
            f'<tr class="stage"><th scope="rowgroup" colspan="4">{title} '
            f"<small>{markup.count(total, 'patch', 'patches')}</small></th></tr>"
        )
        for name, value in zip(_CLASSES, counts, strict=True):
            share = f"{100 * value / total:.1f} %" if total else tables.DASH
            parts.append(
                f'<tr><th scope="row">{name}</th><td>{value:,}</td><td>{share}</td>'
                f'<td class="bar {name}"><i style="width:{100 * value / most:.2f}%"></i></td></tr>'
            )
    return f'<table class="bars"><tbody>{"".join(parts)}</tbody></table>'


def patch_scores(run: Run) -> str:
    """Return the patch level: confusion matrices (figure 13 of paper B) and a row per scan."""
    patches = run.patches.get(run.split or "")
    if patches is None:
        if not run.is_patches:
            return ""
        return (
            '<section><h2>Patches</h2><p class="nothing">There are no scores of patches '
            f"(patches.json) yet: {markup.command(run.workdir, 'evaluate')}</p></section>"
        )
    cases = tables_b.patch_cases(patches)
    cut = tables_b.how_cut(patches)
    header, rows = tables_b.patch_table(patches)
    fixed = 2 if len(cases) > 1 else 1
    body = [_row(row, "all" if i < fixed else "") for i, row in enumerate(rows)]
    if len(rows) - fixed > _MANY_SCANS:
        table = markup.table(header, body[:fixed]) + (
            f"<details><summary>Show {len(rows) - fixed} scans</summary>"
            f"{markup.table(header, body[fixed:])}</details>"
        )
    else:
        table = markup.table(header, body)
    return (
        f"<section><h2>Patches, {markup.count(len(cases), 'scan')}</h2><p>Each patch is one "
        "sample, right or wrong"
        f"{f' ({escape(cut)})' if cut else ''}; the scores above are of pixels."
        f"{_ceiling(patches)}</p>"
        f"{_confusions(patches)}<h3>Patches of every scan, worst first</h3>{table}</section>"
    )


def _ceiling(patches: Mapping[str, Any]) -> str:
    """Say what Dice the label rule allows, where it is a limit."""
    dice = patches.get("rule_dice")
    if not isinstance(dice, int | float) or isinstance(dice, bool) or not 0 <= dice < 1:
        return ""
    return (
        " Were every patch called rightly, the pixels would still reach a Dice of "
        f"{dice:.3f} only: the rule smooths the mask over half a patch."
    )


def _row(cells: Sequence[str], kind: str) -> str:
    name, *values = (escape(cell) for cell in cells)
    marked = f' class="{kind}"' if kind else ""
    return (
        f'<tr{marked}><th scope="row">{name}</th>'
        + "".join(f"<td>{value}</td>" for value in values)
        + "</tr>"
    )


def _confusions(patches: Mapping[str, Any]) -> str:
    cards = []
    balanced = patches.get("balanced_training")
    counts = tables_b.confusion(balanced)
    if counts is not None:
        total = tables_b.whole(tables.item(balanced, "of"))
        used = sum(counts)
        some = f"{used:,} of {total:,}" if total and total > used else f"all {used:,}"
        cards.append(_matrix("Balanced training", f"{some} patches", counts))
    for word, case, score in chosen_cases(tables_b.ranked_patches(patches)):
        counts = tables_b.confusion(tables_b.patch_cases(patches)[case])
        if counts is not None:
            cards.append(_matrix(word, f"{case}, F-score {score:.3f}", counts))
    if not cards:
        return '<p class="nothing">No scan has counts of patches to show.</p>'
    return (
        '<h3>Confusion matrices</h3><p class="nothing">Counts of patches, and shares of each row: '
        "of the patches that are vertebra (or background) in the reference, how many were called "
        f'so.</p><div class="confusions">{"".join(cards)}</div>'
    )


def _matrix(title: str, more: str, counts: tuple[int, int, int, int]) -> str:
    tp, fp, fn, tn = counts

    def cell(value: int, row: int, kind: str) -> str:
        share = value / row if row else 0.0
        shown = f"{100 * share:.1f} %" if row else tables.DASH
        return (
            f'<td class="{kind}" style="--share:{share:.3f}">{value:,}<small>{shown}</small></td>'
        )

    return (
        f'<figure class="confusion"><figcaption><b>{escape(title)}</b>'
        f"<span>{escape(more)}</span></figcaption><table><thead>"
        '<tr><th scope="col">reference</th><th scope="col" colspan="2">predicted</th></tr>'
        '<tr><td></td><th scope="col">vertebra</th><th scope="col">background</th></tr></thead>'
        f'<tbody><tr><th scope="row">vertebra</th>{cell(tp, tp + fn, "right")}'
        f'{cell(fn, tp + fn, "wrong")}</tr><tr><th scope="row">background</th>'
        f"{cell(fp, fp + tn, 'wrong')}{cell(tn, fp + tn, 'right')}</tr></tbody></table></figure>"
    )


def beside_paper_b(run: Run) -> str:
    """Return this run beside Tables 2 and 3 of paper B, and why that proves little; or ""."""
    split = run.split or "test"
    patches = tables_b.compare_patches(run.config, run.patches.get(split), split)
    pixels = tables_b.compare_pixels(run.config, run.evaluations.get(split), split)
    if not patches and not pixels:
        return ""
    parts = []
    if patches:
        header = ["per cent", *tables_b.TABLE_2_COLUMNS]
        parts.append("<h3>Patches (Table 2)</h3>" + markup.table(header, _compared(patches)))
    if pixels:
        header = ["per cent", *tables_b.TABLE_3_COLUMNS]
        parts.append("<h3>Pixels (Table 3)</h3>" + markup.table(header, _compared(pixels)))
    phantom = tables.is_phantom(run.config, split)
    reasons = "".join(
        f"<li>{escape(reason)}</li>" for reason in published_b.why_not_comparable(phantom)
    )
    unscored = (
        ""
        if any(row.ours for row in (*patches, *pixels))
        else f"<p>This run has no row yet: {markup.command(run.workdir, 'evaluate')}</p>"
    )
    return (
        f"<section><h2>Beside paper B</h2><p>{escape(published_b.PAPER_B)}, published these rows; "
        "the one of this network comes first. They are here for orientation; they may not be "
        f"compared with ours.</p>{unscored}{''.join(parts)}<h3>Why not</h3><ul>{reasons}</ul>"
        "</section>"
    )


def _compared(rows: Iterable[tables_b.ComparedB]) -> list[str]:
    html = []
    for row in rows:
        kind = "ours" if row.ours else "theirs matched" if row.matched else "theirs"
        cells = [f"<td>{tables_b.per_cent(value)}</td>" for value in row.values]
        if row.bf_printed is not None:
            cells[1:3] = [f'<td class="between" colspan="2">{row.bf_printed:.1f}</td>']
        data = f"<small>{escape(row.data)}</small>" if row.data else ""
        html.append(
            f'<tr class="{kind}"><th scope="row">{escape(row.who)}{data}</th>{"".join(cells)}</tr>'
        )
    return html
