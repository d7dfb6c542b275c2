"""The failure of one item is that item's; a failure of the machine ends the work."""

import errno
import logging

import pytest

from spinejax import failures
from spinejax.errors import InputError, MachineError

ERRORS = {
    "bad input": (InputError("a.nii.gz: is empty; get it again"), "a.nii.gz: is empty"),
    "memory": (MemoryError(), "not enough memory"),
    "system": (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    "unforeseen": (IndexError("index 3\nis out of bounds"), "unexpected IndexError: index 3 is"),
    "recursion": (RecursionError("too deep"), "unexpected RecursionError: too deep"),
    "device": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the device has not enough"),
}


def worker(errors, done):
    def work(name, number):
        if name in errors:
            raise errors[name]
        done.append(name)
        return 10 * number

    return work


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_whatever_fails_the_others_are_done(caplog, kind, place):
    error, said = ERRORS[kind]
    names = ["a", "b", "c"]
    done: list[str] = []
    items = {name: number for number, name in enumerate(names)}
    results, failed = failures.each(items, worker({names[place]: error}, done))
    others = [name for name in names if name != names[place]]
    assert done == others and results == {name: 10 * items[name] for name in others}
    assert list(failed) == [names[place]] and said in failed[names[place]]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and said in record.getMessage()
    assert record.getMessage().startswith(names[place])
    end = failures.summary(failed, 3, "the rest are done")
    assert str(end).startswith("1 of 3 scans failed: ") and said in str(end)
    assert "\n" not in str(end)


def test_several_failures_are_all_named_again_at_the_end(caplog):
    error, said = ERRORS["memory"]
    _, failed = failures.each(dict.fromkeys("abc", 0), worker({"a": error, "c": error}, []))
    caplog.clear()
    assert "2 of 3 scans failed: a: " in str(failures.summary(failed, 3, "the rest are done"))
    assert [r.getMessage().partition(" not")[0] for r in caplog.records] == [
        "failed: a:",
        "failed: c:",
    ]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "out/a.nii.gz"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "out/a.nii.gz"),
        OSError(errno.EROFS, "Read-only file system", "out/a.nii.gz"),
        MachineError("out: cannot be written"),
    ],
)
def test_a_failure_of_the_machine_ends_the_work_with_one_line(error, caplog):
    done: list[str] = []
    with pytest.raises(MachineError, match="out"):
        failures.each(dict.fromkeys("abc", 0), worker({"b": error}, done))
    assert done == ["a"] and not caplog.records


def test_a_device_without_room_for_any_scan_ends_the_work():
    full = ERRORS["device"][0]
    tried: list[str] = []

    def work(name, _):
        tried.append(name)
        raise full

    with pytest.raises(MachineError, match="device has not enough memory"):
        failures.each(dict.fromkeys("abcdef", 0), work)
    assert tried == ["a", "b"]


def test_the_failure_of_a_lone_item_is_raised(caplog):
    with pytest.raises(InputError, match="unexpected IndexError"):
        failures.each({"a": 0}, worker({"a": ERRORS["unforeseen"][0]}, []))
    assert not caplog.records


def test_an_interruption_is_no_failure():
    with pytest.raises(KeyboardInterrupt):
        failures.each(dict.fromkeys("ab", 0), worker({"a": KeyboardInterrupt()}, []))
