"""One self-contained HTML page for a run: no script, and the browser loads nothing else.

This module turns a run into plain data; the templates turn the data into HTML.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spinejax import files
from spinejax.errors import InputError
from spinejax.metrics.body_centres import body_centres
from spinejax.reports import (
    charts,
    figures,
    html,
    mistakes_section,
    network_section,
    normalisation_section,
    patches_section,
    pyramid_section,
    slices_section,
    tables,
)
from spinejax.reports.run import Run, read_run
from spinejax.reports.tables import count, finite, item
from spinejax.training import log

_SPLIT_WORDS = {
    "test": ("held-out", "never seen in training"),
    "val": ("validation", "used to choose the best checkpoint"),
    "train": ("training", "the network was trained on these very scans"),
}
_TITLES = {
    "scans": "Pictures",
    "names": "Names",
    "scores": "Scores",
    "mistakes": "Errors",
    "slices": "Slices",
    "cases": "Scans",
    "patches": "Patches",
    "balance": "Training patches",
    "training": "Training",
    "network": "Network",
    "normalisation": "Input",
    "pyramid": "Pyramid",
    "papers": "Papers",
    "facts": "What ran",
}
"""Section (a template of that name) -> its title in the navigation, in the order of the page."""

_PICTURE_BYTES = 400_000  # of the JPEGs of one scan
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


class KeyFigure(NamedTuple):
    """A number at the top of the page: its name, its value, and words beside it."""

    title: str
    value: str
    more: str = ""


def write_report(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    before: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the page of a run, and its tables as Markdown and CSV beside it.

    Args:
        workdir: of `spinejax train`; the page says what is missing in it (evaluation, record).
        output: the HTML file; by default `<workdir>/report.html`. The tables get its name with .md
            and .csv.
        before: workdir of an earlier run to compare errors with.
        overwrite: replace files that this program did not write, too.

    Returns:
        The HTML file.

    Raises:
        InputError: `workdir` or `before` is missing, is not a run or holds damaged files; the two
            share no evaluation; `output` is no HTML file or cannot be written.
    """
    run = read_run(files.expanded(workdir))
    output = run.workdir / "report.html" if output is None else files.expanded(output)
    html.check_outputs(output, (".md", ".csv") if run.evaluations else (), overwrite=overwrite)
    page = render(run, None if before is None else _earlier(run, before))
    try:
        files.write_text(output, page, "report", overwrite=overwrite)
        if run.evaluations:
            text = tables.tables_markdown(run.config, run.evaluations, run.patches, run.parameters)
            files.write_text(output.with_suffix(".md"), text, "report", overwrite=overwrite)
            csv = tables.tables_csv(run.evaluations, run.patches)
            files.write_text(output.with_suffix(".csv"), csv, "report", overwrite=overwrite)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from None
    return output


def _earlier(run: Run, before: str | os.PathLike[str]) -> Run:
    try:
        earlier = read_run(files.expanded(before))
    except InputError as error:
        raise InputError(f"--before: {error}") from None
    mistakes_section.check_before(run, earlier)
    return earlier


def render(run: Run, before: Run | None = None) -> str:
    """Return the page of a run, its errors compared with those of an earlier run."""
    split = run.split or "test"
    sections = {
        "scans": scans(run),
        "names": names(run),
        "scores": scores(run),
        "mistakes": mistakes_section.section(run, before),
        "slices": slices_section.section(run),
        "cases": tables.case_table(run.scores) if run.scores.get("cases") else None,
        "patches": patches_section.scores_section(run),
        "balance": patches_section.balance_section(run),
        "training": training(run),
        "network": network_section.section(run),
        "normalisation": normalisation_section.section(run),
        "pyramid": pyramid_section.section(run),
        "papers": [
            beside
            for beside in (
                tables.beside_paper_a(run.config, run.scores, run.parameters, split),
                tables.beside_paper_b(run.config, run.scores, run.patches.get(split), split),
            )
            if beside is not None
        ],
        "facts": facts(run),
    }
    always = "scores", "papers", "facts"
    navigation = [(id, t) for id, t in _TITLES.items() if sections[id] or id in always]
    return html.render(
        "page.html",
        run=run,
        name=str(run.config.get("name") or run.workdir.resolve().name),
        headline=headline(run),
        lead=lead(run),
        key_figures=key_figures(run),
        notes=notes(run),
        navigation=navigation,
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
        window=figures.window_words(),
        **sections,
    )


def headline(run: Run) -> str:
    """Return the run's result in one line."""
    if run.split is None:
        return "Not scored yet"
    values = [value for _, value in tables.ranked(run.scores)]
    if not values:
        return "Evaluated, but no scan has a Dice"
    kind = _SPLIT_WORDS.get(run.split, (run.split, ""))[0]
    seen = len(_trained_on(run))
    if seen:
        kind = run.split
    synthetic = "synthetic " if tables.is_phantom(run.config, run.split) else ""
    if run.split in tables.OWN_SPLITS:
        shown = count(len(values), f"{kind} {synthetic}scan")
    else:
        shown = f"{count(len(values), 'scan')} of “{run.split}”"
    words = f"Mean Dice {sum(values) / len(values):.2f} on {shown}"
    right = _all_right(run)
    if right is not None:
        words += f", every vertebra right in {right} of them"
    return words + (f", {seen} of them trained on" if seen else "")


def _all_right(run: Run) -> int | None:
    """Return in how many scans every vertebra has its name and nothing else has one."""
    summary = tables.vertebra_summary(run.scores) or {}
    share, number = finite(summary.get("all_correct")), tables.whole(summary.get("n_scans"))
    return None if share is None or number is None else round(share * number)


def lead(run: Run) -> str:
    """Return the sentences below the headline."""
    ranked = tables.ranked(run.scores)
    words = []
    if len(ranked) > 1:
        (worst, low), (best, high) = ranked[0], ranked[-1]
        words.append(f"From {low:.2f} ({worst}) to {high:.2f} ({best}).")
    means = _SPLIT_WORDS.get(run.split or "", ("", ""))[1]
    if means and not _trained_on(run):
        words.append(f"{str(run.split).capitalize()} scans: {means}.")
    return " ".join(words)


def key_figures(run: Run) -> list[KeyFigure]:
    """Return the numbers at the top of the page."""
    items = []
    named = tables.vertebra_summary(run.scores) or {}
    rate, right = finite(named.get("id_rate")), _all_right(run)
    if right is not None:
        number, missed, extra = (
            tables.whole(named.get(key)) or 0 for key in ("n_reference", "n_missed", "n_extra")
        )
        identified = "" if rate is None else f"{round(rate * number)} of {number} named right, "
        words = f"{identified}{missed} missed, {extra} extra"
        items.append(KeyFigure("Scans wholly right", f"{right} of {named['n_scans']}", words))
    elif rate is not None:
        items.append(KeyFigure("Vertebrae named right", f"{100 * rate:.0f} %"))
    rows = {row.metric.key: row for row in tables.summarise(run.scores)}
    for key, name in (("dice", "Dice"), ("hd95_mm", "HD95"), ("recall", "Recall")):
        if key in rows:
            row = rows[key]
            value = tables.shown(row.mean, row.metric) + f" {row.metric.unit}".rstrip()
            if row.cases == 1:
                items.append(KeyFigure(name, value))
            else:
                spread = f"± {tables.shown(row.std, row.metric)}"
                items.append(KeyFigure(f"{name}, mean", value, spread))
    dice = finite(named.get("dice_mean"))
    if dice is not None:
        items.append(KeyFigure("Vertebra Dice, mean", f"{dice:.3f}"))
    patches = run.patches.get(run.split or "", {})
    score, accuracy = (tables.pooled(patches, key) for key in ("f_score", "accuracy"))
    if score is not None:
        more = "" if accuracy is None else f"accuracy {accuracy:.3f}"
        items.append(KeyFigure("Patches, F-score", f"{score:.3f}", more))
    if run.parameters is not None:
        items.append(KeyFigure("Parameters", f"{run.parameters:,}"))
    seconds = run.record.get("seconds")
    if isinstance(seconds, int | float):
        items.append(KeyFigure("Training took", duration(seconds)))
    return items


def _trained_on(run: Run) -> list[str]:
    """Return the scored cases that training saw although their split is not "train"."""
    if run.split in (None, "train"):
        return []
    pooled = item(run.config, "data", "patches", "split_unit") == "patch"
    seen: set[str] = set()
    for name in ("train", "val") if pooled and run.is_patches else ("train",):
        recorded = item(run.record, "cases", name)
        seen |= set(map(str, recorded)) if isinstance(recorded, list) else set()
    return sorted(seen & set(run.scores.get("cases") or {}))


def _first_five(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def notes(run: Run) -> list[tuple[str, str]]:
    """Return (title, words) of what a reader of the scores must know."""
    found = []
    both = _trained_on(run)
    if both:
        were = "was" if len(both) == 1 else "were"
        found.append(
            (
                "Not held out",
                f"{_first_five(both)} {were} also trained on. These scores say how well the run "
                "remembers, not how well it generalises.",
            )
        )
    if run.split not in (None, *tables.OWN_SPLITS) and tables.is_phantom(run.config):
        found.append(
            (
                "Trained on phantoms alone",
                f"the scans of {run.split} are others, and training saw none of them.",
            )
        )
    elif tables.is_phantom(run.config):
        found.append(
            (
                "Synthetic scans",
                "these are phantoms. The scores show that the program works; they say nothing "
                "about patients.",
            )
        )
    missing = run.scores.get("missing")
    unscored = [
        f"{case} (no {kind})"
        for kind, ids in (missing.items() if isinstance(missing, Mapping) else ())
        for case in ids
    ]
    failed = run.scores.get("failed")
    if isinstance(failed, Mapping):
        unscored += [f"{case} ({reason})" for case, reason in failed.items()]
    if unscored:
        found.append(("Not scored", f"{_first_five(unscored)}."))
    if not run.finished:
        found.append(("Training has not finished", "the same command on this workdir resumes it."))
    return found


def scans(run: Run) -> list[dict[str, Any]]:
    """Return the best, the median and the worst scan as pictures of three planes."""
    distances = tables.case_values(run.scores, "hd95_mm")
    found = []
    for word, case, dice in tables.chosen_cases(tables.ranked(run.scores)):
        words = [f"Dice {dice:.3f}"]
        if case in distances:
            words.append(f"HD95 {distances[case]:.1f} mm")
        scan: dict[str, Any] = {
            "title": f"{word}: {case}",
            "scores": " · ".join(words),
            "problem": "",
        }
        try:
            scan["pictures"] = _pictures(run, case)
        except InputError as error:
            scan["problem"] = str(error)
        found.append(scan)
    return found


def _pictures(run: Run, case: str) -> list[figures.Picture]:
    volume, masks = run.read_case(case)
    prediction = masks["prediction"]
    named = item(run.scores, "cases", case, "vertebrae")
    centres = body_centres(prediction, volume.steps_mm) if named else {}
    panels = figures.planes(volume, prediction, masks.get("labels"), centres)
    jpegs = figures.jpegs([panel.grey for panel in panels], _PICTURE_BYTES)
    return [
        figures.Picture(
            panel.layer.shape,
            figures.data_uri(jpeg, "jpeg"),
            panel.layer,
            panel.names,
            f"{case}: {panel.caption}",
            panel.plane,
            panel.pixels_per_mm,
            panel.caption,
        )
        for panel, jpeg in zip(panels, jpegs, strict=True)
    ]


def names(run: Run) -> dict[str, Any] | None:
    """Return VerSe's scores by region and by scan; None where vertebrae were not named."""
    summary = tables.vertebra_summary(run.scores)
    if summary is None:
        return None
    return {
        "all_right": _all_right(run),
        "scans": summary.get("n_scans"),
        "of_masks": summary.get("reference_centroids") == "masks",
        "regions": tables.vertebra_table(summary),
        "by_scan": tables.vertebra_case_table(run.scores),
    }


def scores(run: Run) -> list[dict[str, Any]]:
    """Return the score table of every evaluation, that of the page first."""
    return [
        {
            "name": split,
            "scans": len(record.get("cases") or {}),
            "dots": charts.dot_chart(tables.ranked(record), "Dice") if split == run.split else None,
            "table": tables.score_table(record),
        }
        for split, record in run.evaluations.items()
    ]


def training(run: Run) -> dict[str, Any]:
    """Return the learning curves, the lowest validation loss marked."""
    records = log.read_metrics(run.workdir)
    lowest, best = charts.lowest_loss(records), None
    if lowest is not None:
        step, loss = lowest
        in_steps = item(run.config, "train", "eval_every_steps")
        every = None if in_steps else finite(item(run.config, "train", "eval_every_epochs"))
        epoch = charts.epoch_of(records, step, every) if every else None
        when = f"step {step:,.0f}" if epoch is None else f"epoch {epoch:g} (step {step:,.0f})"
        kept = "; its network is kept" if item(run.config, "train", "best") == "loss" else ""
        best = step, f"lowest validation loss {loss:.3g}, {when}{kept}"
    overlap = "F-score" if run.is_patches else "Dice"
    second = log.read_metrics(run.workdir / "vertebrae")
    return {
        "charts": charts.learning_curves(records, overlap, best) if records else [],
        "second": charts.learning_curves(second) if second else [],
    }


def duration(seconds: float) -> str:
    """Return a length of time in words: "48 s", "12 min", "3 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _plain(value: Any) -> str:
    """Return any recorded value in words."""
    if isinstance(value, str) and _TIME.fullmatch(value):
        return f"{value[:10]} {value[11:16]} UTC"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def facts(run: Run) -> list[tuple[str, str]]:
    """Return config, cases, hardware, versions, commit and times, as far as recorded."""
    record = run.record
    found = [
        ("Network", item(run.config, "model", "name")),
        ("Second network", item(run.config, "vertebrae", "model", "name")),
        *(
            (key.capitalize(), record.get(key))
            for key in ("parameters", "hardware", "devices", "processes", "started", "finished")
        ),
        ("Times started", record.get("starts")),
        ("Commit", record.get("commit")),
        ("Versions", record.get("versions")),
    ]
    shown = [(title, _plain(value)) for title, value in found if value not in (None, "", {}, [])]
    seconds = record.get("seconds")
    if isinstance(seconds, int | float):
        shown.append(("Time", duration(seconds)))
    cases = record.get("cases")
    if isinstance(cases, Mapping):
        counts = [f"{len(ids)} {split}" for split, ids in cases.items() if isinstance(ids, list)]
        shown.append(("Scans", ", ".join(counts)))
    shown.append(("Seed", _plain(run.config.get("seed", tables.DASH))))
    return shown
