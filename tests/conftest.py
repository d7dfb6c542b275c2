"""What all tests share: compiled programs, the real scans if they are there, a tiny pipeline."""

import atexit
import ctypes
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from absl import flags

from tests.support.pipeline_run import block_pipeline, block_scans  # noqa: F401 - fixtures

# The tests compile much and run little. Without optimisation and without fusion emitters XLA
# compiles in a fraction of the time; to hand parts of a program to several threads costs more than
# it gains where each worker has one core. JAX reads these variables when it is imported: not by the
# lines above.
COMPILE_FAST = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# From 0.11.1 on the flag is gone, and XLA ends a process that is given a flag it does not know.
if tuple(int(part) for part in version("jaxlib").split(".")[:3]) < (0, 11, 1):
    COMPILE_FAST = f"--xla_cpu_use_fusion_emitters=false {COMPILE_FAST}"
if COMPILE_FAST not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_FAST}"
# The workers of pytest-xdist and the programs that tests start use what another has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# The command line has a folder of its own for compiled programs, in the user's home folder.
os.environ["SPINEJAX_CACHE"] = "off"

# Grain's workers read absl flags; outside absl.app nothing has parsed them.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session", autouse=True)
def _one_device() -> None:
    """Start jax's devices, so that no command run inside of a test can change their number."""
    import jax

    jax.devices()


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped() -> Iterator[None]:
    """Drop compiled programs after a file, once they fill much of the memory."""
    yield
    import jax

    memory = Path("/proc/self/statm")  # Linux
    if memory.exists() and int(memory.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > 4e9:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans (`SPINEJAX_REAL_DATA`, else ../shared/data); skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SPINEJAX_REAL_DATA", default))
    if not (root / "verse").is_dir():
        pytest.skip(f"no real scans at {root}; set SPINEJAX_REAL_DATA to a folder that has them")
    return root
