"""Fixtures shared by all tests: the real scans, if they are there, and a tiny pipeline."""

import os
from pathlib import Path

import pytest
from absl import flags

from tests.support.pipeline_run import block_pipeline, block_scans  # noqa: F401 - fixtures

# Grain's workers read absl flags; outside absl.app nothing has parsed them.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans (`SPINEJAX_REAL_DATA`, else ../shared/data); skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SPINEJAX_REAL_DATA", default))
    if not (root / "verse").is_dir():
        pytest.skip(f"no real scans at {root}; set SPINEJAX_REAL_DATA to a folder that has them")
    return root
