import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from spinejax.errors import InputError, MachineError
from spinejax.files import (
    LIST,
    atomic_path,
    check_output,
    claim,
    expanded,
    is_ours,
    made,
    open_regular,
    read_regular,
    remove,
    write_json,
    write_text,
)


def test_a_file_appears_whole_with_the_mode_of_open(tmp_path):
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not target.exists()
    (tmp_path / "plain").write_text("")
    assert target.read_text() == "whole"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert os.listdir(target.parent) == ["scan.nii.gz"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "scores.json"
    write_json(target, {"dice": 0.5}, "scores")
    with pytest.raises(RuntimeError), atomic_path(target, "scores") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError):
        write_json(target, {"dice": float("nan")}, "scores")
    with pytest.raises(FileNotFoundError) as caught, atomic_path(target, "scores") as temporary:
        temporary.unlink()
        temporary.read_text()
    assert caught.value.filename == str(target)  # the user knows no other name
    assert target.read_text() == '{\n  "dice": 0.5\n}\n'
    assert sorted(os.listdir(tmp_path)) == [LIST, "scores.json"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    target = tmp_path / f"{'x' * 247}.json"
    write_json(target, {}, "scores")
    assert target.exists()
    with pytest.raises(InputError, match="file name too long"):
        write_json(tmp_path / f"{'x' * 300}.json", {})


def test_only_what_this_program_wrote_is_replaced(tmp_path):
    target = tmp_path / "case_seg.nii.gz"
    write_text(target, "first", "labels")
    write_text(target, "second", "labels")
    with pytest.raises(InputError, match="move it away$"):
        write_text(target, "page", "report")  # a file of another kind
    target.write_text("corrected by hand")
    for overwrite, end in ((None, "move it away"), (False, "add --overwrite")):
        with pytest.raises(InputError, match=f"did not write this file.*{end}$"):
            write_text(target, "third", "labels", overwrite=overwrite)
    os.rename(target, tmp_path / "other_seg.nii.gz")
    with pytest.raises(InputError):
        write_text(tmp_path / "other_seg.nii.gz", "third", "labels")
    assert (tmp_path / "other_seg.nii.gz").read_text() == "corrected by hand"
    write_text(tmp_path / "other_seg.nii.gz", "third", "labels", overwrite=True)
    write_text(tmp_path / "other_seg.nii.gz", "fourth", "labels")
    remove(tmp_path / "other_seg.nii.gz", "report")
    assert (tmp_path / "other_seg.nii.gz").exists()
    remove(tmp_path / "other_seg.nii.gz", "labels")
    assert not (tmp_path / "other_seg.nii.gz").exists()


def test_a_file_that_appears_during_the_work_stays(tmp_path):
    target = tmp_path / "scores.json"
    with pytest.raises(InputError), atomic_path(target, "scores") as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"


def test_an_output_is_no_link_device_or_folder(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    said = {"link": "a link", "nowhere": "a link", "pipe": "a FIFO", "folder": "a folder"}
    said |= {"socket": "a socket", "/dev/null": "a device", "/dev/stdout": "a link"}
    before = sorted(os.listdir(tmp_path))
    for name, what in said.items():
        for overwrite in (None, True):
            with pytest.raises(InputError, match=f"{name}: is {what}, not a regular file"):
                write_text(tmp_path / name, "ours", "scores", overwrite=overwrite)
        assert not is_ours(tmp_path / name, "scores")
    assert sorted(os.listdir(tmp_path)) == before
    for inside in ("theirs/x.json", "nowhere/x.json"):
        with pytest.raises(InputError, match="is not a folder"):
            write_text(tmp_path / inside, "ours", "scores", overwrite=True)


def test_an_input_is_never_replaced_whatever_its_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    source = tmp_path / "mask.nii.gz"
    write_text(source, "ours", "labels")
    (tmp_path / "link").symlink_to(tmp_path)
    os.link(source, tmp_path / "hard.nii.gz")
    for spelling in ("mask.nii.gz", "folder/../mask.nii.gz", "link/mask.nii.gz", "hard.nii.gz"):
        for given in (source, Path("folder") / ".." / "link" / "mask.nii.gz"):
            with pytest.raises(InputError, match="is an input of this command"):
                check_output(spelling, "labels", inputs=["gone", given], overwrite=True)
    check_output("new/mask.nii.gz", "labels", inputs=[source])
    assert not (tmp_path / "new").exists()


def test_two_writers_at_once_recognise_each_other(tmp_path):
    problems = []

    def write(number: int) -> None:
        try:
            for turn in range(20):
                write_text(tmp_path / "scores.json", f"{number} {turn}", "scores")
        except InputError as error:
            problems.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert not problems
    assert sorted(os.listdir(tmp_path)) == [LIST, "scores.json"]


def test_a_list_that_was_cut_off_or_is_somebody_elses(tmp_path):
    target = tmp_path / "scores.json"
    write_text(target, "first", "scores")
    with (tmp_path / LIST).open("a") as file:
        file.write('\n{"name": "sco')
    write_text(target, "second", "scores")
    assert is_ours(target, "scores")
    other = tmp_path / "other"
    other.mkdir()
    (other / LIST).write_text("my own list\n")
    with pytest.raises(InputError, match="is no list of spinejax's files"):
        write_text(other / "scores.json", "ours", "scores")
    assert os.listdir(other) == [LIST] and (other / LIST).read_text() == "my own list\n"
    (other / LIST).unlink()
    (other / LIST).symlink_to(target)
    with pytest.raises(InputError):
        write_text(other / "scores.json", "ours", "scores")
    assert target.read_text() == "second"


def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path):
    (tmp_path / "x").write_text("mine")
    for folder in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(InputError, match="it is a file, or lies in one"), made(folder, ()):
            pass
    assert (tmp_path / "x").read_text() == "mine"


def test_an_error_is_one_line_whatever_a_name_holds():
    assert str(MachineError("a\nb\u2028c: no such folder")) == "a b c: no such folder"


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link", "binary"])
def test_a_list_that_cannot_be_used_is_refused_before_work(tmp_path, kind):
    place = tmp_path / LIST
    if kind == "folder":
        place.mkdir()
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to("nowhere")
    else:
        place.write_bytes(b"\xff\x00\x01")
    with pytest.raises(MachineError, match="move it away"):  # it holds for all files of the folder
        check_output(tmp_path / "new.json", "scores")


def test_a_folder_is_claimed_unless_it_holds_somebody_elses_files(tmp_path):
    names = ("config.json", "checkpoints")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    claim(tmp_path, "run", names)
    (tmp_path / "config.json").write_text("{}")
    claim(tmp_path, "run", names)  # marked by now
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match="other/config.json: spinejax did not write this"):
        claim(other, "run", names)
    assert os.listdir(other) == ["config.json"]
    claim(other, "run", names, known=True)
    write_json(other / "config.json", {"a": 1}, "run")
    assert json.loads((other / "config.json").read_text()) == {"a": 1}


def test_a_folder_that_was_made_goes_when_the_block_fails_and_has_no_results(tmp_path):
    new = tmp_path / "a" / "b"
    with pytest.raises(OSError), made(new, ("*.json",), (".lock",)):
        (new / ".lock").write_text("x")
        write_text(new / "within" / "page.html", "ours", "report")
        raise OSError
    assert not (tmp_path / "a").exists()
    with pytest.raises(OSError), made(new, ("*.json",)):
        write_json(new / "result.json", {}, "scores")
        raise OSError
    assert new.exists()
    empty = tmp_path / "c"
    empty.mkdir()
    with pytest.raises(OSError), made(empty, ()):
        raise OSError
    assert empty.exists()
    with made(tmp_path / "d" / "e", ()):
        pass
    assert (tmp_path / "d" / "e").exists()
    with (
        pytest.raises(InputError, match="/proc/nowhere: cannot be written"),
        made(Path("/proc/nowhere"), ()),
    ):
        pass


def test_a_folder_that_was_made_keeps_what_somebody_else_put_there(tmp_path):
    with pytest.raises(OSError), made(tmp_path / "new", ()):
        write_text(tmp_path / "new" / "page.html", "ours", "report")
        (tmp_path / "new" / "notes.txt").write_text("theirs")
        raise OSError
    assert (tmp_path / "new" / "notes.txt").read_text() == "theirs"
    assert not (tmp_path / "new" / "page.html").exists()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/out") == Path("/somewhere/out")
    assert expanded("a~b") == Path("a~b")
    with pytest.raises(InputError, match="write the whole path"):
        expanded("~nobody-of-this-name/out")
    monkeypatch.chdir(tmp_path)
    Path("~nobody-of-this-name").touch()
    assert expanded("~nobody-of-this-name") == Path("~nobody-of-this-name")


@pytest.mark.parametrize("path", [None, 3, b"x", ["x"], "a\0b", {}])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="is no path; give the name of a file or folder"):
        expanded(path)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name) == "text"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_fifo").symlink_to("fifo")
    (tmp_path / "to_device").symlink_to("/dev/zero")
    (tmp_path / "to_nothing").symlink_to("none")
    (tmp_path / "annexed").symlink_to("../.git/annex/objects/xx/SHA256E-s5--0.nii.gz")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(tmp_path, os.O_RDONLY)  # a socket's address is short
        server.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    for name, said in {
        "fifo": "a FIFO, not a regular file",
        "folder": "a folder, not a regular file",
        "to_fifo": "a FIFO, not a regular file",
        "to_device": "a device, not a regular file",
        "socket": "a socket, not a regular file",
        "to_nothing": "is a link to none, which is missing",
        "annexed": "git annex get",
    }.items():
        with pytest.raises(InputError, match=said):
            open_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path, status = tmp_path / "a", os.stat(__file__)
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(InputError, match="a FIFO"):
        open_regular(path)
