"""Energy counters of the machine: NVML for NVIDIA GPUs, RAPL through powercap for processor packages.

Both count joules since some start in hardware; nothing here samples or estimates power.
"""

from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class MeterUnavailable(Exception):
    """The machine has no readable energy counter for the device; the message says why."""


class Meter(Protocol):
    """A cumulative energy counter."""

    source: str

    def joules(self) -> float:
        """Joules since an arbitrary start. Raises MeterUnavailable if the counter cannot be read."""
        ...


class RaplMeter:
    """Sum over processor packages of powercap's energy_uj, with wrap-around undone.

    A counter wraps after minutes to hours of load: read it at least that often.
    """

    source = "RAPL"

    def __init__(self, root: Path = POWERCAP) -> None:
        # Packages are called package-N (AMD's too). Beside them may stand psys, the whole platform, and below them
        # their parts (core, dram): both would count the same energy again.
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if self._name(zone).startswith("package")]
        if not self._zones:
            raise MeterUnavailable(f"no RAPL package under {root}")
        self._ranges = [self._read(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [self._read(zone / "energy_uj") for zone in self._zones]
        self._total_uj = 0

    def joules(self) -> float:
        now = [self._read(zone / "energy_uj") for zone in self._zones]
        for before, after, limit in zip(self._last, now, self._ranges, strict=True):
            self._total_uj += after - before if after >= before else after - before + limit
        self._last = now
        return self._total_uj / 1e6

    @staticmethod
    def _name(zone: Path) -> str:
        try:
            return (zone / "name").read_text().strip()
        except OSError:  # unreadable as the counter itself: it is found out there
            return "package" if zone.name.count(":") == 1 else ""

    @staticmethod
    def _read(file: Path) -> int:
        try:
            return int(file.read_text())
        except (OSError, ValueError) as error:
            raise MeterUnavailable(f"{file} cannot be read: {error}") from error


class NvmlMeter:
    """Total energy of one GPU since the driver was loaded (Volta and later), through NVIDIA's own bindings."""

    source = "NVML"

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise MeterUnavailable("nvidia-ml-py is not installed: pip install 'ecoformer[nvml]'") from error
        self._nvml = pynvml
        self._ask("nvmlInit")
        self._handle = self._ask("nvmlDeviceGetHandleByUUID", uuid)
        self.joules()

    def joules(self) -> float:
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)) / 1e3

    def _ask(self, function: str, *args: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*args)
        except self._nvml.NVMLError as error:
            raise MeterUnavailable(f"{function} failed: {error}") from error


def meter_for(device: torch.device) -> Meter:
    """The counter of a device. Raises MeterUnavailable where there is none."""
    if device.type == "cpu":
        return RaplMeter()
    if device.type == "cuda":
        if torch.version.hip:
            raise MeterUnavailable("no counter is read for AMD GPUs")
        if not torch.cuda.is_available():
            raise MeterUnavailable("torch sees no GPU")
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return NvmlMeter(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    raise MeterUnavailable(f"no counter is read for {device.type} devices")
