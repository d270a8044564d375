"""Checkpoint files: tensors and plain containers only, written atomically, read without running any code.

A file is a dict with `format`, `version`, `kind`, `config`, `epoch` (epochs completed), `step` (optimiser steps
done), `metrics` (of the last epoch, None before its end) and `model` (a state dict). Two kinds exist: "run" (last.pt)
adds `ema` and `training`, all that a resume needs; "weights" (best.pt, top/) holds the evaluated weights, EMA if it is
on, alone.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ecoformer.errors import InputError, counted
from ecoformer.files import atomic_write
from ecoformer.model.file_kinds import other_than_weights

FORMAT = "ecoformer.checkpoint"
VERSION = 2  # 1 had no training.position: it was written between epochs alone
KEYS = {
    "weights": {"config", "epoch", "step", "metrics", "model"},
    "run": {"config", "epoch", "step", "metrics", "model", "ema", "training"},
}
_PLAIN = (str, int, float, bool, type(None), torch.dtype)


class UnreadableCheckpoint(InputError):
    """There is no such file, or it is truncated, damaged, or not one of ours."""


def save_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write `content` to `path`, or leave the file there as it was; `previous` is the name that it goes on under.

    Raises InputError: the file cannot be written (disk full, read-only folder, ...).
    """
    content = {"format": FORMAT, "version": VERSION, **content}
    fault = no_plain(content, "checkpoint")
    assert fault is None, fault  # a defect of ours
    with atomic_write(path, previous) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # On a failed write torch's zip writer raises its own error while it closes, over the cause.
            cause = error.__context__ or error.__cause__
            raise cause if isinstance(cause, OSError) else error from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UnreadableCheckpoint: missing, unreadable, truncated or damaged file, a file of another program, or one whose
            pickle asks for more than tensors and plain containers.
        InputError: a file of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableCheckpoint(f"checkpoint {path} does not exist: give the path of a run's last.pt or best.pt")
    try:
        if (other := other_than_weights(path)) is not None:
            raise UnreadableCheckpoint(f"checkpoint {path} {other}")
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if not is_zip:
            raise UnreadableCheckpoint(f"checkpoint {path} is no checkpoint of this project: {_ORIGIN}")
        # torch does not compare the checksums that it writes, and would load a flipped bit.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpoint(
            f"checkpoint {path} asks for objects other than tensors and plain containers and is not loaded, since "
            f"that could run code: {_ORIGIN}"
        ) from error
    except OSError as error:
        raise UnreadableCheckpoint(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except (UnreadableCheckpoint, MemoryError):
        raise
    except Exception as error:  # a flipped bit in a header can make the two readers fail in any way
        raise UnreadableCheckpoint(
            f"checkpoint {path} is truncated or damaged: use another one, or train again"
        ) from error
    if not _is_ours(content):
        raise UnreadableCheckpoint(f"checkpoint {path} is no checkpoint of this project: {_ORIGIN}")
    if content["version"] > VERSION:
        raise InputError(
            f"checkpoint {path} has format version {content['version']}, this program reads up to {VERSION}: update it"
        )
    return content


def _is_ours(content: Any) -> bool:
    if not isinstance(content, dict) or content.get("format") != FORMAT or type(content.get("version")) is not int:
        return False
    newer = content["version"] > VERSION  # may hold other keys; the message is to say so
    return newer or KEYS.get(content.get("kind", ""), {"kind"}) <= content.keys()


_ORIGIN = "give a last.pt or best.pt that train.py wrote (`ecoformer import` makes one of others' weights)"


def evaluated_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict that was evaluated: the EMA's where the run kept one, else the model's."""
    return checkpoint.get("ema") or checkpoint["model"]


def load_weights(model: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Load a state dict that must fit exactly.

    Raises InputError: keys are missing or left over, or shapes differ; names the first of each. Or a tensor is none to
    compute with: NaN, an infinite weight, whole numbers for weights, sparse, without storage.
    """
    own = model.state_dict()
    faults = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    found = [f"{counted(len(keys), 'key')} {kind} (first {keys[0]})" for kind, keys in faults.items() if keys]
    if found:
        raise InputError(
            f"checkpoint {source} does not fit this model: {', '.join(found)}; use the model, attention and data "
            "settings of the run that wrote it"
        )
    buffers = dict(model.named_buffers())  # a mask among them may be -inf by design
    for key, value in state.items():
        fault = None
        if value.layout != torch.strided or value.is_meta or own[key].is_floating_point() > value.is_floating_point():
            fault = f"is no dense tensor of {own[key].dtype}: save the weights as such"
        elif value.isnan().any() or (key not in buffers and value.isinf().any()):
            fault = "has NaN or infinite numbers: use an earlier one"
        if fault is not None:
            raise InputError(f"checkpoint {source} cannot be used: {key} {fault}")
    model.load_state_dict({key: shared_like(own[key], value) for key, value in state.items()})


def no_plain(value: Any, where: str) -> str | None:
    """What of a value, which a message calls `where`, is not loadable with weights_only=True; None: all is."""
    if isinstance(value, dict):
        parts = [(key, f"a key of {where}") for key in value] + [(x, f"{where}[{key!r}]") for key, x in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(item, f"{where}[{index}]") for index, item in enumerate(value)]
    else:
        return None if isinstance(value, Tensor) or type(value) in _PLAIN else f"{where} is a {type(value).__name__}"
    return next((fault for item, name in parts if (fault := no_plain(item, name)) is not None), None)


def shared_like(own: Any, value: Any) -> Any:
    """`value`, a whole tensor, shared among the processes as `own` is, if it is; every process must call it."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value
