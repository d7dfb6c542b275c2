"""Phantoms beside real scans: the same statistics of both, where they part, and a figure.

`compare` is what `spinejax phantom --compare` does. A statistic is *off* where the phantoms' range
(5th to 95th percentile over scans) and that of the real scans (least to greatest: they are few) do
not overlap: a network could tell the one from the other by it. Fewer than `LEAST` phantoms that
have a statistic are no range, and nothing is said of them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spinejax import labels
from spinejax.data.found_scans import real_scans
from spinejax.data.phantom import dataset, statistics
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.reports import realism_figure
from spinejax.reports.realism_scans import Measured, measure, measure_files

RANGE = (5, 50, 95)
"""Percentiles of the phantoms over scans."""

LEAST = 5

JSON_NAME, FIGURE_NAME = "realism.json", "realism.png"

_SIZES = ("volume_ml", *statistics.EXTENTS)
_CELL = 23  # width of a column
_MARKS = {None: " ", "low": "<", "high": ">"}
_DISTANCES = ("body_distance_mm", "mask_distance_mm")


def compare(
    real: Path, out: Path, *, cases: int, seed: int, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure real scans and phantoms, print both, and write `realism.json` and `realism.png`.

    Args:
        real: folder of CTs and masks in any layout that is read.
        out: folder for the two files; made if needed.
        cases: how many phantoms.
        seed: of the phantoms.
        limits: of their voxels and extents, see `dataset.write_dataset`.

    Returns:
        What is written as JSON.

    Raises:
        InputError: no usable scan under `real`, unusable numbers, or `out` cannot be written.
    """
    settings = dataset.check_limits(cases, seed, **limits)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out is the folder for {JSON_NAME} and {FIGURE_NAME}")
    found = real_scans(real)
    scans = [
        one
        for one in (measure_files(entry) for entry in _progress(found, "real scans"))
        if one is not None
    ]
    if not any(scan.values for scan in scans):
        raise InputError(f"{real}: none of its scans can be measured; spinejax doctor names why")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):  # better now than minutes later
        raise InputError(f"{out}: permission denied; choose a folder that you may write")
    phantoms = []
    for index in _progress(range(cases), "phantoms"):
        volume, mask, points, *_ = dataset.draw_case(seed, index, settings)
        phantoms.append(measure(dataset.case_name(index), volume, mask, points))
    record = collect(scans, phantoms)
    record = {"phantoms": {"cases": cases, **settings}, "real_data": str(real), **record}
    picture = realism_figure.draw(scans, phantoms, record["statistics"])
    write_json(out / JSON_NAME, record)
    realism_figure.save(picture, out / FIGURE_NAME)
    return record


def _progress(items: Any, title: str) -> Any:
    return tqdm(items, title, unit="scan", leave=False)


def collect(real: Sequence[Measured], phantoms: Sequence[Measured]) -> dict[str, Any]:
    """Bring measured scans together.

    Returns:
        "real" and "phantom": case -> its statistics; "statistics": name -> {"real": {"n", "low",
        "high"} or None, "phantom": {"n", "p5", "p50", "p95"} or None, "off": "low" or "high" where
        the phantoms lie wholly below or above the real scans, else None}.
    """
    names = sorted({name for one in (*real, *phantoms) for name in one.values}, key=_order)
    table = {}
    for name in names:
        ours = np.array([one.values[name] for one in phantoms if name in one.values])
        theirs = np.array([one.values[name] for one in real if name in one.values])
        low, middle, high = np.percentile(ours, RANGE) if ours.size else (np.nan,) * 3
        off = None
        if ours.size >= LEAST and theirs.size:
            off = "low" if high < theirs.min() else "high" if low > theirs.max() else None
        table[name] = {
            "real": None
            if not theirs.size
            else {"n": theirs.size, "low": float(theirs.min()), "high": float(theirs.max())},
            "phantom": None
            if not ours.size
            else {
                "n": ours.size,
                "p5": round(float(low), 4),
                "p50": round(float(middle), 4),
                "p95": round(float(high), 4),
            },
            "off": off,
        }
    return {
        "real": {one.case: one.values for one in real},
        "phantom": {one.case: one.values for one in phantoms},
        "statistics": table,
    }


def _order(name: str) -> tuple[Any, ...]:
    group, _, item = name.partition("/")
    layers = (f"{layer}_hu" for layer in statistics.LAYERS)
    groups = (*_SIZES, *_DISTANCES, *layers, "depth_hu", "scan")
    if group in (*_SIZES, *_DISTANCES):
        rank = labels.order(labels.id_of(item.partition("-")[0]))
    else:
        rank = 0.0 if group == "scan" else float(item)
    return groups.index(group), rank, item


def table(record: Mapping[str, Any]) -> str:
    """What `compare` returned as a table for the terminal.

    One line per level, then per pair of levels, then per remaining statistic: the real scans' range
    | the phantoms' 5th to 95th percentile, "-" where there is none, and "<" or ">" behind phantoms
    that lie wholly below or above.
    """
    rows: dict[str, Any] = record["statistics"]
    lines = [
        f"{len(record['real'])} real scans of {record['real_data']} | "
        f"{len(record['phantom'])} phantoms of seed {record['phantoms']['seed']}, 5 to 95 %",
        "< and >: phantoms lie wholly below or above the real scans",
    ]
    for groups, title in ((_SIZES, "whole vertebrae"), (_DISTANCES, "from centre to centre")):
        items = dict.fromkeys(
            name.partition("/")[2]
            for name, row in rows.items()
            if name.partition("/")[0] in groups and row["real"]
        )
        if not items:
            continue
        heads = "".join(f"{group.replace('_', ' '):>{_CELL}}" for group in groups)
        lines += ["", title, f"{'':<9}{heads}"]
        for item in items:
            cells = "".join(f"{_cell(rows.get(f'{group}/{item}')):>{_CELL}}" for group in groups)
            lines.append(f"{item:<9}{cells}")
    lines += ["", f"{'':<28}{'real':>16}{'phantoms':>16}{'median':>9}"]
    for name, row in rows.items():
        group, _, item = name.partition("/")
        if group in (*_SIZES, *_DISTANCES):
            continue
        words = {"scan": item.replace("_", " "), "depth_hu": f"HU {item} mm off the surface"}.get(
            group, f"HU {group.removesuffix('_hu')} {item} %"
        )
        middle = f"{row['phantom']['p50']:.{_digits(row)}f}" if row["phantom"] else "-"
        real, phantom = _cell(row).split(" | ")
        lines.append(f"{words:<28}{real:>16}{phantom:>16}{middle:>9}")
    compared = [row for row in rows.values() if row["real"] and row["phantom"]]
    off = sum(row["off"] is not None for row in compared)
    lines += ["", f"{off} of {len(compared)} statistics are off"]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "- | -  "
    real, phantom, digits = row["real"], row["phantom"], _digits(row)
    left = _range(real["low"], real["high"], digits) if real else "-"
    right = _range(phantom["p5"], phantom["p95"], digits) if phantom else "-"
    return f"{left} | {right} {_MARKS[row['off']]}"


def _range(low: float, high: float, digits: int) -> str:
    words = [f"{value:.{digits}f}" for value in (low, high)]
    return words[0] if words[0] == words[1] else "..".join(words)


def _digits(row: Mapping[str, Any]) -> int:
    """Decimals that all numbers of a statistic are shown with."""
    found = [row[kind][key] for kind in ("real", "phantom") if row[kind] for key in row[kind]
             if key != "n"]  # fmt: skip
    largest = max(map(abs, found))
    return 2 if largest < 2 else 1 if largest < 40 else 0
