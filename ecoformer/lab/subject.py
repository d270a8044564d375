"""What a table is about: timm's model of a name, or the architecture of a checkpoint, with one attention or another."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

import ecoformer.models  # noqa: F401  registers the converted models and the encoder
from ecoformer.config.schema import CompressConfig
from ecoformer.model.convert import convert
from ecoformer.model.create import create
from ecoformer.nn.inputs import size_of
from ecoformer.nn.specs import AttentionSpec
from ecoformer.run.start import SavedRun, build_model, model_of_run, read_run

BASELINES = ("stock", "msa")  # beside a checkpoint, where nothing else is asked for


@lru_cache(maxsize=2)
def run_of(checkpoint: str) -> SavedRun:
    """A run's checkpoint, read once. Raises InputError as `read_run` does."""
    return read_run(checkpoint)


def short_name(checkpoint: str | None) -> str | None:
    """A checkpoint as a table shows it: the run's folder and the file."""
    return None if checkpoint is None else "/".join(Path(checkpoint).parts[-2:])


def own_attention(checkpoint: str | None) -> str | None:
    """The kind that a checkpoint was trained with; None without one."""
    return None if checkpoint is None else str(run_of(checkpoint).config.attention["name"])


def default_size(model: str, checkpoint: str | None = None) -> int:
    """Pixels or tokens: those of the checkpoint's run, or what timm's model is made for."""
    if checkpoint is None:
        return size_of(model)
    run = run_of(checkpoint)
    return run.sequences.get("seq_len", run.config.data.img_size)


def attentions_of(checkpoint: str, wanted: Sequence[str] | None) -> list[str]:
    """The checkpoint's own kind first, then what else is asked for."""
    own = own_attention(checkpoint)
    assert own is not None
    return list(dict.fromkeys([own, *(BASELINES if wanted is None else wanted)]))


def built(
    model: str, attention: str, spec: AttentionSpec | None, size: int, checkpoint: str | None, device: str | None = None
) -> nn.Module:
    """The model, converted to `spec` (None: stock) and without trained weights.

    Of a checkpoint whose own kind is `attention`, the trained model itself, on the CPU; under another attention, what
    its run would have begun with, neither compressed nor trained.
    Raises InputError for an unknown name, a checkpoint that is none, an attention or a size that does not fit.
    """
    if checkpoint is None:
        found = create(model, key="--model", img_size=size, device=device)
    elif attention == own_attention(checkpoint):
        return model_of_run(run_of(checkpoint))
    else:
        run = run_of(checkpoint)
        config = copy.deepcopy(run.config)
        config.attention, config.compress, config.data.img_size = {"name": "stock"}, CompressConfig(), size
        sequences = {**run.sequences, "seq_len": size} if run.sequences else {}
        with torch.device(device) if device is not None else nullcontext():
            found = build_model(config, len(run.class_names), sequences=sequences, with_weights=False).model
    if spec is not None:
        convert(found, spec, img_size=size)
    return found
