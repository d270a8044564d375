"""Seconds per pass of several models in turn, so that a slow moment of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.engine.autocast import autocast

Pass = Callable[[], object]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def interleaved_throughput(
    models: dict[str, nn.Module], images: Tensor, rounds: int = 5, min_seconds: float = 0.3
) -> dict[str, dict[str, float]]:
    """Images per second of forward passes in eval mode, one model after the other after one warm-up pass each.

    By name the median over the rounds, and the slowest ("low") and the fastest round ("high").

    Args:
        models: by name, on the device of `images`; left in eval mode.
        images: one batch (B, 3, S, S).
        rounds: how often each model is timed.
        min_seconds: a round repeats the batch until at least this much time has passed.
    """
    passes = {name: forward_pass(model, images) for name, model in models.items()}
    seconds = interleaved_seconds(passes, images.device, rounds, min_seconds)
    rates = {name: [len(images) / s for s in seen] for name, seen in seconds.items()}
    return {n: {"median": statistics.median(r), "low": min(r), "high": max(r)} for n, r in rates.items()}


def interleaved_seconds(
    passes: Mapping[str, Pass], device: torch.device, rounds: int = 5, min_seconds: float = 0.3
) -> dict[str, list[float]]:
    """Seconds of one pass, for every name one figure a round; arguments as in `interleaved_throughput`."""
    for run in passes.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            wait_for(device)
            started, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - started) < min_seconds or not count:
                run()
                wait_for(device)
                count += 1
            seconds[name].append(elapsed / count)
    return seconds


def forward_pass(model: Callable[[Tensor], object], images: Tensor, precision: str = "fp32") -> Pass:
    """What a deployed model does with one batch: eval mode, no autograd graph."""
    if isinstance(model, nn.Module):
        model.eval()

    @torch.inference_mode()
    def run() -> object:
        with autocast(images.device, PRECISIONS[precision]):
            return model(images)

    return run


def training_step(model: nn.Module, images: Tensor, num_classes: int, precision: str = "fp32") -> Pass:
    """Forward, cross-entropy, backward and an AdamW step on one batch, in training mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    targets = torch.arange(len(images), device=images.device) % num_classes

    def run() -> object:
        optimizer.zero_grad()
        with autocast(images.device, PRECISIONS[precision]):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss

    return run


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
