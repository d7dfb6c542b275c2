"""The numbers that masks of VerSe and of other programs give to vertebrae.

Sources, read in the programs' repositories on GitHub:

* `verse`: Sekuboyina et al. 2021, Medical Image Analysis 73:102166. 26 and 27 are reserved for the
  sacrum and the coccyx.
* `totalsegmentator`: the class map `total` of version 2 (wasserth/TotalSegmentator,
  `totalsegmentator/map_to_binary.py`): 27 is L5, 50 is C1. 25 is the sacrum, 26 its vertebra S1.
  The other classes, up to 117, are organs and other bones. There is no L6 and no T13.
* `totalsegmentator_v1`: the class map `total_v1` of the same file, of version 1: 18 is L5, 41 is
  C1, and the last class is 104.
* `totalspineseg`: neuropoly/totalspineseg, `README.md` ("List of classes"). L6 is in
  `totalspineseg/resources/labels_maps/tss_map.json` only, and so is L7, which VerSe does not have.
  1 and 2 are the spinal cord and the canal, 50 is the sacrum, and 63 to 100 are discs.
* `spineps`: Hendrik-code/spineps, `README.md` ("Labels"), and Hendrik-code/TPTBox,
  `TPTBox/core/vert_constants.py`. Vertebrae have VerSe's numbers. 29 to 33 are S2 to S6, 100 more
  than a vertebra's number is the disc below it, and 200 more is its endplate. TPTBox's ribs (32
  more than the vertebra) are left out, because they have the numbers of SPINEPS' masks of
  subregions, where 41 to 50 are no levels.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelScheme:
    """The numbers in the masks of one program.

    Attributes:
        vertebrae: number -> name of the vertebra.
        others: numbers of what is no vertebra.
    """

    vertebrae: Mapping[int, str]
    others: Collection[int]

    @property
    def numbers(self) -> set[int]:
        """All numbers that masks may have; 0 is background."""
        return {0, *self.vertebrae, *self.others}


_C = tuple(f"C{i}" for i in range(1, 8))
_T = tuple(f"T{i}" for i in range(1, 13))
_L = tuple(f"L{i}" for i in range(1, 7))
_C1_TO_L5 = (*_C, *_T, *_L[:5])


def _down(first: int, names: Collection[str]) -> dict[int, str]:
    """Return numbers that grow from head to foot."""
    return dict(enumerate(names, start=first))


def _up(first: int, names: Collection[str]) -> dict[int, str]:
    """Return numbers that grow from foot to head, for names from head to foot."""
    return _down(first, tuple(names)[::-1])


def _besides(vertebrae: Mapping[int, str], last: int) -> set[int]:
    return set(range(1, last + 1)) - set(vertebrae)


_VERSE = {**_down(1, (*_C, *_T, *_L)), 28: "T13"}
_TOTAL = _up(27, _C1_TO_L5)
_TOTAL_V1 = _up(18, _C1_TO_L5)

SCHEMES: dict[str, LabelScheme] = {
    "verse": LabelScheme(_VERSE, (26, 27)),
    "totalsegmentator": LabelScheme(_TOTAL, _besides(_TOTAL, 117)),
    "totalsegmentator_v1": LabelScheme(_TOTAL_V1, _besides(_TOTAL_V1, 104)),
    "totalspineseg": LabelScheme(
        {**_down(11, _C), **_down(21, _T), **_down(41, _L)},
        (1, 2, 50, *range(63, 68), *range(71, 83), *range(91, 96), 100),
    ),
    "spineps": LabelScheme(_VERSE, (26, 27, *range(29, 34), *range(101, 134), *range(201, 234))),
}
"""Name of a scheme -> its numbers."""

BINARY = "binary"
"""The name for masks that do not tell vertebrae apart: every number above 0 is a vertebra."""

NAMES = (*SCHEMES, BINARY)
"""The values of `data.labels` and of `--labels`."""
