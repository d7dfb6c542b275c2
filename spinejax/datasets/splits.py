"""Training, validation and test sets that never share a patient."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from spinejax import schema
from spinejax.datasets.verse import Case
from spinejax.errors import InputError

Split = dict[str, list[Case]]

_log = logging.getLogger("spinejax")
_NAMES = ("train", "val", "test")
_HELD_OUT = {"train": 0, "val": 1, "test": 2}


def split_cases(
    cases: Iterable[Case],
    *,
    kind: str = "auto",
    seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    folds: int = 5,
    fold: int = 0,
    to_train: Collection[str] = (),
) -> Split:
    """Divide cases into "train", "val" and "test", whole patients at a time.

    The result depends on the set of patients and the seed only, not on the order of the cases.
    Copies of a scan (`Case.duplicate_of`) are left out.

    Args:
        cases: usable cases (`verse.usable`).
        kind: "official" follows `Case.subset`. A patient with scans or copies in several subsets
            (which VerSe'19 and '20 together have) goes wholly to the most held-out one, test before
            val before train, with a warning. If no case is "val", `val_fraction` of the training
            patients is taken. "ratio" divides at random (papers A and B: 80/20). With "kfold", fold
            number `fold` of `folds` is the test set. "auto" means official if every case has a
            subset and there are training and test cases, else ratio.
        seed: of the permutation of the patients.
        test_fraction: share of all patients; 0 leaves the test set of "ratio" empty.
        val_fraction: share of the patients that are not in the test set; 0 leaves the validation
            set empty, unless "official" names its scans.
        folds: number of folds, at least 2.
        fold: 0 to folds - 1.
        to_train: patients that "ratio" takes for training before others, such as those with copies
            of a scan, which would fill a small test set.

    Returns:
        {"train": [...], "val": [...], "test": [...]}, each sorted by id. They share no patient, and
        none is empty whose share is above 0, if there are enough patients. With two patients for
        three sets, val and test are the same patient; with one patient, all sets are. Both cases
        log a warning; "official" and "kfold" refuse such data.

    Raises:
        InputError: there are no cases, an argument is unknown or out of range, or "official" finds
            no subset.
    """
    chosen = sorted((case for case in cases if case.duplicate_of is None), key=lambda c: c.id)
    if not chosen:
        raise InputError("no usable case to split: every scan needs its CT and its mask")
    _check(kind, test_fraction, val_fraction, folds, fold)
    if kind == "auto":
        kind = "official" if _has_official(chosen) else "ratio"
    if kind == "official":
        return _official(chosen, seed, val_fraction)
    subjects = sorted({case.subject for case in chosen})
    count = len(subjects)
    if kind == "kfold" and (folds > count or count - -(-count // folds) < 2):
        raise InputError(
            f"{count} patients cannot fill {folds} folds and leave two for training and "
            "validation; change data.folds or use data.split=ratio"
        )
    val, test = val_fraction > 0, kind == "kfold" or test_fraction > 0
    if count < 1 + val + test:
        return _tiny(chosen, subjects, seed, val, test)
    order = [subjects[i] for i in np.random.default_rng(seed).permutation(len(subjects))]
    if kind == "kfold":
        # Folds are consecutive parts of the permutation; their sizes differ by at most one.
        tested = order[fold * count // folds : (fold + 1) * count // folds]
    else:
        order.sort(key=lambda subject: subject in to_train)
        tested = order[: _share(count, test_fraction, keep=1 + val)]
    held = set(tested)
    rest = [subject for subject in order if subject not in held]
    parts = dict.fromkeys(order, "train") | dict.fromkeys(tested, "test")
    parts |= dict.fromkeys(rest[: _share(len(rest), val_fraction, keep=1)], "val")
    return _deal(chosen, parts)


def _check(kind: str, test_fraction: float, val_fraction: float, folds: int, fold: int) -> None:
    schema.check_value("data.split", kind)
    schema.check_value("data.test_fraction", test_fraction)
    schema.check_value("data.val_fraction", val_fraction)
    schema.check_value("data.folds", folds)
    if kind == "kfold" and not 0 <= fold < folds:
        raise InputError(f"data.fold must be 0 to {folds - 1} for {folds} folds, not {fold}")


def _share(count: int, fraction: float, keep: int) -> int:
    """Return a rounded share of `count` that is at least 1 and leaves `keep`; 0 for none."""
    return max(1, min(round(count * fraction), count - keep)) if fraction else 0


def _deal(cases: Sequence[Case], parts: dict[str, str]) -> Split:
    split: Split = {name: [] for name in _NAMES}
    for case in cases:
        split[parts[case.subject]].append(case)
    return split


def _tiny(
    cases: Sequence[Case], subjects: Sequence[str], seed: int, val: bool, test: bool
) -> Split:
    """Return sets that share a patient, since there are more sets than patients."""
    if len(subjects) == 1:
        sets = ["training", *["validation"] * val, *["test"] * test]
        _log.warning(
            "there is only one patient: %s and %s are the same scans, so the scores say nothing "
            "about other patients",
            ", ".join(sets[:-1]),
            sets[-1],
        )
        return {
            "train": list(cases), "val": list(cases) * val, "test": list(cases) * test
        }  # fmt: skip
    _log.warning(
        "there are only two patients: one is for training, the other for validation and test, so "
        "the test score is that of a checkpoint that was chosen on the same scans"
    )
    first = subjects[int(np.random.default_rng(seed).integers(2))]
    train = [case for case in cases if case.subject == first]
    other = [case for case in cases if case.subject != first]
    return {"train": train, "val": other, "test": list(other)}


def _has_official(cases: Sequence[Case]) -> bool:
    parts = _official_parts(cases)
    return all(case.subset for case in cases) and {"train", "test"} <= set(parts.values())


def _official_parts(cases: Sequence[Case]) -> dict[str, str]:
    """Return patient -> the most held-out subset among its scans and their copies."""
    parts: dict[str, str] = {}
    for case in cases:
        for subset in (case.subset, *case.copy_subsets):
            if subset is not None:
                known = parts.get(case.subject, "train")
                parts[case.subject] = max(known, subset, key=_HELD_OUT.__getitem__)
    return parts


def _official(cases: Sequence[Case], seed: int, val_fraction: float) -> Split:
    unnamed = [case.id for case in cases if case.subset is None]
    if unnamed:
        raise InputError(
            f"no official subset for {len(unnamed)} of {len(cases)} scans (first: {unnamed[0]}): "
            "their folders are not named training, validation, test; use data.split=ratio"
        )
    parts = _official_parts(cases)
    missing = [name for name in ("train", "test") if name not in parts.values()]
    if missing:
        raise InputError(
            f"the official split has no usable {' and no '.join(missing)} scans here; "
            "add that folder or use data.split=ratio"
        )
    moved = moved_patients(cases)
    if moved:
        _log.warning(
            "official split: %d patients have scans in several subsets; each is wholly in the most "
            "held-out one (first: %s)",
            len(moved),
            moved[0],
        )
    if "val" not in parts.values() and val_fraction:
        training = sorted(subject for subject, part in parts.items() if part == "train")
        if len(training) < 2:
            raise InputError(
                "the official split has one training patient and no validation scans; "
                "add the validation folder or use data.split=ratio"
            )
        _log.warning("no official validation scans: taking some of the training patients")
        order = np.random.default_rng(seed).permutation(len(training))
        for i in order[: _share(len(training), val_fraction, keep=1)]:
            parts[training[i]] = "val"
    return _deal(cases, parts)


def moved_patients(cases: Iterable[Case]) -> list[str]:
    """Return the patients with scans or copies in more than one official subset, sorted."""
    subsets: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        subsets[case.subject] |= {s for s in (case.subset, *case.copy_subsets) if s}
    return sorted(subject for subject, found in subsets.items() if len(found) > 1)
