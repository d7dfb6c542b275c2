"""Every bad input of `support.bad_inputs`, in every command that reads it.

One run of a command reads all of them at once. So each test also shows that no bad file keeps the
others from being named or done.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import spinejax
from spinejax import machine, predictor
from spinejax.cli import main
from spinejax.predictor import Model, Segmentation
from tests.support import bad_inputs
from tests.support.bad_inputs import CENTROIDS, IMAGES, MASKS, Bad
from tests.support.tiny_run import tiny_config

MOST_SECONDS = 20


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in the block if it takes longer than `MOST_SECONDS`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"the command took over {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def threshold(volume, name, _) -> Segmentation:
    """A network that takes everything above 300 HU for spine."""
    return Segmentation((volume.array > 300).astype(np.uint8), volume, name)


def stub(find: Callable[..., Segmentation] = threshold) -> Model:
    """Return a model that needs no training."""
    return Model(tiny_config(Path()), {}, "stub", False, find, lambda volume: volume.array.nbytes)


@dataclass(frozen=True)
class Ran:
    """A command that has run: exit status, lines of both outputs, and the files it wrote."""

    status: int
    lines: list[str]
    files: frozenset[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Mapping[str, Ran]:
    """Each command, run once on all inputs."""
    root = tmp_path_factory.mktemp("bad")
    data, out = root / "data", root / "out"
    bad_inputs.write(data)
    config_words = [
        "--config=unet",
        f"--config.data.root={data}",
        "--config.data.split=official",
        "--config.data.preprocess.spacing_mm=4",
    ]
    words = {
        "predict": [f"--input={data / 'train/images'}", f"--output={out}", "--workdir=stub"],
        "evaluate": [f"--data={data}", f"--workdir={root / 'stub'}"],
        "doctor": [f"--data={data}"],
        "prepare": [*config_words, f"--workdir={root / 'prepared'}"],
        "train": [*config_words, f"--workdir={root / 'trained'}"],
        "score": [f"--reference={data / 'train/labels'}", f"--prediction={root / 'masks'}",
                  f"--output={root / 'scores.json'}"],
        "score centroids": [f"--reference={root / 'masks'}", f"--prediction={root / 'masks'}",
                            f"--reference_centroids={data / 'train/centroids'}",
                            f"--output={root / 'centroid_scores.json'}"],
    }  # fmt: skip
    (root / "masks").mkdir()
    for case in ("good", *MASKS, *CENTROIDS):
        bad_inputs.saved(bad_inputs.mask())(root / "masks" / f"{case}.nii.gz")
    model = stub()
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spinejax, "load", lambda *_, **__: model, raising=False)
        patch.setattr(predictor, "load", lambda *_, **__: model)
        for name, arguments in words.items():
            found[name] = _run([name.split()[0], *arguments], root)
    return found


def _run(arguments: list[str], root: Path) -> Ran:
    with pytest.MonkeyPatch.context() as patch, limited():
        lines: list[str] = []

        class Stream:
            def write(self, text: str) -> int:
                lines.append(text)
                return len(text)

            def flush(self) -> None:
                pass

            def isatty(self) -> bool:
                return False

        patch.setattr("sys.stdout", Stream())
        patch.setattr("sys.stderr", Stream())
        status = main(arguments)
    files = frozenset(path.name for path in (root / "out").glob("*"))
    return Ran(status, "".join(lines).splitlines(), files)


# command -> what it reads
READS = {
    "predict": IMAGES,
    "evaluate": IMAGES | MASKS,
    "doctor": IMAGES | MASKS | CENTROIDS,
    "prepare": IMAGES | MASKS,
    "train": IMAGES | MASKS,
    "score": MASKS,
    "score centroids": CENTROIDS,
}


def about(ran: Ran, case: str) -> list[str]:
    """Return the lines of errors and warnings that name the files of a case."""
    begins = re.compile(rf"ERROR: {case}: |  {case}[.:]|WARNING: (\S*/)?{case}(_ctd)?[.:]")
    return [line for line in ran.lines if begins.match(line)]


@pytest.mark.parametrize(
    ("command", "case"), [(name, case) for name, those in READS.items() for case in those]
)
def test_a_bad_file_is_named_with_the_remedy_and_the_others_are_done(runs, command, case):
    bad: Bad = READS[command][case]
    ran = runs[command]
    lines = about(ran, case)
    if not bad.says:
        assert not lines
    else:
        assert any(re.search(bad.says, line) for line in lines), lines
        if command != "doctor":
            errors = [line for line in lines if line.startswith("ERROR")]
            assert len(errors) == bad.refused, errors
            # Named again at the end.
            again = [line for line in ran.lines if line.startswith(f"ERROR: failed: {case}:")]
            assert len(again) == bad.refused, again
    if command == "predict":
        assert (f"{case}_seg.nii.gz" in ran.files) == (not bad.refused)


@pytest.mark.parametrize("command", READS)
def test_one_line_ends_the_command(runs, command):
    ran = runs[command]
    assert ran.status == (command != "doctor")
    assert not [line for line in ran.lines if "Traceback" in line or line.startswith("  File ")]
    assert not [line for line in ran.lines if "unexpected" in line]
    ends = [line for line in ran.lines if ": error: " in line]
    assert len(ends) == (command != "doctor"), ends
    if ends:
        refused = sum(bad.refused for bad in READS[command].values())
        assert f"{refused} of " in ends[0]


def test_there_are_many_bad_inputs():
    assert len(IMAGES | MASKS | CENTROIDS) >= 60


def test_good_files_are_done_and_nobody_complains(runs):
    assert {"good_seg.nii.gz", "good_quicklook.png"} <= runs["predict"].files
    for command, ran in runs.items():
        assert not about(ran, "good"), command


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("two\nlines"), OSError(5, "Input/output error"), KeyError(1)],
)
def test_an_exception_in_one_scan_leaves_the_others_alone(error, tmp_path, monkeypatch, capsys):
    for seed, case in enumerate("abc"):
        bad_inputs.saved(bad_inputs.ct(seed))(tmp_path / f"images/{case}.nii.gz")
        bad_inputs.saved(bad_inputs.mask())(tmp_path / f"labels/{case}.nii.gz")

    def find(volume, name, progress):
        if name.endswith("b"):
            raise error
        return threshold(volume, name, progress)

    monkeypatch.setattr(spinejax, "load", lambda *_, **__: stub(find), raising=False)
    monkeypatch.setattr(predictor, "load", lambda *_, **__: stub(find))
    predict = ["predict", str(tmp_path / "images"), f"-o={tmp_path / 'out'}", "--workdir=stub"]
    evaluate = ["evaluate", f"--data={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    for command in (predict, evaluate):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert "1 of 3 scans failed: b: " in printed and "Traceback" not in printed
    assert {path.name[0] for path in (tmp_path / "out").glob("*_seg.nii.gz")} == {"a", "c"}
    (scores,) = (tmp_path / "run").glob("evaluation/*/scores.json")
    written = json.loads(scores.read_text())
    assert set(written["cases"]) == {"a", "c"} and set(written["failed"]) == {"b"}
    if isinstance(error, MemoryError):
        (tmp_path / "run/config.json").write_text(tiny_config(tmp_path).to_json())
        assert main(["report", f"--workdir={tmp_path / 'run'}"]) == 0
        assert "b (not enough memory" in (tmp_path / "run/report.html").read_text()
        capsys.readouterr()
    # Only the missing scan is predicted by the next evaluation.
    found: list[str] = []

    def noting(volume, name, progress):
        found.append(name)
        return threshold(volume, name, progress)

    monkeypatch.setattr(predictor, "load", lambda *_, **__: stub(noting))
    assert main(evaluate) == 0
    assert found == ["2/3 b"]
    written = json.loads(scores.read_text())
    assert set(written["cases"]) == {"a", "b", "c"} and "failed" not in written


def test_a_scan_that_needs_too_much_memory_is_refused_before_it_is_begun(
    tmp_path, monkeypatch, capsys
):
    for seed, case in enumerate("abc"):
        times = 2 if case == "b" else 1
        values = np.repeat(bad_inputs.ct(seed), times, axis=2)
        bad_inputs.saved(values)(tmp_path / f"images/{case}.nii.gz")
    begun: list[str] = []

    def find(volume, name, progress):
        begun.append(name)
        return threshold(volume, name, progress)

    limit = bad_inputs.ct().nbytes + 1
    monkeypatch.setattr(machine, "available_bytes", lambda: limit)
    monkeypatch.setattr(spinejax, "load", lambda *_, **__: stub(find), raising=False)
    command = ["predict", str(tmp_path), f"--output={tmp_path / 'out'}", "--workdir=stub"]
    assert main(command) == 1
    assert begun == ["a", "c"]
    assert "b.nii.gz: needs about 6.9e-05 GiB of memory" in capsys.readouterr().err


def test_folders_that_cannot_be_listed_are_named_and_the_others_done(tmp_path, monkeypatch, capsys):
    for folder in ("open", "locked"):
        for case in "ab":
            name = f"{folder}_{case}.nii.gz"
            bad_inputs.saved(bad_inputs.ct())(tmp_path / "d" / folder / "images" / name)
            bad_inputs.saved(bad_inputs.mask())(tmp_path / "d" / folder / "labels" / name)
    scandir = os.scandir

    def guarded(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(spinejax, "load", lambda *_, **__: stub(), raising=False)
    monkeypatch.setattr(predictor, "load", lambda *_, **__: stub())
    data, out, scores = tmp_path / "d", tmp_path / "out", tmp_path / "s.json"
    config = ["--config=unet", f"--config.data.root={data}"]
    commands = {
        "predict": ["predict", str(data), f"--output={out}", "--workdir=stub"],
        "evaluate": ["evaluate", f"--data={data}", f"--workdir={tmp_path / 'run'}"],
        "score": ["score", f"--prediction={out}", f"--reference={data}", f"-o={scores}"],
        "prepare": ["prepare", *config, f"--workdir={tmp_path / 'w'}"],
        "doctor": ["doctor", f"--data={data}"],
    }
    for name, command in commands.items():
        assert main(command) == (name != "doctor"), name
        printed = capsys.readouterr()
        assert re.search(r"locked: cannot be listed \(Permission denied\)", printed.err), name
    assert {path.name for path in out.glob("*.nii.gz")} == {
        "open_a_seg.nii.gz",
        "open_b_seg.nii.gz",
    }
    assert set(json.loads(scores.read_text())["cases"]) == {"open_a", "open_b"}


def test_a_case_with_several_files_is_named_and_the_others_done(tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "d", tmp_path / "out"
    for seed, name in enumerate(("a.nii", "a.nii.gz", "b.nii.gz", "c.nii.gz")):
        bad_inputs.saved(bad_inputs.ct(seed))(data / name)
        bad_inputs.saved(bad_inputs.mask())(tmp_path / "true" / name)
    monkeypatch.setattr(spinejax, "load", lambda *_, **__: stub(), raising=False)
    assert main(["predict", str(data), f"--output={out}", "--workdir=stub"]) == 1
    said = "a: .*a.nii and .*a.nii.gz have one name; rename all but one"
    printed = capsys.readouterr().err
    assert re.search(f"1 of 3 scans.* failed: {said}", printed)
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["b_seg.nii.gz", "c_seg.nii.gz"]
    scores = tmp_path / "s.json"
    command = ["score", f"--prediction={out}", f"--reference={tmp_path / 'true'}", f"-o={scores}"]
    assert main(command) == 1
    assert re.search(said, capsys.readouterr().err)
    written = json.loads(scores.read_text())
    assert set(written["cases"]) == {"b", "c"} and set(written["failed"]) == {"a"}
    assert written["missing"] == {"prediction": [], "reference": []}
    # Two folders in which the scans have the same names.
    (tmp_path / "e").mkdir()
    (data / "b.nii.gz").rename(data / "a2.nii.gz")
    bad_inputs.saved(bad_inputs.ct(9))(tmp_path / "e" / "c.nii.gz")
    command = ["predict", str(data), f"-i={tmp_path / 'e'}", f"-o={tmp_path / 'o2'}"]
    assert main([*command, "--workdir=stub"]) == 1
    assert "e/c.nii.gz would overwrite each other's results; predict them into two" in (
        capsys.readouterr().err
    )
    assert [path.name for path in (tmp_path / "o2").glob("*.nii.gz")] == ["a2_seg.nii.gz"]


NAMES = [
    os.fsdecode(b"\xff\xfe"),
    "two\nlines",
    "<script>alert(1)<",
    "ü" * 124,
    "-dash$(x);y\"'",
    "\x1b[31m\u202etab\t..%0A",
]


def test_any_name_of_a_file_goes_through_all_commands(tmp_path, monkeypatch, capsys):
    data, out, run = tmp_path / "d", tmp_path / "out", tmp_path / "run"
    for seed, name in enumerate(NAMES):
        bad_inputs.saved(bad_inputs.ct(seed))(data / "images" / f"{name}.nii.gz")
        bad_inputs.saved(bad_inputs.mask())(data / "labels" / f"{name}.nii.gz")
    monkeypatch.setattr(spinejax, "load", lambda *_, **__: stub(), raising=False)
    monkeypatch.setattr(predictor, "load", lambda *_, **__: stub())
    run.mkdir()
    (run / "config.json").write_text(tiny_config(data).to_json())
    predict = ["predict", str(data), f"--output={out}", "--workdir=stub"]
    score = [
        "score",
        f"--prediction={out}",
        f"--reference={data}",
        f"--output={tmp_path / 's.json'}",
    ]
    for command in (
        predict,
        predict,  # the same files again
        score,
        ["evaluate", f"--data={data}", f"--workdir={run}"],
        ["report", f"--workdir={run}"],
        ["doctor", f"--data={data}"],
    ):
        assert main(command) == 0, command[0]
        printed = capsys.readouterr()
        for text in (printed.out, printed.err):
            text.encode()  # no byte that is not UTF-8
            assert "\x1b" not in text and "\nlines" not in text
        if command[0] == "doctor":
            assert not [line for line in printed.out.splitlines() if line.startswith("lines")]
    assert len(list(out.glob("*_seg.nii.gz"))) == len(NAMES)
    cases = set(json.loads((tmp_path / "s.json").read_text())["cases"])
    assert {"%FF%FE", "two%0Alines", "<script>alert(1)<"} < cases
    assert len(cases) == len(NAMES)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "two%0Alines" in page
