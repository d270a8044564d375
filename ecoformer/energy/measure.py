"""Measured joules per image, idle power subtracted, or the word "unavailable" and why."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ecoformer.energy.meters import Meter, MeterUnavailable, meter_for
from ecoformer.errors import InputError
from ecoformer.fit.hashes import fit_new_hashes
from ecoformer.nn.inputs import Size, example_input, takes_sequences

UNAVAILABLE = "unavailable"


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
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Measurement:
    """Repeat `run` for at least `seconds` and charge what it took above idle power.

    Args:
        run: one batch; called once untimed to warm up.
        synchronize: waits until the device has finished.
        clock, sleep: replaceable for tests.
    Returns:
        No figure, but a reason, if a counter fails or the work does not rise above idle power.
    """
    try:
        run()
        synchronize()
        start, before = clock(), meter.joules()
        sleep(idle_seconds)
        idle_watts = (meter.joules() - before) / (clock() - start)
        runs, start, before = 0, clock(), meter.joules()
        while clock() - start < seconds:
            run()
            runs += 1
        synchronize()
        joules, elapsed = meter.joules() - before, clock() - start
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
