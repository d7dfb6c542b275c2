"""What a run tells: metrics.jsonl, TensorBoard events and the progress bar."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from tqdm import tqdm

from spinejax import sweep_state
from spinejax.errors import InputError
from spinejax.files import write_text
from spinejax.train import run_folder


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, see `sweep.records`."""
    try:
        text = (workdir / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return sweep_state.records(text)


def rewind(workdir: Path, step: int, *, evaluated: bool) -> None:
    """Drop what was logged after `step`, and its own evaluation if it is yet to be done.

    The file is replaced atomically; a run that resumes at `step` then logs every step once.
    """
    lines = read_metrics(workdir)
    kept = [
        line
        for line in lines
        if line["step"] < step or (line["step"] == step and (evaluated or line["kind"] != "val"))
    ]
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


class RunLog:
    """Writes what happens in a run; does nothing in processes other than the first.

    Use it as a context manager. "seconds" counts all starts of the run, up to what each logged
    last; "samples_per_s" is measured between two logged steps.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        unit: str = "slices",
        overlap: str = "Dice",
        active: bool = True,
        progress: bool = True,
    ) -> None:
        """Open the files for appending.

        Raises:
            InputError: they cannot be written.
        """
        self._active = active
        self._workdir = workdir
        self._batch_size = batch_size
        self._unit, self._overlap = unit, overlap
        self._first = True
        earlier = read_metrics(workdir)
        now = time.monotonic()
        self._started = now - (earlier[-1]["seconds"] if earlier else 0.0)
        self._since = (start_step, now)
        self._rate = 0.0
        if not active:
            return
        try:
            self._file = open(workdir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
            # Events of steps that are trained again would show as a second line in TensorBoard.
            self._events = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1
            )
        except OSError as error:
            raise InputError(
                f"{workdir}: logs cannot be written ({error.strerror}); give a --workdir that can"
            ) from error
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="training",
            unit="step",
            disable=not progress,
            dynamic_ncols=True,
            # A log file gets a line every half minute, a terminal a moving bar.
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._bar.close()
            self._events.close()
            self._file.close()

    def advance(self, step: int, loss: float, dice: float) -> None:
        """Move the bar to `step`; its text changes with the next refresh."""
        if not self._active:
            return
        rate = self._samples_per_s(step)
        if self._first:
            # The first update was compiled; its duration says nothing of those to come.
            self._first, self._since = False, (step, time.monotonic())
        text = f"loss {loss:.4f}, {self._overlap} {dice:.4f}, {rate:.1f} {self._unit}/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def _samples_per_s(self, step: int) -> float:
        """Speed since the last logged step; that of the steps before where `step` is that one."""
        last, since = self._since
        if step > last:
            elapsed = max(time.monotonic() - since, 1e-9)
            self._rate = (step - last) * self._batch_size / elapsed
        return self._rate

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of the update that led to `step`."""
        rate = self._samples_per_s(step)
        self._since = (step, time.monotonic())
        self._line(step, "train", {**values, "samples_per_s": rate})

    def val(self, step: int, values: Mapping[str, float]) -> None:
        """Log an evaluation of the state at `step`, and leave its duration out of the speed."""
        self._line(step, "val", values)
        self._since = (step, time.monotonic())

    def _line(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if not self._active:
            return
        run_folder.require_room(self._workdir)
        seconds = round(time.monotonic() - self._started, 3)
        line = {"step": step, "kind": kind, **{k: float(v) for k, v in values.items()}}
        self._file.write(json.dumps({**line, "seconds": seconds}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", float(value), step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write pictures (h, w, 3) uint8 to TensorBoard, by name."""
        if not self._active:
            return
        for name, image in images.items():
            self._events.add_image(name, image, step, dataformats="HWC")

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._active:
            self._bar.write(text)
