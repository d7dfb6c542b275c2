import numpy as np
import pytest

from spinejax import labels
from spinejax.label_schemes import SCHEMES


def test_ids_and_names_are_those_of_verse():
    # Sekuboyina et al. 2021: 1-7 C1-C7, 8-19 T1-T12, 20-25 L1-L6, 28 T13; 26, 27 are not used.
    expected = (
        [f"C{i}" for i in range(1, 8)]
        + [f"T{i}" for i in range(1, 13)]
        + [f"L{i}" for i in range(1, 7)]
    )
    assert [labels.name(i) for i in range(1, 26)] == expected
    assert labels.name(28) == "T13"
    assert labels.NUM_CLASSES == 27
    assert set(labels.NAMES) == set(labels.VERSE_IDS)
    for unused in (0, 26, 27, 29, -1):
        with pytest.raises(ValueError, match="not the VerSe id"):
            labels.name(unused)


def test_names_lead_back_to_ids():
    assert [labels.id_of(labels.name(i)) for i in labels.VERSE_IDS] == list(labels.VERSE_IDS)
    assert labels.id_of("l5") == 24
    with pytest.raises(ValueError, match="not a vertebra"):
        labels.id_of("S1")


def test_regions_count_seven_thirteen_six():
    regions = [labels.region(i) for i in labels.VERSE_IDS]
    assert [regions.count(r) for r in labels.REGIONS] == [7, 13, 6]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_contiguous_classes_keep_verse_order(dtype):
    verse = np.array([[0, *range(1, 26), 28]], dtype=dtype)
    classes = labels.to_contiguous(verse)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, np.arange(27)[None])
    assert labels.to_contiguous(np.zeros((0, 2), dtype)).shape == (0, 2)


@pytest.mark.parametrize("bad", [26, 27, 29, 255])
def test_ids_without_a_class_are_refused(bad):
    with pytest.raises(ValueError, match=r"reserves 26 and 27|lie in 0 to 28"):
        labels.to_contiguous(np.array([1, bad], dtype=np.int32))


@pytest.mark.parametrize(
    "spine",
    [
        pytest.param([*range(1, 25)], id="usual"),
        pytest.param([*range(1, 26)], id="L6"),
        pytest.param([*range(8, 20), 28, *range(20, 25)], id="T13"),
        pytest.param([*range(8, 19), *range(20, 25)], id="no T12"),
        pytest.param([*range(8, 24)], id="no L5"),
    ],
)
def test_spines_that_exist_are_legal(spine):
    for upper, lower in zip(spine, spine[1:], strict=False):
        assert lower in labels.successors(upper)
        assert labels.order(upper) < labels.order(lower)
    assert labels.can_end_lumbar(spine[-1])


def test_other_successions_are_not_legal():
    pairs = {(a, b) for a in labels.VERSE_IDS for b in labels.successors(a)}
    # 24 steps of the usual order up to L6; T11 -> L1, T12 -> T13 and T13 -> L1 besides.
    assert len(pairs) == 24 + 3
    assert not any(labels.can_end_lumbar(i) for i in (1, 19, 22, 28))


# From the class maps of the programs: wasserth/TotalSegmentator map_to_binary.py (`total`,
# `total_v1`), neuropoly/totalspineseg README.md, Hendrik-code/spineps README.md.
PUBLISHED = {
    "totalsegmentator": {"L5": 27, "L1": 31, "T12": 32, "T1": 43, "C7": 44, "C1": 50},
    "totalsegmentator_v1": {"L5": 18, "L1": 22, "T12": 23, "T1": 34, "C7": 35, "C1": 41},
    "totalspineseg": {"C1": 11, "C7": 17, "T1": 21, "T12": 32, "L1": 41, "L5": 45},
    "spineps": {"C1": 1, "C7": 7, "T1": 8, "T12": 19, "T13": 28, "L1": 20, "L6": 25},
}


@pytest.mark.parametrize("scheme", PUBLISHED)
def test_numbers_of_other_programs_become_verse_ids(scheme):
    of = SCHEMES[scheme]
    numbers = {name: number for number, name in of.vertebrae.items()}
    assert {name: numbers[name] for name in PUBLISHED[scheme]} == PUBLISHED[scheme]
    assert len(numbers) == len(of.vertebrae) and not set(of.vertebrae) & set(of.others)
    array = np.array(sorted(of.numbers), np.uint8).reshape(1, -1, 1)
    ids = array.copy()
    labels.translate(ids, labels.verse_ids(scheme))
    for before, after in zip(array.ravel().tolist(), ids.ravel().tolist(), strict=True):
        named = before in of.vertebrae
        assert after == (labels.id_of(of.vertebrae[before]) if named else 0)


def test_labels_are_listed_from_head_to_foot():
    array = np.zeros((2, 3, 9), np.uint8)
    array[:, :, 0], array[:, 0, 4], array[0, 0, 5:8] = 30, 200, 7
    assert labels.from_head_to_foot(array) == (7, 200, 30)
    assert labels.from_head_to_foot(np.zeros((2, 2, 2), np.uint8)) == ()


@pytest.mark.parametrize(
    ("found", "given", "likely"),
    [
        ((20, 21, 22), "verse", ()),
        ((18, 20, 21, 26), "verse", ()),  # no T12; sacrum
        ((12, 13, 19, 20), "verse", ()),  # a prediction that missed vertebrae
        ((51, 110, 33, 32, 31, 30, 1, 5), "verse", ("totalsegmentator",)),  # organs, too
        # The numbers alone could be VerSe's T11 to L5, but they grow from foot to head.
        ((24, 23, 22, 21, 20, 19, 18), "verse", ("totalsegmentator_v1",)),
        ((33, 32, 31), "verse", ("totalsegmentator", "totalsegmentator_v1")),
        ((1, 2, 31, 81, 32, 91, 41, 92, 42, 50), "verse", ("totalspineseg",)),
        ((20, 120, 220, 21, 121, 26), "verse", ("spineps",)),
        ((18, 19, 20), "totalsegmentator", ("verse",)),
        ((41, 45, 42, 44, 49, 50), "verse", ()),  # subregions of SPINEPS
        ((1,), "verse", ()),  # a binary mask
        ((), "verse", ()),
        ((255, 100), "verse", ()),
        ((31, 32), None, ("totalspineseg",)),
    ],
    ids=str,
)
def test_numbers_in_a_mask_tell_which_program_wrote_it(found, given, likely):
    assert labels.likely_schemes(found, given) == likely


def test_every_level_has_a_colour_and_dicom_codes_are_unique():
    assert set(labels.RGB) == set(labels.NAMES)
    # CID 7603 of DICOM has C1 to C7, T1 to T12, L1 to L5.
    assert set(labels.SNOMED) == set(range(1, 25))
    assert len({*labels.SNOMED.values(), labels.SNOMED_VERTEBRA}) == 25
