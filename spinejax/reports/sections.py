"""The sections of a run's page, each a function from the run to HTML. All text is escaped."""

from collections.abc import Mapping
from datetime import datetime
from html import escape

from spinejax import __version__
from spinejax.reports import (
    charts,
    errors,
    facts,
    network_figures,
    patch_sections,
    pictures,
    slices,
    tables,
    tables_b,
    vertebra_sections,
)
from spinejax.reports.markup import command, count, table
from spinejax.reports.run import Run
from spinejax.reports.style import CSS
from spinejax.train import log

_SPLIT_WORDS = {
    "test": ("held-out", "never seen in training"),
    "val": ("validation", "used to choose the best checkpoint"),
    "train": ("training", "the network was trained on these very scans"),
}


def page(run: Run, before: Run | None = None) -> str:
    """Return the whole page of a run as one HTML document that loads nothing.

    Its errors are compared with those of `before`, which `errors.check_before` accepts.
    """
    name = str(run.config.get("name") or run.workdir.resolve().name)
    title = headline(run)
    # A line must not break inside the hyphenated word.
    shown = escape(title).replace("held-out", '<span class="whole">held-out</span>')
    body = [
        f'<header><p class="kind">{escape(name)} · {escape(str(run.workdir))}</p>'
        f"<h1>{shown}</h1>{_lead(run)}{_key_figures(run)}{_notes(run)}</header>",
        scores(run),
        vertebra_sections.vertebrae(run),
        patch_sections.patch_scores(run),
        pictures.best_median_worst(run),
        errors.where_it_errs(run, before),
        slices.best_and_worst_slices(run),
        every_case(run),
        patch_sections.class_distribution(run),
        training(run),
        network_figures.network_section(run),
        beside_papers(run),
        facts.what_ran(run),
        f"<footer>Written by spinejax {escape(__version__)}, {datetime.now():%Y-%m-%d %H:%M}. "
        "For research; not a medical device.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}: {escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, body))}\n</main></body></html>\n"
    )


def headline(run: Run) -> str:
    """Return the run's result in one line."""
    if run.split is None:
        return "Not scored yet"
    values = [value for _, value in tables.ranked(run.evaluations[run.split])]
    if not values:
        return "Evaluated, but no scan has a Dice"
    kind = _SPLIT_WORDS.get(run.split, (run.split, ""))[0]
    seen = len(_trained_on(run))
    if seen:
        kind = f"{run.split}"
    synthetic = "synthetic " if tables.is_phantom(run.config, run.split) else ""
    if run.split in tables.OWN_SPLITS:
        scans = count(len(values), f"{kind} {synthetic}scan")
    else:
        scans = f"{count(len(values), 'scan')} of “{run.split}”"
    return f"Mean Dice {_mean(values):.2f} on {scans}" + (
        f", {seen} of them trained on" if seen else ""
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _lead(run: Run) -> str:
    if run.split is None:
        return f'<p class="lead">To score it, run {command(run.workdir, "evaluate")}.</p>'
    ranked = tables.ranked(run.evaluations[run.split])
    means = _SPLIT_WORDS.get(run.split, ("", ""))[1]
    words = []
    if len(ranked) > 1:
        (worst, low), (best, high) = ranked[0], ranked[-1]
        words.append(f"From {low:.2f} ({escape(worst)}) to {high:.2f} ({escape(best)}).")
    if means and not _trained_on(run):
        words.append(f"{escape(run.split.capitalize())} scans: {escape(means)}.")
    return f'<p class="lead">{" ".join(words)}</p>'


def _key_figures(run: Run) -> str:
    items: list[tuple[str, str, str]] = []
    if run.split is not None:
        rows = {row.metric.key: row for row in tables.summarise(run.evaluations[run.split])}
        for key, name in (("dice", "Dice"), ("hd95_mm", "HD95"), ("recall", "Recall")):
            if key in rows:
                row = rows[key]
                unit = " mm" if row.metric.unit == "mm" else ""
                value = tables.shown(row.mean, row.metric) + unit
                spread = tables.shown(row.std, row.metric)
                items.append((f"{name}, mean", value, f"± {spread}"))
        patches = run.patches.get(run.split, {})
        score, right = (tables_b.pooled(patches, key) for key in ("f_score", "accuracy"))
        if score is not None:
            more = "" if right is None else f"accuracy {right:.3f}"
            items.append(("Patches, F-score", f"{score:.3f}", more))
    named = vertebra_sections.scores_of(run) or {}
    if isinstance(named.get("id_rate"), float):
        dice = tables.finite(named.get("dice_mean"))
        more = "" if dice is None else f"Dice of a vertebra {dice:.3f}"
        items.append(("Vertebrae named right", f"{100 * named['id_rate']:.0f} %", more))
    if run.parameters is not None:
        items.append(("Parameters", f"{run.parameters:,}", ""))
    seconds = run.record.get("seconds")
    if isinstance(seconds, int | float):
        items.append(("Training took", facts.duration(seconds), ""))
    if not items:
        return ""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(more)}</small></dd></div>"
        for name, value, more in items
    )
    return f'<dl class="key-figures">{cells}</dl>'


def _trained_on(run: Run) -> list[str]:
    """Return the scored cases that training saw although their split is not "train"."""
    if run.split in (None, "train"):
        return []
    pooled = tables.item(run.config, "data", "patches", "split_unit") == "patch"
    seen: set[str] = set()
    for name in ("train", "val") if pooled and run.is_patches else ("train",):
        recorded = tables.item(run.record, "cases", name)
        seen |= set(map(str, recorded)) if isinstance(recorded, list) else set()
    scored = run.evaluations[run.split or ""].get("cases") or {}
    return sorted(seen & set(scored))


def _unscored(run: Run) -> str:
    """Name the cases that a score file lists as missing, if any."""
    if run.split is None:
        return ""
    missing = run.evaluations[run.split].get("missing")
    found = [
        f"{case} (no {kind})"
        for kind, ids in (missing.items() if isinstance(missing, Mapping) else ())
        for case in ids
    ]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _notes(run: Run) -> str:
    notes = []
    both = _trained_on(run)
    if both:
        names = ", ".join(both[:5]) + (f" and {len(both) - 5} more" if len(both) > 5 else "")
        notes.append(
            f"<b>Not held out:</b> {escape(names)} "
            f"{'was' if len(both) == 1 else 'were'} also trained on. These scores say how well "
            "the run remembers, not how well it generalises."
        )
    if run.split not in (None, *tables.OWN_SPLITS) and tables.is_phantom(run.config):
        notes.append(
            f"<b>Trained on phantoms alone:</b> the scans of {escape(str(run.split))} are others, "
            "and training saw none of them."
        )
    elif tables.is_phantom(run.config):
        notes.append(
            "<b>Synthetic scans:</b> these are phantoms. The scores show that the program works; "
            "they say nothing about patients."
        )
    unscored = _unscored(run)
    if unscored:
        notes.append(f"<b>Not scored:</b> {escape(unscored)}.")
    if not run.finished:
        notes.append("<b>Training has not finished:</b> the same command on this workdir resumes.")
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def scores(run: Run) -> str:
    """Return the score tables: every metric with its spread over the scans."""
    if run.split is None:
        return (
            '<section><h2>Scores</h2><p class="nothing">No scan has been scored yet. Run '
            f"{command(run.workdir, 'evaluate')}, then the report again.</p></section>"
        )
    parts = []
    for split, record in run.evaluations.items():
        number = len(record.get("cases") or {})
        title = "Scores" if split == run.split else f"Scores on the {split} split"
        parts.append(f"<h2>{escape(title)}, {count(number, 'scan')}</h2>")
        if split == run.split:
            parts.append(charts.dot_chart(tables.ranked(record), "Dice"))
        rows = []
        for row in tables.summarise(record):
            metric = row.metric
            name = metric.name + (", mm" if metric.unit == "mm" else "")
            cells = [
                f"{tables.shown(row.mean, metric)} ± {tables.shown(row.std, metric)}",
                tables.shown(row.median, metric),
                f"{tables.shown(row.low, metric)} to {tables.shown(row.high, metric)}",
                tables.shown(row.pooled, metric),
                f"{row.cases}",
            ]
            rows.append(
                f'<tr><th scope="row">{escape(name)}<small>{escape(metric.hint)}</small></th>'
                + "".join(f"<td>{cell}</td>" for cell in cells)
                + "</tr>"
            )
        parts.append(
            table(["", "mean ± std", "median", "lowest to highest", "pooled", "scans"], rows)
        )
    parts.append(
        '<p class="nothing">Mean, standard deviation and median over scans; pooled: from the '
        "voxels of all scans together. A scan where a metric is not defined (a distance to an "
        "empty mask) is left out of that metric and of its count.</p>"
    )
    return f"<section>{''.join(parts)}</section>"


def every_case(run: Run) -> str:
    """Return one row per scan, the worst first."""
    if run.split is None:
        return ""
    record = run.evaluations[run.split]
    order = [case for case, _ in tables.ranked(record)]
    order = [case for case in record.get("cases") or {} if case not in order] + order
    if not order:
        return ""
    by_key = {metric.key: metric for metric in tables.METRICS}
    columns = [by_key[key] for key in tables.CASE_COLUMNS if tables.case_values(record, key)]
    values = {metric.key: tables.case_values(record, metric.key) for metric in columns}
    rows = [
        f'<tr><th scope="row">{escape(case)}</th>'
        + "".join(f"<td>{tables.shown(values[m.key].get(case), m)}</td>" for m in columns)
        + "</tr>"
        for case in order
    ]
    header = ["scan", *(m.name + (", mm" if m.unit == "mm" else "") for m in columns)]
    shown = table(header, rows)
    if len(rows) > 24:
        shown = f"<details><summary>Show {len(rows)} scans</summary>{shown}</details>"
    return f"<section><h2>Every scan, worst first</h2>{shown}</section>"


def training(run: Run) -> str:
    """Return the training curves, the lowest validation loss marked."""
    records = log.read_metrics(run.workdir)
    if not records:
        return (
            '<section><h2>Training</h2><p class="nothing">There is no training record '
            "(metrics.jsonl) in this workdir.</p></section>"
        )
    lowest, best = charts.lowest_loss(records), None
    if lowest is not None:
        step, loss = lowest
        every = tables.finite(tables.item(run.config, "train", "eval_every_epochs"))
        epoch = charts.epoch_of(records, step, every) if every else None
        when = f"step {step:,.0f}" if epoch is None else f"epoch {epoch:g} (step {step:,.0f})"
        kept = tables.item(run.config, "train", "best") == "loss"
        best = (
            step,
            f"lowest validation loss {loss:.3g}, {when}{'; its network is kept' if kept else ''}",
        )
    drawn = charts.curves(records, "F-score" if run.is_patches else "Dice", best)
    second = log.read_metrics(run.workdir / "vertebrae")
    if second:
        drawn += f"<h3>Training of the second network</h3>{charts.curves(second)}"
    return (
        f"<section><h2>Training</h2>{drawn}"
        '<p class="nothing">Training values are those of the batches just before each step, '
        "faint, with their running mean; the number beside a name is its last value.</p></section>"
    )


def beside_papers(run: Run) -> str:
    """Return this run beside the rows that the papers have for its network."""
    found = [*filter(None, (beside_paper(run), patch_sections.beside_paper_b(run)))]
    return "".join(found) or (
        '<section><h2>Beside the papers</h2><p class="nothing">Neither paper A (Saeed et al., '
        "Diagnostics 2023, 13, 2658) nor paper B (Qadri et al., IEEE Access 2021) has a row for "
        "this network and setting.</p></section>"
    )


def beside_paper(run: Run) -> str:
    """Return this run beside the rows of paper A, and why that proves little; "" without rows."""
    split = run.split or "test"
    rows = tables.compare(run.config, run.evaluations.get(split), run.parameters, split)
    if all(row.ours for row in rows):
        return ""
    html = []
    for row in rows:
        if row.iou_unstated is not None:
            iou = (
                f'<td class="between" colspan="2"><b>{tables.percent(row.iou_unstated)}</b> '
                "unstated which</td>"
            )
        else:
            iou = "".join(
                f"<td>{tables.percent(value)}</td>" for value in (row.iou, row.miou_with_background)
            )
        source = f", {row.source}" if row.source else ""
        parameters = tables.DASH if row.parameters is None else f"{row.parameters:,}"
        html.append(
            f'<tr class="{"ours" if row.ours else "theirs"}"><th scope="row">{escape(row.who)}'
            f"<small>{escape(row.data + source)}</small></th><td>{tables.percent(row.dice)}</td>"
            f"{iou}<td>{tables.percent(row.precision)}</td><td>{tables.percent(row.recall)}</td>"
            f"<td>{parameters}</td></tr>"
        )
    header = ["per cent", "Dice", "IoU", "IoU with background", "precision", "recall", "parameters"]
    reasons = "".join(
        f"<li>{escape(reason)}</li>" for reason in tables.reasons_apart(run.config, split)
    )
    unscored = (
        ""
        if any(row.ours for row in rows)
        else (f"<p>This run has no row yet: {command(run.workdir, 'evaluate')}</p>")
    )
    return (
        "<section><h2>Beside paper A</h2><p>Saeed et al., Diagnostics 2023, 13, 2658, published "
        "these rows for this network and setting. They are here for orientation; they may not be "
        f"compared with ours.</p>{unscored}{table(header, html)}"
        f"<h3>Why not</h3><ul>{reasons}</ul></section>"
    )
