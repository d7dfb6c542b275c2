"""What ran: config, cases, hardware, versions and times of a run, for its page."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from spinejax.reports import tables
from spinejax.reports.run import Run

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


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
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def what_ran(run: Run) -> str:
    """Return config, cases, hardware, versions, commit and times, as far as recorded."""
    record = run.record
    facts: list[tuple[str, str]] = []
    model = run.config.get("model")
    if isinstance(model, Mapping):
        facts.append(("Network", str(model.get("name", ""))))
    second = tables.item(run.config, "vertebrae", "model", "name")
    if second:
        facts.append(("Second network", str(second)))
    facts += [
        (name, _plain(record[key]))
        for name, key in (
            ("Parameters", "parameters"),
            ("Hardware", "hardware"),
            ("Devices", "devices"),
            ("Processes", "processes"),
            ("Started", "started"),
            ("Finished", "finished"),
            ("Times started", "starts"),
            ("Commit", "commit"),
            ("Versions", "versions"),
        )
        if record.get(key) not in (None, "", {}, [])
    ]
    seconds = record.get("seconds")
    if isinstance(seconds, int | float):
        facts.append(("Time", duration(seconds)))
    cases = record.get("cases")
    if isinstance(cases, Mapping):
        counts = [f"{len(ids)} {split}" for split, ids in cases.items() if isinstance(ids, list)]
        facts.append(("Scans", ", ".join(counts)))
    facts.append(("Seed", _plain(run.config.get("seed", tables.DASH))))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    missing = (
        ""
        if record
        else '<p class="nothing">There is no run.json: hardware and times were not recorded.</p>'
    )
    config = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return (
        f'<section><h2>What ran</h2>{missing}<dl class="facts">{items}</dl>'
        f"<details><summary>The whole config</summary><pre>{config}</pre></details></section>"
    )
