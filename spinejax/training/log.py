"""The log of a run: metrics.jsonl, the trackers such as TensorBoard, and the progress bar."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spinejax import sweep_state
from spinejax.errors import is_disk_full
from spinejax.files import check_output, open_regular, write_text
from spinejax.progress import Progress, silent
from spinejax.training import run_folder, trackers

logger = logging.getLogger("spinejax")


_BEGINNING = '{"step": '  # of every line of metrics.jsonl


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, see `sweep_state.metric`; warn of damaged lines.

    A line is damaged if it holds no record, or one that does not follow on those before it. A kill
    may cut off the last line, which is no damage.
    """
    file = workdir / "metrics.jsonl"
    try:
        with open_regular(file) as opened:
            lines = opened.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    if lines[-1].startswith(_BEGINNING[: len(lines[-1])]) and not _is_json(lines[-1]):
        lines.pop()
    found: list[dict[str, Any]] = []
    damaged, seen = [], set()
    for number, line in enumerate(lines, 1):
        record = sweep_state.metric(line)
        place = None if record is None else (record["step"], record["kind"])
        if record is None or place in seen or (found and record["step"] < found[-1]["step"]):
            damaged.append(number)
        else:
            found.append(record)
            seen.add(place)
    if damaged:
        others = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
        logger.warning("%s: line %d%s damaged and left out", file, damaged[0], others)
    return found


def rewind(workdir: Path, step: int, *, evaluated: bool) -> None:
    """Remove the lines after `step` from metrics.jsonl, so that a resumed run logs each step once.

    The evaluation of `step` is also removed unless `evaluated`. The file is replaced atomically.
    """
    lines = read_metrics(workdir)
    kept = [
        line
        for line in lines
        if line["step"] < step or (line["step"] == step and (evaluated or line["kind"] != "val"))
    ]
    # Not listed: lines are appended to it, so its content has no digest that lasts.
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


class RunLog:
    """Writes the log files of a run and moves its bar; only in the first process.

    Use it as a context manager. "seconds" is summed over all starts of the run, each up to its last
    logged step; "samples_per_s" is measured between two logged steps.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        sample: str = "slices",
        overlap: str = "Dice",
        track: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        active: bool = True,
        progress: Progress = silent,
    ) -> None:
        """Open the files for appending.

        Args:
            workdir: folder of the run.
            start_step: number of updates before this start.
            total_steps: number of updates of the whole run.
            batch_size: samples of an update.
            sample: word for the samples, in the plural.
            overlap: word for the Dice.
            track: names of trackers beside TensorBoard.
            fields: the config for the trackers, by dotted key.
            active: whether to write at all.
            progress: shows the updates.

        Raises:
            InputError: the files cannot be written, or a tracker does not start.
        """
        self._active = active
        self._workdir = workdir
        self._batch_size = batch_size
        self._sample, self._overlap = sample, overlap
        self._first, self._shown = True, start_step
        self._scores = ""
        earlier = read_metrics(workdir)
        now = time.monotonic()
        self._started = now - (earlier[-1].get("seconds", 0.0) if earlier else 0.0)
        self._since = (start_step, now)
        self._rate = 0.0
        self.interrupted = False
        """Whether the run is to be resumed; set it before the block ends."""
        if not active:
            return
        try:
            check_output(workdir / "metrics.jsonl")
            self._file = open(workdir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
            self._trackers = trackers.begin(
                track,
                workdir=workdir,
                start_step=start_step,
                total_steps=total_steps,
                fields=fields or {},
            )
        except OSError as error:
            raise run_folder.not_writable(workdir, error) from error
        title = f"training from step {start_step}" if start_step else "training"
        self._showing = progress(title, total_steps - start_step, "step")

    def __enter__(self) -> "RunLog":
        if self._active:
            self._bar = self._showing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._active:
            self._showing.__exit__(*error)
            try:
                self._file.close()
                self._trackers.close(
                    trackers.FAILED
                    if error[0] is not None
                    else trackers.INTERRUPTED
                    if self.interrupted
                    else trackers.FINISHED
                )
            except OSError as problem:
                if error[0] is None:  # else the exception from inside the block says more
                    raise run_folder.full(self._workdir) from problem

    def advance(self, step: int) -> None:
        """Move the bar to `step`; it shows the loss that was logged last."""
        if not self._active:
            return
        rate = self._samples_per_s(step)
        if self._first:
            # The first update includes the compilation, so its speed is left out.
            self._first, self._since = False, (step, time.monotonic())
        text = f"{self._scores}{rate:.1f} {self._sample}/s"
        self._bar.advance(step - self._shown, text)
        self._shown = step

    def _samples_per_s(self, step: int) -> float:
        """Return the speed since the last logged step, or before it if `step` is that step."""
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
        self._scores = f"loss {values['loss']:.4f}, {self._overlap} {values['dice']:.4f}, "

    def val(self, step: int, values: Mapping[str, float]) -> None:
        """Log an evaluation of the state at `step`; its duration does not count for the speed."""
        self._line(step, "val", values)
        self._since = (step, time.monotonic())

    def _line(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if not self._active:
            return
        run_folder.require_room(self._workdir)
        seconds = round(time.monotonic() - self._started, 3)
        line = {"step": step, "kind": kind, **{k: float(v) for k, v in values.items()}}
        text = json.dumps({**line, "seconds": seconds}, allow_nan=False) + "\n"
        try:
            self._file.write(text)
            self._file.flush()
            named = {f"{kind}/{name}": float(value) for name, value in values.items()}
            self._trackers.scalars(step, named)
        except OSError as error:
            if is_disk_full(error):
                raise run_folder.full(self._workdir) from error
            raise

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Give pictures (h, w, 3) uint8 to the trackers, by name."""
        if self._active and images:
            self._trackers.pictures(step, images)

    def say(self, text: str) -> None:
        """Show a line of text beside the bar."""
        if self._active:
            self._bar.say(text)
