"""Vertebra labels: VerSe ids, contiguous classes, names and legal successions.

VerSe ids (Sekuboyina et al. 2021, Medical Image Analysis 73:102166): 1-7 are C1-C7, 8-19 are
T1-T12, 20-25 are L1-L6, and 28 is T13. 26 (sacrum) and 27 (coccyx) are reserved, but were never
annotated; they are no vertebrae. In a mask of VerSe ids they count as background, in training and
in scores, in references and in predictions (`drop_reserved`). The contiguous classes of a network's
output are 0 for background, 1-25 as in VerSe, and 26 for T13.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

NAMES: dict[int, str] = {
    **{i: f"C{i}" for i in range(1, 8)},
    **{i + 7: f"T{i}" for i in range(1, 13)},
    **{i + 19: f"L{i}" for i in range(1, 7)},
    28: "T13",
}
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


def drop_reserved(array: np.ndarray) -> tuple[int, ...]:
    """Set the sacrum and the coccyx to background, in place.

    An array with a number above 28 has another numbering and is left alone.

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
