"""Vertebra labels: VerSe ids, contiguous classes, names and legal successions.

VerSe ids (Sekuboyina et al. 2021, Medical Image Analysis 73:102166): 1-7 are C1-C7, 8-19 are
T1-T12, 20-25 are L1-L6, and 28 is T13. 26 (sacrum) and 27 (coccyx) are reserved, but were never
annotated; they are no vertebrae. In a mask of VerSe ids they count as background, in training and
in scores, in references and in predictions (`drop_reserved`). The contiguous classes of a network's
output are 0 for background, 1-25 as in VerSe, and 26 for T13.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from spinejax.label_schemes import SCHEMES

NAMES: dict[int, str] = dict(SCHEMES["verse"].vertebrae)
"""VerSe id -> name."""

VERSE_IDS: tuple[int, ...] = (*range(1, 26), 28)
"""VerSe ids of vertebrae; the one at index i has the contiguous class i + 1."""

NUM_CLASSES = 1 + len(VERSE_IDS)
"""Number of contiguous classes: background and 26 vertebrae."""

MAX_ID = max(VERSE_IDS)

RESERVED: dict[int, str] = {26: "sacrum", 27: "coccyx"}
"""Ids of VerSe that are no vertebrae."""

REGIONS = ("C", "T", "L")

_NO_CLASS = 255
_TO_CONTIGUOUS = np.full(256, _NO_CLASS, dtype=np.uint8)
_TO_CONTIGUOUS[[0, *VERSE_IDS]] = np.arange(NUM_CLASSES)
_IDS = {label_name: verse_id for verse_id, label_name in NAMES.items()}

# From head to foot. T11 may be the last vertebra with ribs (no T12), and T13 may be an additional
# one. L4, L5 or L6 may rest on the sacrum.
_SUCCESSORS: dict[int, tuple[int, ...]] = {
    **{i: (i + 1,) for i in range(1, 25)},
    18: (19, 20),
    19: (20, 28),
    28: (20,),
    25: (),
}


RGB: dict[int, tuple[int, int, int]] = {
    1: (105, 235, 212), 2: (133, 106, 245), 3: (228, 73, 25), 4: (220, 216, 72),
    5: (105, 193, 252), 6: (25, 157, 120), 7: (63, 242, 189),
    8: (69, 124, 253), 9: (146, 172, 24), 10: (27, 176, 206), 11: (44, 246, 151),
    12: (106, 115, 251), 13: (96, 153, 29), 14: (69, 202, 232), 15: (193, 227, 25),
    16: (155, 97, 234), 17: (178, 121, 35), 18: (209, 161, 239), 19: (246, 202, 112),
    28: (174, 89, 219),
    20: (156, 133, 26), 21: (93, 232, 245), 22: (171, 198, 62), 23: (51, 143, 199),
    24: (230, 66, 70), 25: (248, 182, 254),
}  # fmt: skip
"""VerSe id -> colour. Neighbours differ with every common form of colour blindness, too."""

SNOMED: dict[int, str] = {
    1: "14806007", 2: "39976000", 3: "113205007", 4: "5329002", 5: "36978003", 6: "36054005",
    7: "87391001",
    8: "64864005", 9: "53733008", 10: "1626008", 11: "73071006", 12: "56401006", 13: "45296009",
    14: "62487009", 15: "11068009", 16: "82687006", 17: "7610001", 18: "12989004", 19: "23215003",
    20: "66794005", 21: "14293000", 22: "36470004", 23: "11994002", 24: "49668003",
}  # fmt: skip
"""VerSe id -> SNOMED CT code, from DICOM PS3.16, CID 7603; it has none of L6 and T13."""

SNOMED_VERTEBRA = "51282000"
"""SNOMED CT code of a vertebra of any level."""


def name(verse_id: int) -> str:
    """Return the name of a VerSe id, e.g. "T13" for 28; ValueError if it is no vertebra."""
    if verse_id not in NAMES:
        raise ValueError(f"{verse_id} is not the VerSe id of a vertebra (1 to 25, or 28 for T13)")
    return NAMES[verse_id]


def id_of(label_name: str) -> int:
    """Return the VerSe id of a name, e.g. 28 for "T13"; ValueError if there is none."""
    if label_name.upper() not in _IDS:
        raise ValueError(f"{label_name!r} is not a vertebra (C1 to C7, T1 to T13, L1 to L6)")
    return _IDS[label_name.upper()]


def region(verse_id: int) -> str:
    """Return the part of the spine: "C" (cervical), "T" (thoracic) or "L" (lumbar)."""
    return name(verse_id)[0]


def view(ids: Collection[int]) -> str:
    """Return which regions vertebrae with these VerSe ids belong to, e.g. "thoracic and lumbar"."""
    names = {"C": "cervical", "T": "thoracic", "L": "lumbar"}
    present = {region(verse_id) for verse_id in ids}
    return " and ".join(names[one] for one in REGIONS if one in present)


def variants(ids: Collection[int]) -> list[str]:
    """Return the variants of the spine that vertebrae with these VerSe ids show."""
    found = [label_name for label_name in ("T13", "L6") if id_of(label_name) in ids]
    t11, t12, l1 = map(id_of, ("T11", "T12", "L1"))
    return found + ["no T12"] * (t11 in ids and l1 in ids and t12 not in ids)


def order(verse_id: int) -> float:
    """Return the anatomical rank from head to foot, for sorting; T13 is between T12 and L1."""
    name(verse_id)
    return 19.5 if verse_id == 28 else float(verse_id)


def successors(verse_id: int) -> tuple[int, ...]:
    """Return the VerSe ids that may follow directly below a vertebra, the usual one first.

    The variants are T11 -> L1 (no T12), T12 -> T13 -> L1, and L5 -> L6. A spine without L5 ends at
    L4, see `can_end_lumbar`. Of the 113 training scans of VerSe'20, 16 have L6, 2 have T13, and 3
    lack T12.
    """
    name(verse_id)
    return _SUCCESSORS[verse_id]


def can_end_lumbar(verse_id: int) -> bool:
    """Return whether the sacrum may follow: after L4 (no L5), L5 and L6.

    At the end of the scan's field of view, any vertebra may be the last one.
    """
    return name(verse_id) in ("L4", "L5", "L6")


def verse_ids(scheme: str) -> dict[int, int]:
    """Return number -> VerSe id for every number of a scheme; 0 for what is no vertebra."""
    of = SCHEMES[scheme]
    return dict.fromkeys(of.numbers, 0) | {i: id_of(one) for i, one in of.vertebrae.items()}


def translate(array: np.ndarray, ids: Mapping[int, int]) -> None:
    """Replace numbers by VerSe ids, in place.

    Args:
        array: uint8, any shape with at least one axis.
        ids: number -> VerSe id, for every number in `array`.
    """
    table = np.zeros(256, np.uint8)
    table[list(ids)] = list(ids.values())
    for part in array.T:  # slice by slice, because indexing makes a copy
        part[...] = table[part]


def from_head_to_foot(array: np.ndarray) -> tuple[int, ...]:
    """Return the labels above 0 in a mask, the highest first, by the mean height of their voxels.

    Args:
        array: (x, y, z) uint8, z from foot to head.
    """
    counts = np.zeros((array.shape[2], 256))
    for z in range(array.shape[2]):  # bincount copies its input to 8 bytes each
        counts[z] = np.bincount(array[:, :, z].ravel(order="K"), minlength=256)
    total = counts.sum(axis=0)
    found = np.flatnonzero(total[1:]) + 1
    height = np.arange(array.shape[2]) @ counts[:, found] / total[found]
    return tuple(found[np.argsort(-height, kind="stable")].tolist())


def likely_schemes(found: Sequence[int], given: str | None = None) -> tuple[str, ...]:
    """Return the schemes that a mask seems to have instead of the one that was given.

    A mask has a scheme if that knows all its numbers, if it shows at least two vertebrae, and if
    they follow one another from head to foot, with no more than one level between them left out.
    The given scheme is doubted only if it does not know a number, if it knows no vertebra in the
    mask, or if the vertebrae are not in order. VerSe's numbers grow from head to foot, and those of
    TotalSegmentator from foot to head. So even numbers that both have tell the two apart.

    Args:
        found: the numbers in the mask, see `from_head_to_foot`.
        given: the name of the scheme that the user gave; None where it is known to be wrong.

    Returns:
        The names, the likeliest first; none where `given` may be right or nothing else fits.
    """
    if given is not None:
        steps = _steps(found, given)
        if steps is not None and all(step > 0 for step in steps):
            return ()
    fitting = []
    for other in SCHEMES:
        if other == "spineps" and "verse" in fitting:
            continue  # it has VerSe's numbers
        steps = None if other == given else _steps(found, other)
        if steps and all(0 < step <= 2 for step in steps):
            fitting.append(other)
    return tuple(fitting)


def _steps(found: Sequence[int], scheme: str) -> list[float] | None:
    """Return the steps between the vertebrae of a mask in levels; None if it has another scheme.

    It has another one if a number is unknown or no number is that of a vertebra.
    """
    of = SCHEMES[scheme]
    ranks = [order(id_of(of.vertebrae[i])) for i in found if i in of.vertebrae]
    if not ranks or not of.numbers.issuperset(found):
        return None
    return [lower - upper for upper, lower in zip(ranks, ranks[1:], strict=False)]


def likely_words(schemes: Iterable[str]) -> str:
    """Return what the numbers of a mask look like, e.g. "those of totalsegmentator"."""
    return "those of " + " or ".join(schemes)


def drop_reserved(array: np.ndarray) -> tuple[int, ...]:
    """Set the sacrum and the coccyx to background, in place.

    An array with a number above 28 has another scheme and is left alone.

    Args:
        array: integer labels, any shape.

    Returns:
        The ids that were dropped.
    """
    if not array.size or int(array.max()) > MAX_ID:
        return ()
    dropped = []
    for reserved in RESERVED:
        where = array == reserved
        if where.any():
            array[where] = 0
            dropped.append(reserved)
    return tuple(dropped)


def reserved_note(found: Mapping[str, Sequence[int]]) -> str | None:
    """Return one line about the masks with sacrum or coccyx; None if there are none.

    Args:
        found: name of a mask -> what `drop_reserved` returned.
    """
    named = [name for name, ids in found.items() if ids]
    if not named:
        return None
    ids = sorted({i for ids in found.values() for i in ids})
    what = " and ".join(f"{i} ({RESERVED[i]})" for i in ids)
    verb = "labels {} {} count" if len(ids) > 1 else "label {} {} counts"
    where = f"of {len(named)} mask{'s' * (len(named) > 1)} (first: {named[0]})"
    return f"{verb.format(what, where)} as background: no vertebra"


def foreign_note(found: Mapping[str, Sequence[int]]) -> str | None:
    """Return one line about scored masks with labels above 28; None if there are none.

    Args:
        found: name of a mask -> its labels above `MAX_ID`.
    """
    named = [name for name, ids in found.items() if ids]
    if not named:
        return None
    ids = sorted({i for ids in found.values() for i in ids})
    shown = ", ".join(map(str, ids[:4])) + (", ..." if ids[4:] else "")
    return (
        f"labels that VerSe does not have ({shown}) in {len(named)} mask{'s' * (len(named) > 1)} "
        f"(first: {named[0]}): they count as bone, but as no vertebra. Renumber the masks to VerSe "
        "ids, or add labels=binary"
    )


def to_contiguous(array: np.ndarray) -> np.ndarray:
    """Return the contiguous classes 0 to 26 of VerSe ids, uint8, any shape.

    Raises:
        ValueError: an id is neither 0 nor that of a vertebra.
    """
    ids = np.asarray(array)
    if ids.size and (ids.min() < 0 or ids.max() > MAX_ID):
        raise ValueError(f"VerSe ids lie in 0 to {MAX_ID}, not {ids.min()} to {ids.max()}")
    classes = _TO_CONTIGUOUS[ids]
    if (classes == _NO_CLASS).any():
        bad = sorted(np.unique(ids[classes == _NO_CLASS]).tolist())
        raise ValueError(f"ids {bad} are not vertebrae; VerSe reserves 26 and 27")
    return classes
