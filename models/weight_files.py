"""Weights that others published, read from disk without running any code: torch files, safetensors, .npz.

A torch file may hold what training scripts keep beside tensors: an `argparse.Namespace`, as the published EcoFormer
checkpoints do, NumPy's scalars, paths. These classes run nothing and are let through, for the length of one load.
Everything else that is no tensor or plain container is refused.
"""

import argparse
import json
import pathlib
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ecoformer.errors import InputError, is_whole, require
from ecoformer.model.file_kinds import is_safetensors, is_torch_zip, other_than_weights, refused_class

SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".safetensors", ".npz")
# Keys under which state dicts are kept. timm calls averaged weights state_dict_ema and, of older scripts, model_ema.
PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "module", "params", "weights")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "model_ema_state_dict")
NPZ_PREFIX = "sd/"
# What wrappers write into names, wherever they stand: torch.compile, FSDP, activation checkpointing.
INSERTED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
# Where a backbone begins: the first patch embedding of each layout that is known (see `official`).
STEM = re.compile(r"(.*\.)?(patch_embed1?\.proj\.weight|patch_embeds\.0\.proj\.weight)")
# What trains a model beside it, by the names that training modules give it.
ASIDE = re.compile(r"(?:.*[._])?(?:teacher|discriminator|loss|criterion)[._].*")
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile)
HARMLESS: list[Any] = [
    *(argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.Path),
    *(np.dtype, np.float64(0).__reduce__()[0]),  # the function behind NumPy's scalars, wherever a version keeps it
    *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType", "BoolDType")),
]


@dataclass
class WeightFile:
    """A state dict as it was found, what the file says of the model (`meta`, from .npz only), and what was done."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def format_of(path: Path) -> str | None:
    """The `format` that a torch file states, as checkpoints of train.py do; "" for one without, None if unreadable."""
    if path.suffix == ".npz" or other_than_weights(path) is not None or is_safetensors(path):
        return ""
    try:
        content = _torch_load(path)
    except (*DAMAGED, pickle.UnpicklingError):
        return None
    return str(content.get("format", "")) if isinstance(content, Mapping) else ""


def read_weights(path: Path, use_ema: bool = True) -> WeightFile:
    """The state dict of a foreign file, without what training scripts and wrappers put around it.

    Found by their keys are averaged and plain weights (`use_ema` chooses where there are both, as in timm), and by
    the place of the patch embedding the names that wrappers, Lightning modules or mm-style models put before those of
    the backbone; what is no part of it is left aside. `notes` say so.

    Raises InputError: missing, damaged, no file of weights, holding no tensors, or asking for code to be run.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a file of weights ({', '.join(SUFFIXES)})")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no known kind of weight file: give one of {', '.join(SUFFIXES)}")
    if (other := other_than_weights(path)) is not None:
        raise InputError(f"{path} {other}")
    found: Any
    meta: Any = {}
    notes: list[str] = []
    try:
        if path.suffix == ".npz":
            found, meta = _read_npz(path)
        elif is_safetensors(path) or (path.suffix == ".safetensors" and not is_torch_zip(path)):
            found = safetensors.torch.load_file(path)
        else:
            found = _torch_load(path)
    except pickle.UnpicklingError as error:
        asked = f" ({refused_class(error)})" if refused_class(error) else ""
        raise InputError(
            f"{path} asks for objects other than tensors, plain containers and argparse.Namespace{asked} and is not "
            "loaded, since that could run code: save model.state_dict() alone where it was made, or get .safetensors"
        ) from error
    except DAMAGED as error:
        raise InputError(f"{path} is truncated or damaged: download it again") from error
    _check_meta(meta, path)
    found = _chosen(found, path, use_ema, notes)
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no state dict: give a file whose tensors lie at the top or under 'model'")
    return WeightFile(_backbone(tensors, path, use_ema, notes), meta, notes)


def _torch_load(path: Path) -> Any:
    with open(path, "rb") as file, torch.serialization.safe_globals(HARMLESS):  # of a path torch minds the ending
        return torch.load(file, map_location="cpu", weights_only=True)


def _chosen(content: Any, path: Path, use_ema: bool, notes: list[str]) -> Mapping[str, Any]:
    """The state dict in what a training script saved, which may hold a plain and an averaged one."""
    if not isinstance(content, Mapping):
        return {}
    ema, plain = (_one_key(content, keys, path) for keys in (EMA_KEYS, PLAIN_KEYS))
    if ema is not None and (use_ema or plain is None):
        other = f"; init.use_ema=false takes {plain}" if plain is not None else ""
        notes.append(f"averaged weights ({ema}) were taken{other}")
        return _chosen(content[ema], path, use_ema, notes)
    if plain is not None:
        if ema is not None:
            notes.append(f"plain weights ({plain}) were taken, averaged ones ({ema}) left aside")
        return _chosen(content[plain], path, use_ema, notes)
    return content


def _one_key(content: Mapping[str, Any], keys: Iterable[str], path: Path) -> str | None:
    """The first of `keys` that holds a model, else any mapping. Raises InputError where others hold another model."""
    held = [key for key in keys if isinstance(content.get(key), Mapping)]
    models = [key for key in held if any(STEM.fullmatch(INSERTED.sub("", str(name))) for name in content[key])]
    for other in models[1:]:
        first, second = _bare(content[models[0]]), _bare(content[other])
        if first.keys() != second.keys() or not all(torch.equal(first[name], second[name]) for name in first):
            raise InputError(
                f"{path} holds different weights as {models[0]} and as {other}: save those that are meant in a file of "
                "their own"
            )
    return next(iter(models or held), None)


def _bare(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Its dense tensors, as float32, by name without what wrappers put before it."""
    named = {INSERTED.sub("", str(name)): value for name, value in model.items()}
    prefix = next((found[1] or "" for name in named if (found := STEM.fullmatch(name))), "")
    dense = {name: x for name, x in named.items() if isinstance(x, Tensor) and x.layout == torch.strided}
    return {name.removeprefix(prefix): x.float() for name, x in dense.items()}


def _check_meta(meta: Any, path: Path) -> None:
    """Raise InputError where what an .npz says of its model is of another kind than is read of it."""
    require(meta, dict, "mapping: give names and values as its meta, or leave it out", f"{path}: meta ")
    told = {"img_size": 1, "top_k": 1, "num_heads": [1]} | meta
    numbers, heads = [told["img_size"], told["top_k"]], told["num_heads"]
    if not isinstance(heads, list) or not heads or not all(is_whole(n) and n > 0 for n in (*numbers, *heads)):
        given = ", ".join(f"{key}={meta[key]!r}"[:60] for key in ("img_size", "top_k", "num_heads") if key in meta)
        raise InputError(f"{path}: meta has {given}: give whole numbers of at least 1, num_heads as a list")


def _backbone(tensors: dict[str, Tensor], path: Path, use_ema: bool, notes: list[str]) -> dict[str, Tensor]:
    """The tensors under the names that they have in the model itself; all as they are where no backbone is found."""
    plain = {INSERTED.sub("", key): value for key, value in tensors.items()}
    if plain.keys() != tensors.keys():
        what = ", ".join(sorted({match for key in tensors for match in INSERTED.findall(key)}))
        notes.append(f"{what} left out of the names")
    prefixes = list(dict.fromkeys(found[1] or "" for key in plain if (found := STEM.fullmatch(key))))
    if not prefixes:
        return plain
    prefix = _one_model(prefixes, path, use_ema)
    own = {key for key in plain if key.startswith(prefix) and not ASIDE.fullmatch(key.removeprefix(prefix))}
    inside = {key.removeprefix(prefix): value for key, value in plain.items() if key in own}
    if prefix:
        notes.append(f"{prefix} dropped from the names of {len(inside)} tensors")
    outside = [key for key in plain if key not in own]
    # mm-style models keep their classifier beside the backbone.
    for name in ("weight", "bias"):
        if (head := f"head.fc.{name}") in outside:
            inside[f"head.{name}"] = plain[head]
            outside.remove(head)
    if outside:
        aside = Counter(key.partition(".")[0] for key in outside)
        notes.append("left aside: " + ", ".join(f"{name} ({count} tensors)" for name, count in aside.items()))
    return inside


def _one_model(prefixes: list[str], path: Path, use_ema: bool) -> str:
    """The prefix of the model that is meant where a file holds several under one roof."""
    if not any("student" in prefix for prefix in prefixes):  # of such a pair either may be meant
        prefixes = [prefix for prefix in prefixes if not ASIDE.fullmatch(prefix)] or prefixes
    averaged = [prefix for prefix in prefixes if "ema" in re.split(r"[._]", prefix)]
    others = [prefix for prefix in prefixes if prefix not in averaged]
    chosen = averaged if averaged and (use_ema or not others) else others
    if len(chosen) > 1:
        raise InputError(
            f"{path} holds {len(chosen)} models ({', '.join(prefix or 'one without a prefix' for prefix in chosen)}): "
            "save the one that is meant in a file of its own"
        )
    return chosen[0]


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        held = [key for key in archive.files if key.startswith(NPZ_PREFIX)]
        tensors = {key.removeprefix(NPZ_PREFIX): torch.from_numpy(archive[key]) for key in held}
        meta = json.loads(str(archive["meta"])) if "meta" in archive.files else {}
    return tensors, meta
