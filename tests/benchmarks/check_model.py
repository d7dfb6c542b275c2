"""Scores of a packaged model on phantoms that it never saw and on real CTs, and its card.

    python -m tests.benchmarks.check_model --out=DIR [--model=FILE] [--sets=N] [FOLDER ...]

Three sets of 20 phantoms, or the first N of them, show every kind of scan: any region, any voxel
size, variants of the spine. FOLDERs hold real CTs with masks. The command prints every score. It
writes the card as DIR/card.json and DIR/model.md, and DIR/phantom.safetensors: the model with this
card. The card keeps the tables of `spinejax calibrate` that the model's file holds.
"""

import argparse
import json
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import jinja2

import spinejax
from spinejax import labels, predictor, progress
from spinejax.phantom.dataset import write_dataset
from spinejax.text_table import text_table
from spinejax.training import model_file, run_folder

NOTICE = "No medical device. Not for diagnosis, treatment or any decision about a patient."
INTENDED_USE = (
    "Research: a first segmentation of the spine in a CT, with a name for each vertebra and the "
    "probability of the name, to be checked by a person; and first weights for networks that are "
    "trained on annotated scans."
)
DATA = "Synthetic CTs alone (docs/phantoms.md), drawn anew for every step; no patient's scan."
LIMITATIONS = [
    "It segments vertebrae C1 to L5 and their variants, not the sacrum, ribs or discs.",
    "It sees pixels of 2 mm. Thin processes and the gaps between joints are coarse.",
    "It mostly misses T13, L6 and a missing T12. The names beside them are then one level off.",
    "Names need a landmark in view. Without the sacrum, the ribs or C1 they may be one level off.",
    "At the edge of a scan it may name a fragment of a vertebra that is cut.",
    "Destroyed vertebrae, large implants, fusions of many levels and small children are rare or "
    "absent among the phantoms.",
    "It was made for CT. It reads no MRI.",
]

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


def groups(scores: dict) -> dict[str, list[dict]]:
    """Return the scans of each kind: all, by view, by variant."""
    found = defaultdict(list)
    for case in scores["cases"].values():
        block = case["vertebrae"]
        ids = {int(i) for i in block["per_label"]}
        if not ids:
            continue
        names = ["all", f"shows {labels.view(ids)}"]
        for variant in labels.variants(ids):
            # The vertebrae above T13, or above a missing T12, can be counted from the neck alone.
            counted = variant == "L6" or any(labels.region(i) == "C" for i in ids)
            names.append(f"variant {variant}" + ", no neck in view" * (not counted))
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
        "all_right": sum(block["id_rate"] == 1 for block in blocks) / len(blocks),
    }


def trainings(origin: dict) -> list[dict]:
    """Return the trainings of a network, the first one first."""
    before = origin.get("initial")
    return [*(trainings(before) if before else []), origin]


def card_of(model: str, scores: dict, seeds: tuple[int, ...]) -> dict:
    """Return the card of the model."""
    found = model_file.read(model_file.located(model))
    trained = [
        {"role": role, **one, "hours": one["seconds"] / 3600, "jax": one["versions"]["jax"]}
        for role, members in found.networks.items()
        for network in members
        for one in trainings(network.origin)
    ]
    # A network may begin with another one of the file.
    trained = [one for i, one in enumerate(trained) if one not in trained[:i]]
    return {
        "model": Path(model).stem,
        "notice": NOTICE,
        "intended_use": INTENDED_USE,
        "limits": LIMITATIONS,
        "data": DATA,
        "licence": "Apache-2.0",
        "networks": trained,
        "sha256": found.sha256,
        "commit": run_folder.commit(),
        "command": shlex.join(["python", "-m", "tests.benchmarks.check_model", *sys.argv[1:]]),
        "seeds": seeds,
        "cases": CASES,
        "scores": scores,
        "calibration": found.card.get("calibration"),
    }


def page(card: dict) -> str:
    """Return the card as Markdown."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = Path(__file__).with_name("model_card.md.j2").read_text()
    return environment.from_string(template).render(card=card)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=len(SEEDS), help="of phantoms")
    parser.add_argument("real", type=Path, nargs="*")
    options = parser.parse_args()

    def evaluate(data: Path, name: str) -> dict:
        output = options.out / "scores" / name
        return spinejax.evaluate(options.model, data=data, output=output, progress=progress.bars)

    merged = defaultdict(list)
    for seed in SEEDS[: options.sets]:
        data = options.out / f"phantoms-{seed}"
        write_dataset(data, CASES, seed, workers=2, progress=progress.bars, **LIMITS)
        for name, blocks in groups(evaluate(data, str(seed))).items():
            merged[name] += blocks
    found = {"phantoms": {name: row(blocks) for name, blocks in sorted(merged.items())}, "real": {}}
    for folder in options.real:
        scores = evaluate(folder, folder.resolve().name)
        for case, one in scores["cases"].items():
            block = one["vertebrae"]
            found["real"][case] = {
                **one["labelled_range"],
                "whole": one["binary"],
                "id_rate": block["id_rate"],
                "dice_mean": block["dice_mean"],
            }
    for part, rows in found.items():
        if rows:
            names = [key for key in next(iter(rows.values())) if key != "whole"]
            table = [[part, *names]]
            table += [[name, *(f"{row[key]:.4g}" for key in names)] for name, row in rows.items()]
            print(text_table(table))
    card = card_of(options.model, found, SEEDS[: options.sets])
    (options.out / "card.json").write_text(json.dumps(card, indent=1))
    (options.out / "model.md").write_text(page(card))
    half = [role for role in {one["role"] for one in card["networks"]} if role != model_file.SPINE]
    predictor.export(options.out / "phantom.safetensors", options.model, card=card, half=half)


if __name__ == "__main__":
    main()
