"""The state of every global random number generator, in types that a weights-only load accepts."""

import random
from typing import Any

import numpy as np
import torch

from ecoformer.engine import distributed


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_rng(states: list[dict[str, Any]] | None, device: torch.device) -> str | None:
    """Put this rank's states back, and return a note if that cannot be; call it right before the steps."""
    now = distributed.world_size()
    # The global batch is the same, but it may be spread over another number of processes.
    if states is not None and len(states) != now:
        return f"resumed on {now} processes, was {len(states)}: augmentation and drop-path draw anew"
    if states is not None:
        _set_rng_state(states[distributed.rank()], device)
    return None


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of python, numpy, torch and, on a GPU, that device, as tensors and plain containers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.tensor(keys, dtype=torch.int64), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned; a GPU state is ignored on a CPU, where nothing would draw from it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
