"""Evaluation of a model: predict and score the scans of a split, or of a folder.

A run of patches is also scored patch by patch: confusion matrices on the patches of the split and
on the balanced training patches (paper B, table 2 and figure 13), and the filters and activations
of one patch (figures 9 and 10).
"""

import hashlib
import logging
import os
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from spinejax import failures, numerics, predictor, records, scoring
from spinejax.data import feeds, normalise
from spinejax.data.cache import CachedCase
from spinejax.data.patch_feed import PatchFeed
from spinejax.data.patches import patch_classes
from spinejax.datasets import plain_folders
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, check_choice
from spinejax.files import (
    StrPath,
    atomic_path,
    check_output,
    expanded,
    is_ours,
    remove,
    write_json,
)
from spinejax.inference import activations
from spinejax.io import nifti, scanfile
from spinejax.label_schemes import BINARY
from spinejax.labels import reserved_note
from spinejax.metrics import slice_dice
from spinejax.metrics.classification import Counts, count, f_score, patch_scores, pooled
from spinejax.progress import Progress, silent
from spinejax.tasks import Task, build_task
from spinejax.training import model_file, parallel, run_cases, run_folder, step, validation
from spinejax.training.signals import Stop
from spinejax.volume import LabelVolume, Volume, slice_view

logger = logging.getLogger("spinejax")


def results_folder(
    model: StrPath | Sequence[StrPath],
    split: str = "test",
    *,
    data: StrPath | None = None,
    flip: bool = False,
    output: StrPath | None = None,
) -> Path:
    """Return the folder that `evaluate` writes to: `output`, or `<run>/evaluation/<name>`.

    The name is the split, or the name of the folder `data` with eight digits that stand for its
    whole path, so that the results of A/scans and B/scans never meet. Results with `flip` have
    their own folder: the table of a sweep reads those without.

    Raises:
        InputError: `model` is not one run, and has no folder for results.
    """
    if output is not None:
        return expanded(output)
    run = _run_of(model)
    if run is None:
        raise InputError(_NEEDED.format("results", "--output=OUT"))
    name = split
    if data is not None:
        where = expanded(data).resolve()
        digits = hashlib.sha256(os.fsencode(where)).hexdigest()[:8]
        name = f"{re.sub(r'[^0-9A-Za-z._-]', '_', where.name)[:80] or 'scans'}-{digits}"
    return run / "evaluation" / (f"{name}_flip" if flip else name)


_NEEDED = "a packaged model, a file, or several models have no {} of their own; add {}"


def _run_of(model: StrPath | Sequence[StrPath]) -> Path | None:
    """Return the folder of the run if `model` is one run; None for files and for several runs."""
    places = predictor.sources(model)
    return None if len(places) > 1 or model_file.is_file(places[0]) else places[0]


@numerics.fixed()
def evaluate(
    model: StrPath | Sequence[StrPath],
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: StrPath | None = None,
    labels: str | None = None,
    output: StrPath | None = None,
    vertebrae: StrPath | Sequence[StrPath] | None = None,
    outlines: StrPath | Sequence[StrPath] | None = None,
    flip: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> scoring.Scores:
    """Predict and score every scan of a split, and write `results_folder`.

    The folder holds `scores.json`, written last; `cases.json`, the files of each case;
    `slices.json`, the best and the worst slices; `times.json`, the seconds that each prediction
    took, and the hardware; `predictions/`; and for a run of patches `patches.json` and
    `network.npz`. An evaluation that was interrupted continues with the scans that it had not
    predicted. Several processes of one run share the scans: each predicts and scores its part, and
    the first writes the results of all.

    A scan that cannot be read or predicted is logged and left out: `scores.json` has its reason
    under "failed", and the next evaluation predicts the missing scans only.

    Args:
        model: the folder of a run. With `data` and `output` also a packaged model, the file of a
            model, or several models that are averaged, see `predictor.load`.
        split: "test", "val" or "train".
        checkpoint: of runs, "best" or "latest".
        data: a folder of other scans: every CT with a mask in it is evaluated, and `split` is
            ignored.
        labels: the numbers in the reference masks, one of `label_schemes.NAMES`; None takes
            `data.labels` of the model.
        output: folder of the results; None takes `results_folder`.
        vertebrae: see `predictor.load`.
        outlines: see `predictor.load`.
        flip: see `predictor.load`.
        overwrite: replace files in `results_folder` that this program did not write or that were
            changed since, too, such as a prediction that was corrected by hand.
        progress: shows the progress, scan by scan.

    Returns:
        The scores, see `spinejax.scoring`.

    Raises:
        InputError: no such run, no case in the split, or all scans failed; a file may not be
            replaced.
    """
    check_choice("split", split, run_folder.SPLITS)
    folder = results_folder(model, split, data=data, flip=flip, output=output)
    run = _run_of(model)
    if run is None and data is None:
        raise InputError(_NEEDED.format("scans", "--data=DIR"))
    rank, count = parallel.process_index(), parallel.process_count()
    if count > 1 and run is not None and data is None:
        read = parallel.together(lambda: run_folder.read_config(run))
        run_cases.find(read, run)  # missing phantoms are rendered once

    def load() -> predictor.Model:
        with parallel.apart():
            return predictor.load(
                model, vertebrae=vertebrae, outlines=outlines, checkpoint=checkpoint, flip=flip
            )

    loaded = parallel.together(load)

    how: dict[str, Any] = dict(split=split, data=data, overwrite=overwrite)
    shown = silent if rank else progress

    def share() -> _Share:
        with parallel.apart():
            numbered = slice(rank, None, count)
            return _evaluate(
                loaded, folder, run, labels=labels, share=numbered, progress=shown, **how
            )

    shares = parallel.from_all(share)
    patches = None
    scored = {case for one in shares for case in one.results}
    if scored and run is not None and data is None and loaded.config.task == _OF_PATCHES:
        kept = {
            name: [one for one in those if name != split or one.id in scored]
            for name, those in shares[0].splits.items()
        }
        patches = _score_patches(loaded.config, loaded.variables, run, split, kept, shown)

    def write() -> scoring.Scores:
        with parallel.apart():
            return _write(loaded, folder, run, shares, patches, **how)

    return parallel.from_first(write)


def _evaluate(
    loaded: predictor.Model,
    folder: Path,
    run: Path | None,
    *,
    split: str,
    data: StrPath | None,
    labels: str | None,
    overwrite: bool,
    share: slice,
    progress: Progress,
) -> "_Share":
    """Predict and score the scans of a share, see `evaluate`."""
    workdir = folder if run is None else run
    config = loaded.config
    scheme = labels or config.data.labels
    numbers = scanfile.valid_labels(scheme)
    failed: dict[str, str] = {}
    splits = run_cases.find(config, workdir) if data is None else {}
    usable = splits[split] if data is None else plain_folders.with_masks(expanded(data), failed)
    cases = {one.id: (one.image, one.labels) for one in usable if one.image and one.labels}
    if not cases:
        raise InputError(f"{workdir}: the {split} split has no cases; choose another split")
    unfinished = _UNFINISHED
    if share.start:
        unfinished = f"unfinished-{share.start}.json"  # of this process alone
    for name in (*_NAMES, unfinished):
        check_output(folder / name, _KIND, overwrite=overwrite)

    def prediction(case: str) -> Path:
        return folder / "predictions" / f"{case}_seg.nii.gz"

    def check(case: str, _: tuple[Path, Path]) -> None:
        inputs = [path for files in cases.values() for path in files]
        check_output(prediction(case), _KIND, inputs=inputs, overwrite=overwrite)

    own = {case: cases[case] for case in list(cases)[share]}
    alone = len(cases) == 1
    _, refused = failures.each(own, check, alone=alone)  # before hours of work
    done: dict[str, Any] = {"digest": loaded.digest, "cases": {}}
    for path in sorted(folder.glob(_ALL_UNFINISHED)):
        earlier = records.read_if_there(path, _DONE, "remove it: scans are predicted again")
        if earlier.get("digest") == loaded.digest:
            done["cases"] |= earlier["cases"]
    titles = {case: f"{number}/{len(cases)} {case}" for number, case in enumerate(cases, 1)}

    def state(image: Path) -> str:
        changed = max(path.stat().st_mtime_ns for path in scanfile.parts(image))
        return f"{image.resolve()} {changed}"

    def read(_: str, files: tuple[Path, Path]) -> tuple[Volume, LabelVolume]:
        return scanfile.read_pair(*files, valid=numbers)

    def is_predicted(case: str) -> bool:
        if case not in done["cases"] or not is_ours(prediction(case), _KIND):
            return False
        return bool(done["cases"][case]["scan"] == state(cases[case][0]))

    def predict(case: str, pair: tuple[Volume, LabelVolume]) -> _Predicted:
        if is_predicted(case):
            path, before = prediction(case), done["cases"][case]
            logger.info("%s: predicted earlier", titles[case])
            array = scanfile.read_labels(path).array
            return _Predicted(*pair, array, before["named"], before.get("seconds"), None)
        found = loaded.segment(pair[0], name=titles[case], progress=progress)
        return _Predicted(*pair, found.mask, found.named, round(found.seconds, 1), found.labels)

    def keep(case: str, predicted: _Predicted) -> None:
        volume, _, _, named, seconds, new = predicted
        if new is not None:
            nifti.write_labels(prediction(case), new, volume, kind=_KIND, overwrite=overwrite)
            scan = state(cases[case][0])
            done["cases"][case] = {"scan": scan, "named": named, "seconds": seconds}
            write_json(folder / unfinished, done, _KIND, overwrite=overwrite)

    def evaluate_case(case: str, predicted: _Predicted) -> _Evaluated:
        keep(case, predicted)
        volume, reference, array, named, seconds, _ = predicted
        (image, mask), path = cases[case], prediction(case)
        score = scoring.score_arrays(
            array,
            reference.array,
            volume.affine,
            case,
            vertebrae=named and scheme != BINARY,
        )
        views = (slice_view(array, config.data.plane) for array in (array, reference.array))
        files_of_case = {
            "image": _within(workdir, image),
            "labels": _within(workdir, mask),
            "prediction": _within(workdir, path),
            "scheme": scheme,
        }
        by_slice = slice_dice.slice_dice(*views, axis=0)
        return _Evaluated(score, by_slice, files_of_case, reference.reserved, seconds)

    allowed = {case: files for case, files in own.items() if case not in refused}
    results, wrong = failures.in_stages(allowed, read, predict, evaluate_case, alone=alone)
    return _Share(splits, list(cases), results, failed | refused | wrong)


def _write(
    loaded: predictor.Model,
    folder: Path,
    run: Path | None,
    shares: Sequence["_Share"],
    patches: tuple[dict[str, Any], list[CachedCase]] | None,
    *,
    split: str,
    data: StrPath | None,
    overwrite: bool,
) -> scoring.Scores:
    """Write the results of all shares and those of `_score_patches`, see `evaluate`."""
    config = loaded.config

    def write(name: str, content: Any) -> None:
        write_json(folder / name, content, _KIND, overwrite=overwrite)

    found = {case: one for share in shares for case, one in share.results.items()}
    wrong = {case: reason for share in shares for case, reason in share.failed.items()}
    # In the order of one process: files that are no case, then cases.
    cases = shares[0].cases
    failed = {name: wrong.pop(name) for name in list(wrong) if name not in cases}
    failed |= {case: wrong[case] for case in cases if case in wrong}
    results = {case: found[case] for case in cases if case in found}
    note = reserved_note({case: one.reserved for case, one in results.items()})
    if note is not None:
        logger.warning("%s", note)
    if not results:
        raise failures.summary(failed, len(failed), "nothing is scored")
    scores = scoring.collect({case: one.score for case, one in results.items()}, failed=failed)
    write("cases.json", {case: one.files for case, one in results.items()})
    seconds = {case: one.seconds for case, one in results.items()}
    write("times.json", {"hardware": parallel.hardware(), "seconds": seconds})
    by_slice = {case: one.by_slice for case, one in results.items()}
    chosen = {"plane": config.data.plane, **slice_dice.best_and_worst(by_slice)}
    write("slices.json", chosen)
    if patches is not None:
        of_patches, chosen_cases = patches
        size, rule = config.data.patches.size, config.data.patches.label_rule
        write("patches.json", {**of_patches, "rule_dice": rule_dice(chosen_cases, size, rule)})
        arrays = _network(config, build_task(config), loaded.variables, chosen_cases)
        with (
            atomic_path(folder / "network.npz", _KIND, overwrite=overwrite) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, **arrays)  # type: ignore[arg-type]
    # Written last: the evaluation is complete if this file exists and names no failure.
    write("scores.json", scores)
    if not failed:
        for path in folder.glob(_ALL_UNFINISHED):
            remove(path, _KIND)
    return scores


_OF_PATCHES = "patch_classification"
_KIND = "evaluation"  # of all files in a folder of results
_UNFINISHED = "unfinished.json"
_ALL_UNFINISHED = "unfinished*.json"  # of all processes
_NAMES = (
    "cases.json",
    "network.npz",
    "patches.json",
    "scores.json",
    "slices.json",
    "times.json",
)
_DONE = {"digest": str, "cases": {str: {"scan": str, "named": bool, "seconds?": (float, None)}}}


class _Predicted(NamedTuple):
    scan: Volume
    reference: LabelVolume
    array: np.ndarray  # as `Segmentation.mask`
    named: bool
    seconds: float | None  # that the prediction took
    new: np.ndarray | None  # labels that are not written yet


class _Evaluated(NamedTuple):
    """A case: its measurements, the Dice of its slices, and its files relative to the workdir.

    `reserved` are the labels of its mask that are no vertebrae, `seconds` what its prediction took.
    """

    score: scoring.PairScore
    by_slice: Any
    files: dict[str, str]
    reserved: tuple[int, ...]
    seconds: float | None


class _Share(NamedTuple):
    """What a process found.

    `splits` and `cases` are those of all processes: the cases of each split of the run, and the ids
    of the scans to score. `results` are those of its share, `failed` has the reasons.
    """

    splits: dict[str, list[Case]]
    cases: list[str]
    results: dict[str, _Evaluated]
    failed: dict[str, str]


def _within(workdir: Path, path: Path) -> str:
    """Return `path` relative to the workdir if it lies in it, so that the run can be moved."""
    path, workdir = path.resolve(), workdir.resolve()
    return str(path.relative_to(workdir) if path.is_relative_to(workdir) else path)


BALANCED_LIMIT = 20_000
"""At most this many balanced training patches are classified, drawn at random if there are more;
the result says how many."""


@dataclass(frozen=True, eq=False)
class _Balanced:
    """A feed whose validation patches are the balanced training patches."""

    feed: PatchFeed

    @property
    def val_cases(self) -> Sequence[CachedCase]:
        return self.feed.train_cases

    def val(self, **_: Any) -> Generator[feeds.Batch, None, None]:
        return self.feed.balanced(BALANCED_LIMIT)


def rule_dice(cases: Sequence[CachedCase], size: int, rule: str) -> float:
    """Return the Dice that a perfect patch classifier would reach on these scans.

    Every pixel gets the true label of the patch around it. The majority rule thus smooths the mask
    over `size` pixels and loses structures thinner than half a patch; no training can recover them.
    With the centre rule the Dice is 1.

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
        # Slices without foreground are true negatives, which Dice does not count.
        for position in np.flatnonzero(case.foreground_counts):
            label = case.label[position] > 0
            padded = np.pad(label, (before, size - 1 - before))
            total += count(patch_classes(padded, size, 1, rule), label)
    return f_score(total)


def describe_patches(config: ConfigDict, cached: Mapping[str, Sequence[CachedCase]]) -> list[str]:
    """Return lines of text that count the patches of training and validation."""
    fields = config.data.patches
    feed: Any = build_task(config).feed(cached)
    counts = feed.counts()
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


def _score_patches(
    config: ConfigDict,
    variables: Mapping[str, Any],
    workdir: Path,
    split: str,
    cases: Mapping[str, Sequence[Case]],
    progress: Progress,
) -> tuple[dict[str, Any], list[CachedCase]]:
    """Classify the patches of a split; the processes of a run share its scans.

    Args:
        config: of a run of the task patch_classification.
        variables: {"params", "batch_stats"} of its network.
        workdir: of the run.
        split: "train", "val" or "test".
        cases: of each split.
        progress: shows the progress of preprocessing.

    Returns:
        `metrics.classification.patch_scores`, and the scans that are at least as large as a patch.

    Raises:
        InputError: scans that cannot be used, as in training.
    """
    cached = run_cases.prepare(
        config, workdir, cases=cases, wanted=tuple({"train", "val", split}), progress=progress
    )
    rank, count = parallel.process_index(), parallel.process_count()
    fields = config.data.patches
    chosen = _that_fit(cached[split], fields.size)

    def classified() -> tuple[tuple[Counts, int] | None, dict[str, Counts]]:
        """Return the counts and the number of balanced patches, of the first process; the rest."""
        with parallel.apart():
            task = build_task(config, axis_name=parallel.AXIS)
            trained: Any = task.feed({name: cached[name] for name in ("train", "val")})
            classify = _classifier(config, task, variables)
            balanced = None
            if rank == 0:
                found = pooled(classify(_Balanced(trained)).values())
                balanced = found, trained.counts()["balanced_total"]
            own = chosen[rank::count]
            if not own:
                return balanced, {}
            by_scan = config.copy_and_resolve_references()
            # Every patch of the split is scored, even if training split patches instead of scans.
            by_scan.data.patches.split_unit = "scan"
            # A feed needs training patches of both classes. The scans that were trained on have
            # both.
            return balanced, classify(
                build_task(by_scan).feed({"train": trained.train_cases, "val": own})
            )

    shares = parallel.from_all(classified)
    counts = {case: one for _, share in shares for case, one in share.items()}
    scores = patch_scores(
        {case.id: counts[case.id] for case in chosen},
        size=fields.size,
        stride=fields.stride,
        label_rule=fields.label_rule,
        balanced_training=shares[0][0],
    )
    return scores, chosen


def _that_fit(cases: Sequence[CachedCase], size: int) -> list[CachedCase]:
    """Return the cases large enough for a patch; smaller scans are still segmented."""
    fit = [case for case in cases if min(case.shape[1:]) >= size]
    for case in cases if parallel.process_index() == 0 else ():
        if case not in fit:
            logger.warning(
                "case %s has slices of %dx%d pixels, smaller than a patch of %d; its pixels are "
                "scored, its patches are not",
                case.id,
                *case.shape[1:],
                size,
            )
    if not fit:
        raise InputError(
            f"no case of the split has slices of at least {size}x{size} pixels, so there are no "
            "patches to score; choose another split"
        )
    return fit


def _classifier(config: ConfigDict, task: Task, variables: Mapping[str, Any]) -> Any:
    """Return a function from a feed to the counts of each of its validation cases."""
    mapped = parallel.make_parallel_dividing(config.train.parallel, config.train.batch_size)
    run = mapped.map(step.make_eval_step(task), sharded=(False, True), donate=False)
    held = mapped.replicate(dict(variables))

    def classify(feed: Any) -> dict[str, Counts]:
        outcome = validation.evaluate(run, mapped, held, feed, pictures=0, stop=Stop())
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
    """Return the arrays of network.npz, for a vertebra patch of the case with most foreground."""
    case = max(cases, key=lambda c: int(c.foreground_counts.sum()))
    n = config.data.patches.size
    position, row, column = activations.choose_patch(case.label, n)
    image = case.image[position, row : row + n, column : column + n]
    patch = normalise.network_input(
        image, config.data.normalise, case.settings.range_hu, case.stats
    )
    arrays = activations.network_arrays(task.model, variables, patch)
    return arrays | {"where": np.array(f"{case.id} {position} {row} {column}")}
