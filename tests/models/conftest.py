"""Small models in the published layouts, computed with the published code in float32 on CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ecoformer.cli import import_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[Path, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
    """golden("pvt_tiny_msa"): the file, its state dict, images and the logits of the published code."""

    def read(name: str) -> tuple[Path, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        path = GOLDEN / f"official_{name}.npz"
        arrays = np.load(path)
        state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("sd/")}
        return path, state, torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["logits"])

    return read


@pytest.fixture
def refused(one_line: Callable[..., str]) -> Callable[..., str]:
    """refused(*arguments): the one line of an import that must end with exit code 2."""
    return lambda *arguments: one_line(import_weights.main, *arguments).removeprefix("error: ").strip()
