import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax.datasets.splits import moved_patients, split_cases
from spinejax.datasets.verse import Case
from spinejax.errors import InputError


def case(number: int, subject: int, subset: str | None = None, **kwargs) -> Case:
    return Case(f"scan{number:03d}", f"patient{subject:03d}", None, None, subset=subset, **kwargs)


def subjects(split, name):
    return {c.subject for c in split[name]}


def assert_dealt(split, cases):
    """Disjoint by patient, together complete, none empty."""
    ids = [c.id for part in split.values() for c in part]
    assert sorted(ids) == sorted(c.id for c in cases)
    names = ("train", "val", "test")
    assert set(split) == set(names)
    assert all(split.values())
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert not subjects(split, a) & subjects(split, b)


# Patients with 1 to 4 scans each, at least three patients.
datasets = st.lists(st.integers(1, 4), min_size=3, max_size=40).map(
    lambda counts: [
        case(10 * patient + scan, patient)
        for patient, count in enumerate(counts)
        for scan in range(count)
    ]
)
fractions = st.floats(0.01, 0.99)


@given(datasets, st.integers(0, 2**32 - 1), fractions, fractions)
def test_ratio_split_groups_patients_and_has_the_asked_sizes(cases, seed, test, val):
    split = split_cases(cases, kind="ratio", seed=seed, test_fraction=test, val_fraction=val)
    assert_dealt(split, cases)
    n = len({c.subject for c in cases})
    n_test, n_val = len(subjects(split, "test")), len(subjects(split, "val"))
    assert n_test == max(1, min(round(n * test), n - 2))
    assert n_val == max(1, min(round((n - n_test) * val), n - n_test - 1))


@given(datasets, st.integers(0, 100), st.randoms(use_true_random=False))
def test_split_depends_on_seed_not_on_order(cases, seed, rng: random.Random):
    shuffled = list(cases)
    rng.shuffle(shuffled)
    assert split_cases(cases, seed=seed) == split_cases(shuffled, seed=seed)


def test_seeds_differ():
    cases = [case(i, i) for i in range(30)]
    splits = [tuple(c.id for c in split_cases(cases, seed=s)["test"]) for s in range(5)]
    assert len(set(splits)) == 5


@settings(max_examples=50)
@given(datasets, st.integers(2, 6), st.integers(0, 100), fractions)
def test_every_patient_is_tested_in_exactly_one_fold(cases, folds, seed, val):
    n = len({c.subject for c in cases})
    arguments = {"kind": "kfold", "folds": folds, "seed": seed, "val_fraction": val}
    if folds > n or n - -(-n // folds) < 2:
        with pytest.raises(InputError, match="cannot fill"):
            split_cases(cases, **arguments)
        return
    splits = [split_cases(cases, fold=fold, **arguments) for fold in range(folds)]
    for split in splits:
        assert_dealt(split, cases)
    tested = [subject for split in splits for subject in sorted(subjects(split, "test"))]
    assert len(tested) == len(set(tested)) == n
    sizes = [len(subjects(split, "test")) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_paper_share_of_verse19():
    # 141 patients, 80/20: 28 in the test set, a tenth of the remaining 113 for validation.
    split = split_cases([case(i, i) for i in range(141)], kind="ratio")
    assert [len(split[name]) for name in ("train", "val", "test")] == [102, 11, 28]


def test_one_patient_serves_all_three_with_a_warning(caplog):
    cases = [case(1, 1), case(2, 1)]
    with caplog.at_level(logging.WARNING, "spinejax"):
        split = split_cases(cases)
    assert split == {"train": cases, "val": cases, "test": cases}
    assert "only one patient: training, validation and test are the same scans" in caplog.text


def test_two_patients_share_validation_and_test_with_a_warning(caplog):
    cases = [case(1, 1), case(2, 1), case(3, 2)]
    with caplog.at_level(logging.WARNING, "spinejax"):
        split = split_cases(cases, seed=3)
    assert split["val"] == split["test"]
    assert subjects(split, "train") | subjects(split, "test") == {"patient001", "patient002"}
    assert not subjects(split, "train") & subjects(split, "test")
    assert "only two patients" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_share_of_zero_leaves_a_set_empty(count, caplog):
    cases = [case(i, i) for i in range(count)]
    with caplog.at_level(logging.WARNING, "spinejax"):
        split = split_cases(cases, test_fraction=0.0, val_fraction=0.0)
    assert split == {"train": cases, "val": [], "test": []}
    assert not caplog.text
    for name, share in (("val", "test_fraction"), ("test", "val_fraction")):
        split = split_cases(cases, **{share: 0.0})
        assert len(subjects(split, name)) == 1
        assert len(subjects(split, "train")) == max(1, count - 1)
        assert sum(len(part) == 0 for part in split.values()) == 1


def test_a_share_of_zero_beside_one_patient_names_the_sets_that_are_the_same(caplog):
    cases = [case(1, 1)]
    with caplog.at_level(logging.WARNING, "spinejax"):
        assert split_cases(cases, test_fraction=0.0) == {"train": cases, "val": cases, "test": []}
    assert "training and validation are the same scans" in caplog.text


def test_official_takes_no_training_patient_for_validation_if_its_share_is_zero():
    cases = [case(i, i, "train") for i in range(5)] + [case(9, 9, "test")]
    split = split_cases(cases, kind="official", val_fraction=0.0)
    assert split == {"train": cases[:5], "val": [], "test": cases[5:]}


def test_auto_is_official_where_folders_say_so_and_ratio_elsewhere():
    named = [case(1, 1, "train"), case(2, 2, "val"), case(3, 3, "test"), case(4, 4, "test")]
    split = split_cases(named, kind="auto")
    assert {k: [c.id for c in v] for k, v in split.items()} == {
        "train": ["scan001"],
        "val": ["scan002"],
        "test": ["scan003", "scan004"],
    }
    partly = [*named, case(5, 5)]
    assert split_cases(partly, kind="auto", seed=1) == split_cases(partly, kind="ratio", seed=1)
    only_train = [case(i, i, "train") for i in range(5)]
    assert split_cases(only_train, kind="auto") == split_cases(only_train, kind="ratio")


def test_official_split_never_parts_a_patient(caplog):
    cases = [
        case(1, 1, "train"),
        case(2, 1, "test"),  # a second series, or the other edition
        case(3, 2, "train"),
        case(4, 3, "train", copy_subsets=("val",)),
        case(5, 4, "val"),
        case(6, 5, "train", duplicate_of="scan003"),
    ]
    with caplog.at_level(logging.INFO, "spinejax"):
        split = split_cases(cases, kind="official")
    assert {k: [c.id for c in v] for k, v in split.items()} == {
        "train": ["scan003"],
        "val": ["scan004", "scan005"],
        "test": ["scan001", "scan002"],
    }
    assert moved_patients(cases) == ["patient001", "patient003"]
    assert "2 patients have scans in several subsets" in caplog.text


def test_official_without_validation_takes_training_patients(caplog):
    cases = [case(i, i, "train") for i in range(20)] + [case(30, 30, "test")]
    split = split_cases(cases, kind="official", val_fraction=0.1)
    assert_dealt(split, cases)
    assert len(split["val"]) == 2
    assert "no official validation scans" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "officail"}, "choose one of .*did you mean 'official'"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1 must be a number of at least 0"),
        ({"val_fraction": float("nan")}, "val_fraction=nan must be"),
        ({"kind": "kfold", "fold": 5}, "fold must be 0 to 4 for 5 folds, not 5"),
        ({"kind": "kfold", "fold": -1}, "fold must be 0 to 4"),
        ({"kind": "kfold", "folds": 1}, "folds=1 must be .* from 2"),
        ({"kind": "kfold", "folds": 9}, "8 patients cannot fill 9 folds"),
        ({"kind": "official"}, "no official subset for 8 of 8 scans"),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments, text):
    with pytest.raises(InputError, match=text) as error:
        split_cases([case(i, i) for i in range(8)], **arguments)
    assert "\n" not in str(error.value)


def test_no_cases_and_half_an_official_split_are_refused():
    with pytest.raises(InputError, match="no usable case"):
        split_cases([])
    with pytest.raises(InputError, match="no usable test scans"):
        split_cases([case(1, 1, "train"), case(2, 2, "val")], kind="official")
    with pytest.raises(InputError, match="one training patient"):
        split_cases([case(1, 1, "train"), case(2, 2, "test")], kind="official")
