"""Measured joules: counters read right, idle power subtracted, and nothing invented where there is no counter."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from ecoformer.energy import measure as measuring
from ecoformer.energy.measure import (
    UNAVAILABLE,
    MeterUnavailable,
    NvmlMeter,
    RaplMeter,
    measure_joules,
    measure_model,
    meter_for,
)


class World:
    """A clock, and a counter of a device that takes `idle` watts, and `busy` watts while a batch runs."""

    source = "test"

    def __init__(self, idle: float, busy: float) -> None:
        self.idle, self.busy = idle, busy
        self.now = self.energy = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.energy += self.idle * seconds

    def run(self) -> None:
        self.now += 0.5
        self.energy += self.busy * 0.5

    def joules(self) -> float:
        return self.energy

    def measure(self, **options: float) -> measuring.Measurement:
        its_time = SimpleNamespace(perf_counter=lambda: self.now, sleep=self.sleep)
        with patch.object(measuring, "time", its_time):
            return measure_joules(self.run, 4, self, **options)


def test_idle_power_is_subtracted() -> None:
    """(50 - 10) W for 0.5 s and 4 images: 5 J an image."""
    found = World(idle=10, busy=50).measure(seconds=3.0)
    assert found.joules_per_image == pytest.approx(5.0)
    assert (found.images, found.seconds, found.idle_watts) == (24, 3.0, 10.0)
    assert str(found) == "5 J (test, 24 images)"


def test_work_that_drowns_in_idle_power_is_unavailable() -> None:
    found = World(idle=50, busy=50).measure()
    assert found.joules_per_image is None
    assert str(found) == UNAVAILABLE
    assert "not above idle power of 50 W" in found.reason


def test_a_counter_that_fails_is_unavailable() -> None:
    class Broken(World):
        def joules(self) -> float:
            raise MeterUnavailable("it is unplugged")

    found = Broken(1, 2).measure()
    assert (str(found), found.reason) == ("unavailable", "it is unplugged")


def zone(root: Path, name: str, energy: int, limit: int = 1000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_rapl_adds_packages_and_undoes_wrapping(tmp_path: Path) -> None:
    packages = [zone(tmp_path, "intel-rapl:0", 900), zone(tmp_path, "intel-rapl:1", 100)]
    zone(tmp_path, "intel-rapl:0:0", 900)
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0
    (packages[0] / "energy_uj").write_text("50")
    (packages[1] / "energy_uj").write_text("300")
    assert meter.joules() == pytest.approx((150 + 200) / 1e6)


def test_rapl_counts_packages_by_name(tmp_path: Path) -> None:
    """psys is the whole platform: with the package in it, the same joule would count twice."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "psys", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    folders = {name: zone(tmp_path, folder, 0, limit=10**9) for folder, name in zones.items()}
    for name, folder in folders.items():
        (folder / "name").write_text(f"{name}\n")
    meter = RaplMeter(tmp_path)
    for folder in folders.values():
        (folder / "energy_uj").write_text("1000000")
    assert meter.joules() == 1.0


def test_rapl_without_packages_or_permission(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailable, match="no RAPL package under"):
        RaplMeter(tmp_path)
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    with pytest.raises(MeterUnavailable, match="energy_uj cannot be read"):
        RaplMeter(tmp_path)


class FakeNvml(ModuleType):
    """What nvidia-ml-py looks like where one GPU has counted `millijoules`; None: a GPU without the counter."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: int | None) -> None:
        super().__init__("pynvml")
        self.millijoules, self.started = millijoules, False

    def nvmlInit(self) -> None:
        self.started = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.started
        return f"handle of {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle of GPU-0"
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules


def test_nvml_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeNvml(2_500)
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    meter = NvmlMeter("GPU-0")
    gpu.millijoules = 4_000
    assert (meter.source, meter.joules()) == ("NVML", 4.0)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(None))
    with pytest.raises(MeterUnavailable, match="nvmlDeviceGetTotalEnergyConsumption failed: Not Supported"):
        NvmlMeter("GPU-0")


def test_nvml_without_its_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterUnavailable, match=r"nvidia-ml-py is not installed: pip install 'ecoformer\[nvml\]'"):
        NvmlMeter("GPU-0")


def test_other_devices_have_no_counter() -> None:
    with pytest.raises(MeterUnavailable, match="no counter is read for meta devices"):
        meter_for(torch.device("meta"))


def test_model_without_a_counter_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> None:
        raise MeterUnavailable("no RAPL package")

    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("ran for nothing")

    monkeypatch.setattr(measuring, "meter_for", missing)
    assert str(measure_model(Refuses(), 8)) == "unavailable"


def test_model_with_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing:
        source = "test"

        def __init__(self) -> None:
            self.reads = 0

        def joules(self) -> float:
            self.reads += 1
            return {1: 0.0, 2: 0.0, 3: 0.0, 4: 100.0}[self.reads]

    monkeypatch.setattr(measuring, "meter_for", lambda device: Growing())
    found = measure_model(nn.Conv2d(3, 4, 3), 8, batch_size=2, seconds=0.01, idle_seconds=0.01)
    assert found.joules_per_image == pytest.approx(100.0 / found.images)
    assert found.images % 2 == 0


@pytest.mark.gpu
def test_gpu_counter_moves() -> None:
    found = measure_model(nn.Conv2d(3, 64, 7), 224, "cuda", seconds=2.0)
    assert found.source == "NVML" and found.joules_per_image is not None
