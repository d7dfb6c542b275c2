"""Every bad input of `support.bad_inputs`, in every command that reads it.

One run of a command reads all of them at once. So each test also shows that no bad file keeps the
others from being named or done.
"""

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import spinejax
from spinejax import predictor
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
    model = Model(
        tiny_config(data), {}, "stub", False, threshold, lambda volume: volume.array.nbytes
    )
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
    begins = re.compile(rf"ERROR: {case}: |  {case}: |WARNING: (\S*/)?{case}(_ctd)?[.:]")
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
