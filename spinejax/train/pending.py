"""Looking after the metrics of each update, one step behind the device."""

from collections.abc import Sequence

import jax
import numpy as np

from spinejax.data.pipeline import TrainingSource
from spinejax.errors import InputError
from spinejax.train.log import RunLog


class Pending:
    """Metrics of the last update, fetched one step late so that the device is never waited for."""

    def __init__(
        self, cases: Sequence[TrainingSource], names: Sequence[str], writer: RunLog, every: int
    ) -> None:
        self._cases, self._names, self._writer, self._every = cases, names, writer, every
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._largest = ""

    def push(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the update that leads to step `at`, and deal with those before."""
        before, self._waiting = self._waiting, (at, metrics)
        self._check(before)

    def flush(self) -> None:
        """Deal with what is waiting; afterwards the current state is known to be finite."""
        before, self._waiting = self._waiting, None
        self._check(before)

    def _check(self, item: tuple[int, dict[str, jax.Array]] | None) -> None:
        if item is None:
            return
        at, values = item[0], jax.device_get(item[1])
        if not values["finite"]:
            raise InputError(self._problem(at, values))
        leaf_max = values["leaf_max"]
        self._largest = f"{leaf_max.max():.3g} in {self._names[int(leaf_max.argmax())]}"
        if at % self._every == 0:
            scalars = ("loss", "dice", "accuracy", "learning_rate", "grad_norm")
            self._writer.train(at, {k: float(values[k]) for k in scalars})
        self._writer.advance(at, float(values["loss"]), float(values["dice"]))

    def _problem(self, at: int, values: dict[str, np.ndarray]) -> str:
        rows = zip(values["case"].tolist(), values["slice"].tolist(), strict=True)
        where = ", ".join(sorted({f"{self._cases[c].id}[{s}]" for c, s in rows}))
        leaf_max = values["leaf_max"]
        # NaN counts as larger than any number.
        worst = int(np.where(np.isnan(leaf_max), np.inf, leaf_max).argmax())
        before = f" (in the update before: {self._largest})" if self._largest else ""
        bad = int((~np.isfinite(leaf_max)).sum())
        return (
            f"training diverged at step {at}: loss {values['loss']:.6g}, largest gradient "
            f"{leaf_max[worst]:.3g} in {self._names[worst]}{before}, {bad} of {len(leaf_max)} "
            f"gradients not finite; slices of the batch: {where}; look at these slices, or lower "
            "optim.learning_rate or optim.clip_norm; what is saved is from before, and whole"
        )
