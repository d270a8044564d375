"""Weights that others published, read from disk without running any code: torch files, safetensors, .npz.

A torch file may hold an `argparse.Namespace` beside its tensors, as the published EcoFormer checkpoints do; it is
the one class that is let through, for the length of one load. Everything else that is no tensor or plain container
is refused.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ecoformer.errors import InputError

SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".safetensors", ".npz")
WRAPPERS = ("model", "state_dict")  # keys under which a state dict is kept, in this order
NPZ_PREFIX = "sd/"
DDP_PREFIX = "module."


@dataclass
class WeightFile:
    """A state dict as it was found, and what the file says of the model's dimensions (`meta`, from .npz only)."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


def format_of(path: Path) -> str | None:
    """The `format` that a torch file states, as checkpoints of train.py do; "" for one without, None if unreadable."""
    if path.suffix in (".npz", ".safetensors"):
        return ""
    try:
        content = _torch_load(path)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    return str(content.get("format", "")) if isinstance(content, Mapping) else ""


def read_weights(path: Path) -> WeightFile:
    """The state dict of a foreign file, without wrappers and without the `module.` of data-parallel training.

    Raises InputError: missing, damaged, of an unknown kind, holding no tensors, or asking for code to be run.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a file of weights ({', '.join(SUFFIXES)})")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no known kind of weight file: give one of {', '.join(SUFFIXES)}")
    found: Mapping[str, Any]
    meta: dict[str, Any] = {}
    try:
        if path.suffix == ".npz":
            found, meta = _read_npz(path)
        elif path.suffix == ".safetensors":
            found = safetensors.torch.load_file(path)
        else:
            found = _unwrap(_torch_load(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} asks for objects other than tensors, plain containers and argparse.Namespace and is not loaded, "
            "since that could run code: get the weights as .safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is truncated or damaged: download it again") from error
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no state dict: give a file whose tensors lie at the top or under 'model'")
    if all(key.startswith(DDP_PREFIX) for key in tensors):
        tensors = {key.removeprefix(DDP_PREFIX): value for key, value in tensors.items()}
    return WeightFile(path, tensors, meta)


def _torch_load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    return content


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        tensors = {
            key.removeprefix(NPZ_PREFIX): torch.from_numpy(archive[key])
            for key in archive.files
            if key.startswith(NPZ_PREFIX)
        }
        meta = json.loads(str(archive["meta"])) if "meta" in archive.files else {}
    return tensors, meta
