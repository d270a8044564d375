"""Small models in the published layouts, computed with the published code in float32 on CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_helpers import load_command

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


@pytest.fixture(scope="session")
def importer() -> Any:
    return load_command("import_weights")


@pytest.fixture
def refused(importer: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*arguments): the one line of an import that must end with exit code 2."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert importer.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: "), error
        return error.removeprefix("error: ").strip()

    return run
