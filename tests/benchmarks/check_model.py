"""Scores of a packaged model on phantoms that it never saw and on real CTs, and its card.

    python -m tests.benchmarks.check_model --out=DIR [--model=phantom] [FOLDER ...]

Three sets of 20 phantoms show every kind of scan: any region, any voxel size, variants of the
spine. FOLDERs hold real CTs with masks. The command prints every score, writes them to
DIR/check.json.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import spinejax
from spinejax import labels, progress
from spinejax.phantom.dataset import write_dataset
from spinejax.text_table import text_table

SEEDS = (2401, 2402, 2403)
"""Of the three sets of phantoms. No choice was made on them."""
CASES = 20
LIMITS = dict(
    min_extent_mm=116.0,
    max_extent_mm=700.0,
    min_spacing_mm=1.0,
    max_spacing_mm=5.0,
    max_voxels=3_000_000,
    rates=dict(t13=0.1, l6=0.1, no_t12=0.1),
)


REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


def view(ids: set[int]) -> str:
    """Return which regions a scan shows whole vertebrae of."""
    letters = {labels.name(i)[0] for i in ids}
    return " and ".join(name for letter, name in REGIONS.items() if letter in letters)


def variants(ids: set[int]) -> list[str]:
    """Return the variants of the spine that the labels of a scan show."""
    found = [labels.name(i) for i in (25, 28) if i in ids]
    return found + ["no T12"] * ({18, 20} <= ids and 19 not in ids)


def groups(scores: dict) -> dict[str, list[dict]]:
    """Return the scans of each kind: all, by view, by variant."""
    found = defaultdict(list)
    for case in scores["cases"].values():
        block = case["vertebrae"]
        ids = {int(i) for i in block["per_label"]}
        if not ids:
            continue
        names = ["all", f"shows {view(ids)}", *(f"variant {name}" for name in variants(ids))]
        for name in names:
            found[name].append(block)
    return found


def row(blocks: list[dict]) -> dict:
    """Return the scores of some scans taken together."""
    dice = [one["dice"] for block in blocks for one in block["per_label"].values()]
    right = sum(round(block["id_rate"] * block["n_reference"]) for block in blocks)
    return {
        "scans": len(blocks),
        "vertebrae": len(dice),
        "id_rate": right / len(dice),
        "dice": sum(dice) / len(dice),
        "all_right": sum(block["all_correct"] for block in blocks) / len(blocks),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("real", type=Path, nargs="*")
    options = parser.parse_args()

    def evaluate(data: Path, name: str) -> dict:
        output = options.out / "scores" / name
        return spinejax.evaluate(options.model, data=data, output=output, progress=progress.bars)

    merged = defaultdict(list)
    for seed in SEEDS:
        data = options.out / f"phantoms-{seed}"
        write_dataset(data, CASES, seed, workers=2, progress=progress.bars, **LIMITS)
        for name, blocks in groups(evaluate(data, str(seed))).items():
            merged[name] += blocks
    found = {"phantoms": {name: row(blocks) for name, blocks in sorted(merged.items())}, "real": {}}
    for folder in options.real:
        scores = evaluate(folder, folder.resolve().name)
        for case, one in scores["cases"].items():
            block = one.get("vertebrae")
            found["real"][case] = {
                **one["labelled_range"],
                **({"id_rate": block["id_rate"], "dice_mean": block["dice_mean"]} if block else {}),
            }
    for part, rows in found.items():
        if rows:
            names = list(dict.fromkeys(key for values in rows.values() for key in values))
            table = [[part, *names]]
            for name, values in rows.items():
                cells = (values.get(key) for key in names)
                table.append([name, *("-" if c is None else f"{c:.4g}" for c in cells)])
            print(text_table(table))
    (options.out / "check.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
