"""The failure of one item is that item's; a failure of the machine ends the work."""

import errno
import logging
import threading

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


def stages(errors, log):
    """Return the three functions of `in_stages`, which fail in the stages that `errors` names."""

    def stage(which):
        def do(name, value):
            if which in errors.get(name, {}):
                raise errors[name][which]
            log.append((which, name))
            return [*value, which]

        return do

    return stage("read"), stage("work"), stage("write")


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("which", ["read", "work", "write"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_whichever_stage_fails_the_other_items_are_done(caplog, kind, which, place):
    error, said = ERRORS[kind]
    names = ["a", "b", "c"]
    log: list[tuple[str, str]] = []
    items = {name: [name] for name in names}
    results, failed = failures.in_stages(items, *stages({names[place]: {which: error}}, log))
    others = [name for name in names if name != names[place]]
    assert results == {name: [name, "read", "work", "write"] for name in others}
    assert list(results) == others
    assert list(failed) == [names[place]] and said in failed[names[place]]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    for stage in ("read", "work", "write"):  # each stage takes the items in order
        assert [name for at, name in log if at == stage] == [
            name
            for name in names
            if name != names[place]
            or ["read", "work", "write"].index(stage) < ["read", "work", "write"].index(which)
        ]


def test_the_next_item_is_read_and_the_last_one_written_meanwhile():
    read_next, working = threading.Event(), threading.Event()

    def read(name, item):
        if name == "b":
            read_next.set()
        return item

    def work(name, item):
        if name == "a":
            assert read_next.wait(30)  # b is read while a is worked on
        else:
            working.set()
        return item

    def write(name, item):
        if name == "a":
            assert working.wait(30)  # b is worked on while a is written
        return item

    assert failures.in_stages({"a": 1, "b": 2}, read, work, write) == ({"a": 1, "b": 2}, {})


def test_at_most_three_items_are_held():
    class Scan:
        alive = 0

        def __init__(self):
            Scan.alive += 1

        def __del__(self):
            Scan.alive -= 1

    most = []

    def work(name, scan):
        most.append(Scan.alive)
        return scan

    failures.in_stages(dict.fromkeys("abcdefgh"), lambda *_: Scan(), work, lambda name, scan: name)
    assert max(most) <= 3


@pytest.mark.parametrize("which", ["read", "work", "write"])
def test_a_full_disk_ends_the_work_in_any_stage(which):
    log: list[tuple[str, str]] = []
    full = OSError(errno.ENOSPC, "No space left on device")
    items = {name: [name] for name in "abcde"}
    with pytest.raises(MachineError, match="the disk is full"):
        failures.in_stages(items, *stages({"b": {which: full}}, log))
    assert ("write", "a") in log  # what was begun is written
    assert ("work", "e") not in log


@pytest.mark.parametrize("which", ["read", "work", "write"])
def test_a_lone_item_that_fails_raises_in_any_stage(which):
    error, said = ERRORS["bad input"]
    with pytest.raises(InputError, match=said):
        failures.in_stages({"a": ["a"]}, *stages({"a": {which: error}}, []))
    assert failures.in_stages({}, *stages({}, [])) == ({}, {})
