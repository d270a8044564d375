"""What a table is about: timm's model of a name, or the architecture of a checkpoint, with one attention or another."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ecoformer.models  # noqa: F401  registers the converted models and the encoder
from ecoformer.config.schema import CompressConfig
from ecoformer.model.convert import convert
from ecoformer.model.create import create
from ecoformer.nn.inputs import in_words, size_of
from ecoformer.nn.specs import AttentionSpec
from ecoformer.run.start import SavedRun, build_model, model_of_run, read_run

BASELINES = ("stock", "msa")  # beside a checkpoint, where nothing else is asked for
CONTROLS = ("uniform", "none", "random_hash", "msa_shared_qk")  # what every other kind has to be worth more than


@lru_cache(maxsize=2)
def run_of(checkpoint: str) -> SavedRun:
    """A run's checkpoint, read once. Raises InputError as `read_run` does."""
    return read_run(checkpoint)


def short_name(checkpoint: str | None) -> str | None:
    """A checkpoint as a table shows it: the run's folder and the file."""
    return None if checkpoint is None else "/".join(Path(checkpoint).parts[-2:])


def own_attention(checkpoint: str) -> str:
    """The kind that a checkpoint was trained with."""
    return str(run_of(checkpoint).config.attention["name"])


def default_size(model: str, checkpoint: str | None = None) -> int:
    """Pixels or tokens: those of the checkpoint's run, or what timm's model is made for."""
    if checkpoint is None:
        return size_of(model)
    run = run_of(checkpoint)
    return run.sequences.get("seq_len", run.config.data.img_size)


def attentions_of(checkpoint: str, wanted: Sequence[str] | None) -> list[str]:
    """The checkpoint's own kind first, then what else is asked for."""
    return list(dict.fromkeys([own_attention(checkpoint), *(BASELINES if wanted is None else wanted)]))


@dataclass(frozen=True)
class Subject:
    """A model with an attention at a size: pixels, or tokens of a model of sequences.

    `checkpoint`: a run whose model this is (of its own kind), or whose architecture (of any other attention). `clamp`:
    settings that the tokens are too few for give way.
    """

    model: str
    attention: str = "stock"
    img_size: int = 224
    clamp: bool = field(default=False, kw_only=True)
    checkpoint: str | None = field(default=None, kw_only=True)

    @property
    def size(self) -> str:
        return in_words(self.model, self.img_size)

    @property
    def name(self) -> str:
        """What messages call it: "pvt_v2_b0 ecoformer 224 px"."""
        return f"{self.model} {self.attention} {self.size}"

    @property
    def kind(self) -> str:
        """The attention and its settings alone."""
        return self.attention

    @property
    def trained(self) -> bool:
        """Whether it is the model of its checkpoint, not another attention of that architecture."""
        return self.checkpoint is not None and self.kind == own_attention(self.checkpoint)

    def settings(self) -> dict[str, Any]:
        """What a row says; where there is a checkpoint, it is null for other attention than its own, and `architecture`
        names it for all of them."""
        given = {key: value for key, value in vars(self).items() if key not in ("clamp", "checkpoint")}
        if self.checkpoint is not None:
            given |= {"checkpoint": self.checkpoint if self.trained else None, "architecture": self.checkpoint}
        return given

    def make(self, spec: AttentionSpec | None, device: str | None = None) -> nn.Module:
        """The model, converted to `spec` (None: stock) and without trained weights.

        Of a checkpoint the trained model itself, on the CPU; under another attention, what its run would have begun
        with, neither compressed nor trained.
        Raises InputError: an unknown name, a checkpoint that is none, an attention or a size that does not fit.
        """
        if self.checkpoint is None:
            found = create(self.model, key="--model", img_size=self.img_size, device=device)
        elif self.trained:
            return model_of_run(run_of(self.checkpoint))
        else:
            run = run_of(self.checkpoint)
            config = copy.deepcopy(run.config)
            config.attention, config.compress = {"name": "stock"}, CompressConfig()
            config.data.img_size = self.img_size
            sequences = {**run.sequences, "seq_len": self.img_size} if run.sequences else {}
            with torch.device(device) if device is not None else nullcontext():
                found = build_model(config, len(run.class_names), sequences=sequences, with_weights=False).model
        if spec is not None:
            convert(found, spec, img_size=self.img_size)
        return found
