import numpy as np
import pytest

from spinejax import labels


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
