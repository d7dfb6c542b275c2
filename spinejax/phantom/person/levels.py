"""Mean sizes, distances and tilts of the vertebrae, by level; `anatomy` varies them.

All lengths are millimetres in the vertebra's own frame: origin at the centroid of the body, x to
the left, y to posterior, z to superior along the vertebra's axis. The posterior elements are given
relative to the posterior wall of the body (y = half depth). Values are rounded from morphometric
tables of adult spines as taught in anatomy and adjusted so that whole-vertebra volumes, extents
and distances agree with annotated CT (tests/phantom/person/test_anatomy.py has the numbers).
"""

import numpy as np

SLOTS = 26
"""C1-C7, T1-T13, L1-L6 from top to bottom, each a place that a spine may or may not fill."""

SLOT_IDS = np.array([*range(1, 20), 28, *range(20, 26)], np.int32)
"""VerSe id of each slot: 28 (T13) stands between T12 (19) and L1 (20)."""

C1, C2, C3, C7, T1, T11, T12, T13, L1, L5, L6 = 0, 1, 2, 6, 7, 17, 18, 19, 20, 24, 25

COLUMNS = (
    "a",  # half width of the body
    "b",  # half depth of the body
    "h",  # half height of the body
    "wedge",  # how much higher the body is in front than behind, half
    "conc",  # depth of the endplate's hollow
    "cw",  # half width of the canal
    "cd",  # depth of the canal, front to back
    "prx",  # half width of the pedicle
    "prz",  # half height of the pedicle
    "pz",  # height at which the pedicle leaves the body
    "tx",  # half span of the transverse processes
    "ty",  # their tips behind the body's posterior wall
    "tz",  # height of their tips
    "trx",  # half thickness of a transverse process, front to back
    "trz",  # half thickness, up and down
    "sy",  # tip of the spinous process behind the body's posterior wall
    "sz",  # height of that tip (the middle of the process)
    "sh",  # half height of the spinous process
    "sr",  # half thickness of the spinous process
    "bif",  # half distance of the two tips (cervical)
    "ux",  # superior articular process: side, depth behind the wall, top
    "uy",
    "uz",
    "ix",  # inferior articular process: side, depth behind the wall, bottom
    "iy",
    "iz",
    "fr",  # radius of the articular processes
    "lh",  # half height of the lamina
    "lz",  # height of the lamina at the midline
    "lt",  # half thickness of the lamina
    "lean",  # how far its upper edge lies in front, mm per mm (negative)
)

# fmt: off
_ANCHORS = {
    # columns as in COLUMNS, two or three per word of anatomy: body, canal, pedicle, processes
    2:  (11.6, 8.7, 6.7, 0.3, 0.5, 12.0, 14.5, 3.4, 4.0, 0.5, 27.5, -3.0, -1.0, 3.2, 3.6, 27.0, -6.8, 4.4, 3.4, 4.0, 19.0, 3.0, 12.2, 19.5, 10.5, -15.8, 6.2, 7.8, -2.0, 3.4, -0.25),  # noqa: E501
    4:  (12.5, 8.9, 6.4, 0.3, 0.5, 12.3, 14.5, 3.4, 4.0, 0.5, 28.5, -2.0, -1.0, 3.4, 3.6, 28.0, -7.8, 4.4, 3.4, 4.0, 19.5, 3.0, 12.2, 20.0, 10.5, -15.9, 6.2, 7.9, -2.0, 3.6, -0.25),  # noqa: E501
    5:  (13.2, 9.2, 6.5, 0.3, 0.5, 12.5, 14.5, 3.5, 4.2, 0.5, 29.5, 0.0, -1.0, 3.6, 3.8, 36.0, -8.8, 4.6, 3.4, 3.0, 19.5, 3.0, 12.2, 19.5, 10.5, -16.0, 6.0, 8.0, -2.0, 3.7, -0.25),  # noqa: E501
    6:  (16.0, 10.0, 7.2, 0.2, 0.5, 12.0, 14.5, 3.8, 4.6, 1.0, 34.0, 7.0, 0.0, 4.3, 4.9, 43.0, -14.0, 6.6, 4.4, 0.0, 17.0, 5.0, 14.0, 15.5, 12.5, -19.8, 6.0, 9.1, -3.0, 3.8, -0.28),  # noqa: E501
    7:  (16.7, 11.1, 8.6, 0.0, 0.6, 10.5, 15.0, 4.5, 5.7, 2.5, 37.0, 16.0, 4.0, 5.9, 6.3, 43.0, -18.0, 7.4, 5.0, 0.0, 14.0, 8.0, 16.0, 12.5, 12.5, -21.4, 6.1, 10.1, -5.0, 4.1, -0.3),  # noqa: E501
    9:  (15.9, 13.0, 9.4, -0.3, 0.7, 9.0, 15.5, 3.4, 6.7, 3.5, 34.0, 22.0, 6.0, 5.8, 6.1, 42.0, -23.0, 7.1, 4.4, 0.0, 12.0, 9.0, 16.0, 11.5, 14.0, -20.5, 5.5, 11.1, -6.0, 4.1, -0.32),  # noqa: E501
    11: (15.9, 14.7, 9.8, -0.5, 0.8, 8.7, 15.5, 3.1, 7.0, 3.8, 32.5, 25.0, 6.0, 5.8, 6.4, 44.0, -26.0, 7.1, 4.1, 0.0, 11.5, 9.5, 15.6, 11.0, 14.5, -19.7, 5.5, 10.7, -7.0, 4.1, -0.33),  # noqa: E501
    13: (15.7, 15.5, 9.8, -0.6, 0.9, 8.7, 15.5, 3.4, 7.3, 3.8, 31.0, 24.5, 5.0, 5.8, 6.4, 43.0, -24.0, 7.1, 3.7, 0.0, 11.5, 9.5, 15.8, 11.0, 14.5, -19.9, 5.5, 10.8, -7.0, 4.1, -0.35),  # noqa: E501
    15: (16.9, 16.5, 9.7, -0.5, 1.0, 8.8, 15.5, 4.0, 7.7, 3.6, 28.5, 22.0, 4.0, 5.5, 6.3, 37.0, -18.0, 7.4, 3.7, 0.0, 12.0, 9.5, 14.7, 11.0, 14.5, -19.7, 5.5, 10.9, -7.0, 4.2, -0.32),  # noqa: E501
    16: (18.3, 16.9, 10.4, -0.4, 1.1, 9.0, 15.8, 4.4, 8.1, 3.6, 28.0, 20.0, 3.0, 5.5, 6.3, 36.0, -12.2, 7.7, 3.7, 0.0, 12.5, 10.0, 13.9, 11.0, 15.0, -18.8, 5.7, 11.0, -7.0, 4.2, -0.31),  # noqa: E501
    17: (20.1, 17.3, 11.2, -0.3, 1.2, 9.6, 16.2, 5.0, 8.6, 3.8, 24.5, 16.0, 2.0, 5.2, 6.1, 36.0, -9.4, 8.3, 3.9, 0.0, 13.5, 11.0, 15.0, 11.0, 16.0, -20.4, 5.8, 11.1, -7.0, 4.4, -0.3),  # noqa: E501
    18: (21.0, 17.3, 11.9, -0.2, 1.3, 10.8, 16.6, 4.8, 8.2, 3.8, 24.5, 13.0, 1.0, 4.7, 5.5, 38.0, -8.6, 8.4, 3.7, 0.0, 15.0, 12.5, 16.6, 11.0, 17.5, -22.0, 5.5, 11.2, -6.5, 4.2, -0.31),  # noqa: E501
    19: (21.2, 17.4, 12.0, -0.1, 1.4, 11.0, 16.6, 4.8, 8.2, 3.8, 27.0, 13.0, 1.0, 4.5, 5.3, 39.0, -8.8, 9.0, 3.7, 0.0, 15.3, 12.8, 16.6, 11.0, 17.8, -22.6, 5.5, 11.3, -6.5, 4.5, -0.31),  # noqa: E501
    20: (21.8, 17.7, 12.3, 0.0, 1.5, 11.2, 16.8, 4.7, 8.0, 4.0, 38.5, 11.0, 2.0, 3.9, 5.3, 41.0, -10.0, 10.3, 3.9, 0.0, 16.0, 13.0, 17.9, 11.0, 18.5, -24.2, 5.6, 11.4, -6.0, 4.7, -0.32),  # noqa: E501
    22: (23.8, 18.6, 12.7, 0.5, 1.8, 11.8, 16.8, 5.5, 7.8, 4.0, 45.5, 10.0, 2.0, 3.8, 5.3, 45.0, -12.3, 11.9, 4.3, 0.0, 17.5, 13.0, 19.8, 12.0, 18.5, -27.0, 6.1, 11.7, -6.0, 5.0, -0.34),  # noqa: E501
    23: (25.0, 18.8, 12.6, 0.9, 1.8, 12.2, 16.6, 6.6, 7.6, 3.8, 43.5, 11.0, 2.5, 4.1, 5.8, 43.0, -12.0, 11.4, 4.7, 0.0, 18.5, 13.0, 19.4, 14.0, 18.0, -25.7, 6.3, 11.2, -5.0, 4.9, -0.35),  # noqa: E501
    24: (25.8, 18.4, 12.3, 1.9, 1.7, 13.2, 16.6, 8.2, 7.6, 3.2, 44.0, 7.0, 3.0, 6.0, 7.3, 35.0, -11.0, 9.1, 4.2, 0.0, 20.0, 12.5, 18.4, 18.0, 17.0, -23.8, 6.6, 9.8, -4.0, 4.9, -0.38),  # noqa: E501
    25: (25.6, 18.4, 12.1, 2.1, 1.7, 13.6, 16.6, 8.4, 7.6, 3.2, 44.0, 7.0, 3.0, 6.1, 7.3, 34.0, -11.0, 8.3, 4.3, 0.0, 20.5, 12.5, 18.5, 18.5, 17.0, -22.5, 6.6, 9.6, -4.0, 4.8, -0.4),  # noqa: E501
}
# fmt: on


def table() -> np.ndarray:
    """Sizes of all slots: (26, columns) float32; C1 and C2 repeat C3 where they are not special."""
    known = np.array(list(_ANCHORS))
    values = np.array(list(_ANCHORS.values()))
    slots = np.arange(SLOTS)
    rows = np.stack([np.interp(slots, known, values[:, i]) for i in range(values.shape[1])], 1)
    # The axis: its body lies below the origin, because the dens belongs to it (see `AXIS`).
    for name, value in {"a": 9.5, "b": 8.3, "h": 7.4, "cw": 12.0, "cd": 17.0}.items():
        rows[C2, COLUMNS.index(name)] = value
    return rows.astype(np.float32)


AXIS_DROP_MM = 7.6
"""How far the middle of the axis's drum lies below its centroid, since the dens belongs to it."""
SACRUM_MM = 12.0
"""Half height of the first sacral segment."""

DISTANCES_MM = np.array(
    [17.2, 23.4, 18.6, 17.8, 17.4, 18.4, 20.6]  # C1-C2 ... C7-T1
    + [23.2, 24.0, 24.4, 24.9, 24.4, 24.0, 23.7, 23.5, 23.5, 25.4, 27.8, 28.2, 28.4]  # ... T13-L1
    + [30.4, 32.4, 33.0, 32.6, 32.4, 31.0],  # L1-L2 ... L6-S1
    np.float32,
)
"""From each slot's centroid to the next filled slot's, from the last to the sacrum."""

TILT_DEG = np.array(
    [-5, -10, -7, -2, 4, 9, 15]
    + [21, 22, 21, 18, 14, 9, 4, 0, -4, -8, -11, -13, -14]
    + [-15, -11, -2, 10, 26, 31, 49],
    np.float32,
)
"""Forward lean of each vertebra, from C1 to the sacrum: lordosis, kyphosis, lordosis."""

SACRAL_SLOPE_DEG = 42.0
"""Mean slope of the sacrum's upper plate."""

STEP_SD_DEG = np.array([1.0] * 20 + [2.0, 3.0, 4.0, 6.0, 3.0, 9.0], np.float32)
"""Standard deviation of the lean from each slot to the next, greatest at the sacrum."""

# Capsules of atlas and axis, which are unlike the rest, as (x0 y0 z0, x1 y1 z1, brush x y z,
# taper, shear): see shapes.capsules. Order: pedicle, superior and inferior process, lamina,
# transverse process, spinous process, and two of their own.
ATLAS = np.array(
    [
        (19, 4, -1, 16, 15, -4, 4.0, 4.0, 4.8, 0.95, 0),  # posterior arch, side
        (17.5, -3, 6, 17.5, -1, 2, 6.6, 8.5, 6.0, 1.0, 0),  # lateral mass
        (17.0, -3, 0, 16.0, -1, -5, 6.8, 8.0, 5.6, 1.0, 0),
        (16, 15, -4, 0, 21, -8, 3.8, 3.8, 5.0, 1.0, 0),  # posterior arch, back
        (22, -2, -1, 35, 1, -4, 4.6, 5.2, 5.4, 0.85, 0),  # transverse process
        (0, 21, -8, 0, 23, -10, 3.0, 3.0, 4.6, 1.0, 0),  # posterior tubercle
        (14, -11, 1, 0, -16.5, 1, 3.6, 3.6, 6.2, 1.0, 0),  # anterior arch
        (17, -4, 0, 14, -11, 1, 4.4, 4.4, 5.2, 1.0, 0),
    ],
    np.float32,
)
AXIS = np.array(
    [
        (8, 4, -4, 15, 12, -4, 5.0, 5.0, 6.0, 1.0, 0),  # pedicle
        (13.5, 3, 1, 15.5, 5, 0, 7.5, 7.5, 5.0, 1.0, 0),  # superior facets
        (17, 14, -7, 18.0, 16, -13, 6.4, 5.4, 4.8, 0.9, 0),  # inferior process
        (16, 14, -6, 2, 29, -9, 4.0, 4.1, 6.8, 1.0, 0),  # lamina
        (17, 4, -4, 24, 6, -8, 4.0, 4.0, 4.2, 0.9, 0),  # transverse process
        (0, 28, -10, 3, 38, -15, 4.1, 4.5, 6.8, 0.9, 0),  # spinous process, two tips
        (0, 0, -2, 0, 4.0, 17.5, 6.2, 6.0, 5.0, 0.8, 0),  # dens
        (6, 0, -6, 13, 3, -2, 5.0, 6.0, 5.0, 1.0, 0),  # shoulder of the body
    ],
    np.float32,
)
