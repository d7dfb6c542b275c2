"""What an evaluation of a patch classifier adds to the scores of whole scans.

Confusion matrices on the patches of a split and on the balanced training patches (paper B, Table 2
and figure 13), and the filters and activations of one patch (figures 9 and 10).
"""

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from spinejax.data import feeds, normalise
from spinejax.data.cache import CachedCase
from spinejax.data.patch_feed import PatchFeed
from spinejax.data.patches import patch_classes
from spinejax.errors import InputError
from spinejax.files import atomic_path, write_json
from spinejax.inference import activations
from spinejax.metrics.classification import Counts, count, f_score, patch_scores, pooled
from spinejax.tasks import Task, build_task
from spinejax.train import parallel, setup, step
from spinejax.train.signals import Stop
from spinejax.train.validation import evaluate

_log = logging.getLogger("spinejax")

BALANCED_LIMIT = 20_000
"""Balanced training patches that are classified at most; a random part of them where there are
more, which the result says."""


@dataclass(frozen=True, eq=False)
class _Balanced:
    """The balanced training patches in the place of validation."""

    feed: PatchFeed

    @property
    def val_cases(self) -> Sequence[CachedCase]:
        return self.feed.train_cases

    def val(self, **_: Any) -> Generator[feeds.Batch, None, None]:
        return self.feed.balanced(BALANCED_LIMIT)


def rule_dice(cases: Sequence[CachedCase], size: int, rule: str) -> float:
    """Return the Dice that a perfect patch classifier would reach on these scans.

    Every pixel gets the true label of the patch around it. By the majority rule that smooths the
    mask over `size` pixels, and what is thinner than half a patch is lost; no training can get that
    back. By the centre rule it is 1.

    Args:
        cases: preprocessed scans.
        size: side of a patch in pixels.
        rule: `data.patches.label_rule`.

    Returns:
        Dice of all pixels together, on the preprocessed grid.
    """
    total = Counts(0, 0, 0, 0)
    before = size // 2
    for case in cases:
        # Away from foreground both are background, and Dice does not ask for those.
        for position in np.flatnonzero(case.foreground_counts):
            label = case.label[position] > 0
            padded = np.pad(label, (before, size - 1 - before))
            total += count(patch_classes(padded, size, 1, rule), label)
    return f_score(total)


def describe(config: ConfigDict, cached: Mapping[str, Sequence[CachedCase]]) -> list[str]:
    """Return lines on the patches of training and validation, for a terminal."""
    fields = config.data.patches
    counts = build_task(config).feed(cached).counts()
    lines = [f"patches of {fields.size}x{fields.size} pixels, stride {fields.stride}"]
    for name, what in (
        ("before", "in the training scans"),
        ("after", f"trained on (under-sampling: {fields.rus})"),
        ("validation", "validating"),
    ):
        both = counts[name]
        lines.append(f"{both['background']:>10,} background {both['vertebra']:>8,} vertebra {what}")
    ceiling = rule_dice(cached["train"], fields.size, fields.label_rule)
    lines.append(
        f"Dice of a perfect classifier under the {fields.label_rule} rule: {ceiling:.3f} "
        "(training scans)"
    )
    return lines


def write_patch_level(
    config: ConfigDict, variables: Mapping[str, Any], workdir: Path, split: str, folder: Path
) -> dict[str, Any]:
    """Classify the patches of a split; write patches.json and network.npz.

    Args:
        config: of a run of the task patch_classification.
        variables: {"params", "batch_stats"} of its network.
        workdir: of the run.
        split: "train", "val" or "test".
        folder: where the files go.

    Returns:
        What is in patches.json: `metrics.patches.patch_scores`, and "rule_dice" (`rule_dice` of
        the split).

    Raises:
        InputError: scans that cannot be used, as in training.
    """
    cached = setup.prepare(config, workdir, wanted=tuple({"train", "val", split}))
    task = build_task(config, axis_name=parallel.AXIS)
    trained: Any = task.feed({name: cached[name] for name in ("train", "val")})
    by_scan = config.copy_and_resolve_references()
    # Every patch of the split is scored, whatever share of patches training held back.
    by_scan.data.patches.split_unit = "scan"
    chosen = _that_fit(cached[split], config.data.patches.size)
    # A feed trains on both classes. The scans that trained hold both; where patches were pooled,
    # those of the training split alone need not.
    scored: Any = build_task(by_scan).feed({"train": trained.train_cases, "val": chosen})
    classify = _classifier(config, task, variables)
    balanced = pooled(classify(_Balanced(trained)).values())
    fields = config.data.patches
    scores = patch_scores(
        classify(scored),
        size=fields.size,
        stride=fields.stride,
        label_rule=fields.label_rule,
        balanced_training=(balanced, trained.counts()["balanced_total"]),
    )
    scores["rule_dice"] = rule_dice(chosen, fields.size, fields.label_rule)
    write_json(folder / "patches.json", scores)
    arrays = _network(config, task, variables, chosen)
    with atomic_path(folder / "network.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return scores


def _that_fit(cases: Sequence[CachedCase], size: int) -> list[CachedCase]:
    """Return the cases that have patches; a scan may be segmented although it has none."""
    fit = [case for case in cases if min(case.shape[1:]) >= size]
    for case in cases:
        if case not in fit:
            _log.warning(
                "case %s has slices of %dx%d pixels and no patch of %d; its pixels are scored, its "
                "patches are not",
                case.id,
                *case.shape[1:],
                size,
            )
    if not fit:
        raise InputError(
            f"no case of the split has slices of at least {size}x{size} pixels, so there are no "
            "patches to score; its pixels are scored"
        )
    return fit


def _classifier(config: ConfigDict, task: Task, variables: Mapping[str, Any]) -> Any:
    """Return a function from a feed to the counts of each of its validation cases."""
    mapped = parallel.make_parallel_dividing(config.train.parallel, config.train.batch_size)
    run = mapped.map(step.make_eval_step(task), sharded=(False, True), donate=False)
    held = mapped.replicate(dict(variables))

    def classify(feed: Any) -> dict[str, Counts]:
        outcome = evaluate(run, mapped, held, feed, pictures=0, stop=Stop())
        if outcome is None:
            raise InputError("the evaluation was stopped; run it again")
        return {
            name: Counts(*(int(round(value)) for value in counts))
            for name, counts in outcome.cases.items()
        }

    return classify


def _network(
    config: ConfigDict, task: Task, variables: Mapping[str, Any], cases: Sequence[CachedCase]
) -> dict[str, np.ndarray]:
    """Arrays of network.npz: of the vertebra patch of the case with most foreground."""
    case = max(cases, key=lambda c: int(c.foreground_counts.sum()))
    n = config.data.patches.size
    position, row, column = activations.choose_patch(case.label, n)
    image = case.image[position, row : row + n, column : column + n]
    patch = normalise.network_input(
        image, config.data.normalise, case.settings.range_hu, case.stats
    )
    arrays = activations.network_arrays(task.model, variables, patch)
    return arrays | {"where": np.array(f"{case.id} {position} {row} {column}")}
