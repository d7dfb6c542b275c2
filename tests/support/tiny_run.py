"""A run small enough to be killed twenty times: four scans, a few thousand parameters.

Imported by the tests of training, and run by them as a process of its own:

    python -m tests.support.tiny_run SCANS WORKDIR [key=json ...] \
        [--processes=2 --process=0 --port=N] [--evaluate=SPLIT --damaged=FOLDER] [--pause=SECONDS]

It waits so many seconds before each step. A test that watches a run then has time to act, on a busy
machine, too.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from spinejax.configs import common

EXIT_INTERRUPTED = 75


def write_scans(root: Path, cases: int = 4) -> Path:
    """Write `cases` pairs of 10 x 32 x 32 voxels, each with a bright column on noise."""
    for number in range(cases):
        rng = np.random.default_rng(number)
        label = np.zeros((10, 32, 32), np.uint8)
        y = int(rng.integers(8, 16))
        label[2:8, y : y + 8, 4:28] = 20
        image = np.where(label > 0, 400, 0) + rng.normal(0, 30, label.shape)
        # Index directions L, P, S: the project's canonical orientation.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        for folder, array in (("images", image.astype(np.int16)), ("labels", label)):
            path = root / folder / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), path)
    return root


def tiny_config(root: Path, **changes: object) -> ConfigDict:
    """Return an experiment of 12 steps on `write_scans`; `changes` are dotted keys and values."""
    model = dict(name="unet", widths=(4, 8), in_channels=1, norm="group", dropout=0.2)
    config = common.base("tiny", model)
    with config.unlocked():
        config.data.root = str(root)
        config.data.split = "ratio"
        config.data.test_fraction = 0.25
        config.data.val_fraction = 0.3
        config.data.size = (32, 32)
        config.data.threads = 1
        config.data.prefetch = 2
        config.optim.ema_decay = 0.5
        config.optim.learning_rate = 0.1
        config.optim.schedule = "constant"
        config.train.steps = 12
        config.train.batch_size = 4
        config.train.eval_every_epochs = 1
        config.train.checkpoint_every_steps = 3
        config.train.log_every_steps = 1
        config.train.pictures = 1
        config.update_from_flattened_dict(changes)
    return config


def _check_that_all_fail(parallel: Any) -> None:
    """Check that the failure of process 1 is an error of one line in every process."""
    from spinejax.errors import InputError

    def work() -> None:
        if parallel.process_index() == 1:
            raise InputError("scan.nii.gz: is damaged; remove it")

    try:
        parallel.together(work)
    except InputError as error:
        assert str(error).endswith("scan.nii.gz: is damaged; remove it")
        return
    raise AssertionError("nothing failed")


def _evaluate(workdir: Path, split: str, damaged: Path) -> None:
    """Evaluate a split, and a folder with a damaged scan; write which cases this process scored."""
    from spinejax import evaluation, scoring
    from spinejax.commands import evaluate
    from spinejax.errors import InputError
    from spinejax.training import parallel

    scored: list[str] = []
    score_arrays = scoring.score_arrays

    def noting(*arrays: Any, **options: Any) -> Any:
        scored.append(arrays[3])
        return score_arrays(*arrays, **options)

    scoring.score_arrays = noting
    rank = parallel.process_index()
    evaluation.evaluate(workdir, split=split)
    (workdir / f"scored-{rank}.json").write_text(json.dumps(scored))
    try:
        evaluate.evaluate(workdir, data=damaged)
    except InputError as error:
        assert "1 of 4 scans failed: " in str(error), error
        (workdir / f"error-{rank}.txt").write_text(str(error))
    else:
        raise AssertionError("nothing failed")


def main(argv: list[str]) -> int:
    """Train in this process; the exit status is that of the command line."""
    from spinejax.data import cache
    from spinejax.errors import InputError
    from spinejax.training import loop, parallel
    from spinejax.training.signals import Stop

    flags = dict(a[2:].split("=", 1) for a in argv if a.startswith("--"))
    root, workdir, *pairs = [a for a in argv if not a.startswith("--")]
    changes = {key: json.loads(value) for key, _, value in (p.partition("=") for p in pairs)}
    if "processes" in flags:
        parallel.initialize_distributed(
            coordinator_address=f"127.0.0.1:{flags['port']}",
            num_processes=int(flags["processes"]),
            process_id=int(flags["process"]),
            initialization_timeout_s=60,
            heartbeat_timeout_s=10,
        )

    class Pausing(Stop):
        def agreed(self, at: int) -> bool:
            time.sleep(float(flags.get("pause", 0)))
            return super().agreed(at)

    prepared, prepare = [], cache.prepare

    def noting(cases: Any, *args: Any, **options: Any) -> Any:
        prepared.extend(case.id for case in cases)
        return prepare(cases, *args, **options)

    cache.prepare = noting
    try:
        result = loop.train(tiny_config(Path(root), **changes), workdir, stop=Pausing())
        if "evaluate" in flags:
            _evaluate(Path(workdir), flags["evaluate"], Path(flags["damaged"]))
            _check_that_all_fail(parallel)
            file = Path(workdir) / f"prepared-{parallel.process_index()}.json"
            file.write_text(json.dumps(prepared))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return EXIT_INTERRUPTED if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
