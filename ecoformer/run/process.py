"""This process as it runs well on the machine that it got, and this program as a child process.

Every command calls `prepare` before torch is loaded (see `ecoformer.cli`); `import ecoformer` alone changes nothing.
Measured in docs/speed.md.
"""

import ctypes
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoformer.errors import InputError

SOURCE = Path(__file__).resolve().parents[2]  # the folder that holds the package
SWITCH = "ECOFORMER_RUNTIME"
PREPARED: list[str] = []  # what `prepare` set for this process, in words
CGROUP = Path("/sys/fs/cgroup")
# mallopt(3): memory that was freed is kept, whatever the size, in one arena that all threads share. Otherwise glibc
# gives large tensors back to the system and gets them again page by page.
MALLOPT = {"M_MMAP_THRESHOLD": (-3, 2**31 - 1), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def prepare() -> list[str]:
    """Threads that hardly spin while they wait, kept memory, no more threads than cores; what was set, in words.

    Settings that the user made in the environment (OMP_WAIT_POLICY, GOMP_SPINCOUNT, OMP_NUM_THREADS, MALLOC_*,
    GLIBC_TUNABLES, another allocator) stay; ECOFORMER_RUNTIME=off leaves everything to the system. Call it before torch
    is imported.
    """
    if os.environ.get(SWITCH) == "off":
        return []
    # While another process uses a core, spinning threads take it from the one that has work: 10 times slower and more.
    # To wake one that sleeps takes longer than a small product; some microseconds of spinning save that.
    settings = {"OMP_WAIT_POLICY": "PASSIVE"}
    if "OMP_WAIT_POLICY" not in os.environ:
        settings["GOMP_SPINCOUNT"] = "1000"  # of GNU's OpenMP, torch's on Linux; others know the policy alone
    if (cores := available_cores()) < _affinity():
        settings["OMP_NUM_THREADS"] = str(cores)
    settings = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(settings)
    PREPARED[:] = [f"{key}={value}" for key, value in settings.items()] + (["kept memory"] if _keep_memory() else [])
    return PREPARED


def available_cores() -> int:
    """Cores that this process may use: its affinity, its cgroup's quota, its SLURM task, shared by local ranks."""
    limits = [float(_affinity())]
    if (quota := _quota()) is not None:
        limits.append(quota)
    if (task := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        limits.append(float(task))
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, math.ceil(min(limits)) // max(1, int(ranks) if ranks.isdecimal() else 1))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _quota() -> float | None:
    """Cores of the cgroup's CPU quota, version 2 or 1; None without one."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{key}_us").read_text() for key in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup, or "max"
        return None


def _keep_memory() -> bool:
    chosen = [key for key in os.environ if key.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if chosen or mallopt is None:  # another libc has its own ways
        return False
    return all(mallopt(option, value) == 1 for option, value in MALLOPT.values())


def module(command: str) -> list[str]:
    """What python and torchrun take to run a command of ours: -m ecoformer COMMAND."""
    return ["-m", "ecoformer", command]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which a child finds this package before any other that is installed.

    What `prepare` set is left out: a child gets settings of its own, and ranks share the cores of their parent.
    """
    inherited = {key: value for key, value in os.environ.items() if f"{key}={value}" not in PREPARED}
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    # Safe path: the folder that a user stands in, perhaps another checkout, must not come first.
    return {**inherited, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **changes}


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them: True is a flag, and None and False are left out."""
    given = {f"--{key.replace('_', '-')}": value for key, value in options.items() if value is not None}
    return [key if value is True else f"{key}={value}" for key, value in given.items() if value is not False]


def json_of(command: str, **options: Any) -> Any:
    """What a command of ours prints as JSON, in a process of its own. Raises InputError with its line for code 2."""
    line = [sys.executable, *module(command), *flags(options)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.system()} {platform.machine()}"
