"""The cost of a call in two processes is measured on a state that both forms keep right."""

from tests.benchmarks import processes


def test_both_forms_are_measured_in_two_processes():
    # A form that lost or changed an array of the state would fail in its process.
    ((leaves, *times),) = processes.measure(leaves=(20,), calls=3)
    assert leaves == 20 and len(times) == 2 and min(times) > 0
