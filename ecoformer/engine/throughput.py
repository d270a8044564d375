"""Images per second of several models in turn, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Throughput:
    """Images per second: the median over the rounds, the slowest and the fastest round."""

    median: float
    low: float
    high: float


@torch.inference_mode()
def interleaved_throughput(
    models: dict[str, nn.Module], images: Tensor, rounds: int = 5, min_seconds: float = 0.3
) -> dict[str, Throughput]:
    """Forward passes in eval mode, one model after the other, round by round after one warm-up pass each.

    Args:
        models: by name, on the device of `images`; left in eval mode.
        images: one batch (B, 3, S, S).
        rounds: how often each model is timed.
        min_seconds: a round repeats the batch until at least this much time has passed.
    """
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()(images)
    for _ in range(rounds):
        for name, model in models.items():
            _wait(images.device)
            started, passes = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - started) < min_seconds:
                model(images)
                _wait(images.device)
                passes += 1
            rates[name].append(passes * len(images) / elapsed)
    return {name: Throughput(statistics.median(seen), min(seen), max(seen)) for name, seen in rates.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
