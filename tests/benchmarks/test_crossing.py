"""The bytes that come to the host, on small scans."""

from tests.benchmarks import crossing


def test_bytes_are_those_of_the_windows_or_of_the_classes():
    windows, host, device = crossing.row((32, 32, 40), (16, 16, 16), offsets=False)
    layers = 3  # 0, 12, 24
    assert windows == 9 * layers
    assert host == windows * 4 * 27 * 16**3
    assert device == layers * 3 * 32 * 32 * 16
    _, host, device = crossing.row((32, 32, 40), (16, 16, 16), offsets=True)
    assert host == windows * 4 * 30 * 16**3
    assert device == layers * (3 + 6) * 32 * 32 * 16


def test_slices_come_once_and_not_once_for_each_window():
    windows, host, device = crossing.row_of_slices((3, 64, 64), (32, 32))
    assert windows == 3 * 9  # at 0, 16 and 32 along each axis
    assert host == windows * 4 * 32**2
    assert device == 3 * 4 * 64**2
