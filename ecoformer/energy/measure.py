"""Measured joules per image, idle power subtracted, or the word "unavailable" and why.

The machine's energy counters are NVML for NVIDIA GPUs and RAPL through powercap for processor packages. Both count
joules since some start in hardware; nothing here samples or estimates power.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ecoformer.errors import InputError
from ecoformer.fit.hashes import fit_new_hashes
from ecoformer.nn.inputs import Size, example_input, takes_sequences

UNAVAILABLE = "unavailable"
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


@dataclass(frozen=True)
class Measurement:
    """One measurement, or why there is none. It covers the device alone: a GPU without its host, or the packages.

    `unit` is what an image is where the model takes sequences.
    """

    joules_per_image: float | None
    source: str = UNAVAILABLE
    images: int = 0
    seconds: float = 0.0
    idle_watts: float | None = None
    reason: str = ""
    unit: str = "images"

    def __str__(self) -> str:
        if self.joules_per_image is None:
            return UNAVAILABLE
        return f"{self.joules_per_image:.4g} J ({self.source}, {self.images} {self.unit})"


def measure_joules(
    run: Callable[[], None],
    images_per_run: int,
    meter: Meter,
    *,
    seconds: float = 5.0,
    idle_seconds: float = 3.0,
    synchronize: Callable[[], None] = lambda: None,
) -> Measurement:
    """Repeat `run` for at least `seconds` and charge what it took above idle power.

    Args:
        run: one batch; called once untimed to warm up.
        synchronize: waits until the device has finished.
    Returns:
        No figure, but a reason, if a counter fails or the work does not rise above idle power.
    """
    try:
        run()
        synchronize()
        start, before = time.perf_counter(), meter.joules()
        time.sleep(idle_seconds)
        idle_watts = (meter.joules() - before) / (time.perf_counter() - start)
        runs, start, before = 0, time.perf_counter(), meter.joules()
        while time.perf_counter() - start < seconds:
            run()
            runs += 1
        synchronize()
        joules, elapsed = meter.joules() - before, time.perf_counter() - start
    except MeterUnavailable as error:
        return Measurement(None, reason=str(error))
    images = runs * images_per_run
    net = joules - idle_watts * elapsed
    if net <= 0:
        reason = f"{joules:.3g} J in {elapsed:.3g} s is not above idle power of {idle_watts:.3g} W"
        return Measurement(None, reason=reason)
    return Measurement(net / images, meter.source, images, elapsed, idle_watts)


def measure_model(
    model: nn.Module,
    img_size: Size,
    device: str | torch.device = "cpu",
    *,
    batch_size: int = 32,
    seconds: float = 5.0,
    idle_seconds: float = 3.0,
) -> Measurement:
    """Joules per image (or sequence) of a forward pass on random ones, on the device's counter.

    The model moves to `device` and its unfitted hash functions are fitted on two of them; its weights do not matter to
    the energy of dense arithmetic, so random ones serve. `img_size`: a size as `ecoformer.energy.count` takes it.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} does not exist: use cpu, cuda or cuda:N") from error
    try:
        meter = meter_for(device)
    except MeterUnavailable as error:
        return Measurement(None, reason=str(error))
    images = example_input(model, img_size, batch_size, device=device)
    model = model.to(device).eval()
    fit_new_hashes(model, images[:2], seed=0)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    found = measure_joules(run, batch_size, meter, seconds=seconds, idle_seconds=idle_seconds, synchronize=wait)
    return replace(found, unit="sequences") if takes_sequences(model) else found
