"""Free memory: of the machine, of cgroups of both versions, of the process's limits; and cores."""

import resource
import subprocess
import sys

import pytest

from spinejax import machine
from spinejax.errors import InputError

PLENTY = 2**40


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of files: returns a function that writes a file of it."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "sys/fs/cgroup")

    def write(name: str, text: object) -> None:
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    write("/proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {PLENTY // 1024} kB\nSwapFree: 0 kB")
    write("/proc/self/status", "VmSize: 300 kB\nVmData: 100 kB")
    return write


def test_without_limits_it_is_what_the_machine_has_free(system):
    assert machine.available_bytes() == PLENTY
    system("/proc/self/cgroup", "0::/")
    assert machine.available_bytes() == PLENTY


def test_every_cgroup_of_version_2_above_the_process_counts(system):
    system("/proc/self/cgroup", "0::/job/step/task")
    for folder, most in (("job", 5000), ("job/step", 3000), ("job/step/task", "max")):
        system(f"/sys/fs/cgroup/{folder}/memory.max", most)
        system(f"/sys/fs/cgroup/{folder}/memory.current", 1000)
    assert machine.available_bytes() == 2000
    # The file cache is given back when memory is short.
    stat = "anon 5\nfile 700\ninactive_file 400\nactive_file 200"
    system("/sys/fs/cgroup/job/step/memory.stat", stat)
    assert machine.available_bytes() == 2600


def test_a_container_shows_its_own_group_as_the_root(system):
    system("/proc/self/cgroup", "0::/docker/123")
    system("/sys/fs/cgroup/memory.max", 4000)
    system("/sys/fs/cgroup/memory.current", 5000)
    assert machine.available_bytes() == 0


def test_cgroups_of_version_1_count(system):
    system("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/slurm/job_7\n0::/")
    for folder, most in (("slurm", 9000), ("slurm/job_7", 6000)):
        system(f"/sys/fs/cgroup/memory/{folder}/memory.limit_in_bytes", most)
        system(f"/sys/fs/cgroup/memory/{folder}/memory.usage_in_bytes", 1000)
    stat = "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 0"
    system("/sys/fs/cgroup/memory/slurm/job_7/memory.stat", stat)
    assert machine.available_bytes() == 5500


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(system, monkeypatch, limit):
    values = {getattr(resource, limit): (1_000_000, 2_000_000)}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: values.get(which, unlimited))
    used = {"RLIMIT_AS": 300, "RLIMIT_DATA": 100}[limit] * 1024
    assert machine.available_bytes() == 1_000_000 - used


def test_more_than_is_free_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 3 * 2**30)
    machine.require(3 * 2**30, "a.nii.gz")
    with pytest.raises(InputError, match=r"a.nii.gz: needs about 5 GiB .* 3 GiB are free"):
        machine.require(5 * 2**30, "a.nii.gz")


def test_a_scan_that_a_limit_forbids_is_refused_and_does_not_end_the_process(tmp_path):
    program = (
        "import gzip, resource, struct; import numpy as np, nibabel; from pathlib import Path;"
        "from spinejax.io import scanfile; from spinejax.errors import InputError;"
        "header = nibabel.Nifti1Header(); header.set_data_shape((700, 700, 1400));"
        "header.set_data_dtype(np.int16); header.set_sform(np.eye(4), 1);"
        "header['magic'], header['vox_offset'] = b'n+1', 352; path = Path('a.nii');"
        "path.write_bytes(header.binaryblock + bytes(4));"
        "file = path.open('ab'); file.truncate(352 + 2 * 700 * 700 * 1400); file.close();"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "try: scanfile.read_volume(path)\n"
        "except InputError as error: print(error)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "too many for the" in done.stdout
