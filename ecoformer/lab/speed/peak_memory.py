"""The most memory that a stretch of code held at one moment: resident memory on CPU, allocated memory on CUDA."""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ecoformer.errors import InputError

KIB, MIB = 2**10, 2**20
# What a RuntimeError says of memory that could not be had; oneDNN, which makes its kernel first, says no more.
NO_MEMORY = ("memory", "could not create a primitive")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory above the level at construction; `reset` forgets peaks passed since, `mib` reads the highest.

    On CPU this is Linux's high-water mark of resident memory, so it covers every allocator of the process, and what
    an allocator keeps for later counts as held. Measure in a fresh process: memory freed before is used again unseen.

    Raises InputError: a CPU measurement without Linux's /proc.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type != "cuda" and not STATUS.exists():
            raise InputError("peak memory is read from /proc/self/status: run on Linux, or without peak memory")
        self.reset()
        self.before = self._held()

    def reset(self) -> None:
        """Let the peak be the present level, after giving back what is not in use."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")

    @property
    def mib(self) -> float:
        """MiB between the level at construction and the highest since the last reset."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / MIB
        return (_status_kib("VmHWM") * KIB - self.before) / MIB

    def _held(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status_kib("VmRSS") * KIB


@contextmanager
def within_memory(refusal: str) -> Iterator[None]:
    """Run what may need more memory than there is, which then is an InputError with this text."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)):
            raise
        raise InputError(refusal) from error


def refuse_more_than_available() -> None:
    """Make allocations beyond the memory now available fail, so that the system need not kill a process.

    A failed allocation is an error of this process alone. Does nothing where Linux's /proc is missing.
    """
    meminfo = Path("/proc/meminfo")
    if not (STATUS.exists() and meminfo.exists()):
        return
    import resource

    available = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    assert available, "/proc/meminfo has no MemAvailable"
    limit = (_status_kib("VmSize") + int(available[1])) * KIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _status_kib(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {key}"
    return int(found[1])
