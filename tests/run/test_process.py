"""How a command sets up its process: passive threads, kept memory, as many threads as cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecoformer.run import process

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SETTINGS = (*OPENMP, process.SWITCH, "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without any of the settings, and a cgroup without a quota."""
    for key in (*SETTINGS, *(key for key in os.environ if key.startswith(("MALLOC_", "GLIBC", "LD_PRELOAD")))):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    monkeypatch.setattr(process, "_affinity", lambda: 8)
    monkeypatch.setattr(process, "_keep_memory", lambda: True)
    return tmp_path


def test_threads_hardly_spin_and_what_the_user_set_stays(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.prepare() == ["OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=1000", "kept memory"]
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert process.prepare() == ["OMP_WAIT_POLICY=PASSIVE", "kept memory"]
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # which the count of spins would override
    assert process.prepare() == ["kept memory"]
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv(process.SWITCH, "off")
    assert process.prepare() == [] and "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("files", "environment", "cores"),
    [
        ({}, {}, 8),
        ({"cpu.max": "max 100000\n"}, {}, 8),
        ({"cpu.max": "250000 100000\n"}, {}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, {}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, {}, 4),
        ({"cpu.max": "600000 100000\n"}, {"SLURM_CPUS_PER_TASK": "2"}, 2),
        ({}, {"LOCAL_WORLD_SIZE": "4"}, 2),
        ({"cpu.max": "50000 100000\n"}, {"LOCAL_WORLD_SIZE": "4"}, 1),
    ],
)
def test_cores_are_those_that_the_job_has(
    bare: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], environment: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (bare / name).parent.mkdir(exist_ok=True)
        (bare / name).write_text(text)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert process.available_cores() == cores
    process.prepare()
    assert os.environ.get("OMP_NUM_THREADS") == (str(cores) if cores < 8 else None)
    assert "OMP_NUM_THREADS" not in process.environment()  # else each of several ranks takes the cores of all


FAULTS = """
import json, resource, sys
{first}
import numpy as np
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24), np.ones(2**24)
before = count()
for _ in range(8):
    np.ones(2**24)
print(json.dumps(count() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again() -> None:
    """128 MiB, allocated and freed eight times: all pages are new each time, or none."""
    faults = {}
    for name, first in (("system", ""), ("ours", "import ecoformer.cli")):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(first=first)],
            env={key: value for key, value in process.environment().items() if not key.startswith("MALLOC_")},
            capture_output=True,
            text=True,
            check=True,
        )
        faults[name] = json.loads(done.stdout)
    if faults["system"] < 1000:
        pytest.skip("this system's allocator keeps memory by itself")
    assert faults["ours"] < faults["system"] / 10
