"""A transformer encoder on token sequences with any attention kind, or with low-rank weights.

Shapes: B batch, N tokens, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from ecoformer.errors import InputError
from ecoformer.fit.hashes import fit_hashes
from ecoformer.kinds import SPECS, make_spec
from ecoformer.model.convert import convert
from ecoformer.model.low_rank import LowRankSpec, factorize
from ecoformer.models.dims import mlp_ratio

GREENFORMERS_RANK = 100  # the rank of the BERT example in Greenformers' own documentation; its abstract names none
NUMBERED = {"low_rank": "rank", "linformer": "proj_dim"}


@dataclass(frozen=True)
class Shape:
    """Width D, heads, MLP width and number of blocks."""

    name: str
    width: int
    heads: int
    mlp: int
    layers: int

    def __post_init__(self) -> None:
        for key in ("width", "heads", "mlp", "layers"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)} must be at least 1")
        if self.width % self.heads:
            raise InputError(f"width={self.width} does not divide into heads={self.heads}: choose heads that divide it")


# BERT-base's encoder and a ViT-B are made of the same block, but for the place of its norms.
SHAPES = {"bert_base": Shape("bert_base", 768, 12, 3072, 12), "vit_b_block": Shape("vit_b_block", 768, 12, 3072, 1)}


@dataclass(frozen=True)
class Kind:
    """What a row of the study is: an attention kind, or `low_rank`, softmax attention with low-rank weights.

    A number sets the rank or Linformer's projected tokens: low_rank_256, linformer_128.
    """

    label: str
    name: str
    number: int | None = None

    @classmethod
    def parse(cls, label: str) -> Kind:
        """Raises InputError for a kind that does not exist."""
        name, _, number = label.rpartition("_")
        if name in NUMBERED and number.isascii() and number.isdigit() and int(number) > 0:
            return cls(label, name, int(number))
        if label not in ("low_rank", "stock", *SPECS):
            known = ", ".join(["stock", "low_rank", "low_rank_RANK", *SPECS, "linformer_TOKENS"])
            raise InputError(f"kind {label} does not exist; choose one of {known}")
        return cls(label, label)

    def build(self, shape: Shape, tokens: int, layers: int, device: str = "meta") -> nn.Sequential:
        """timm's ViT blocks on (B, N, D) for that many tokens, without embeddings, final norm or head.

        They are in evaluation mode; weights are random, hash functions unfitted.
        Raises InputError if the kind cannot work with the tokens or the width.
        """
        options: dict[str, Any] = {"mlp_ratio": mlp_ratio(shape.mlp, shape.width), "qkv_bias": True}
        with torch.device(device):
            model = nn.Sequential(*(Block(shape.width, shape.heads, **options) for _ in range(layers))).eval()
        if self.name == "low_rank":
            factorize(model, LowRankSpec(rank=GREENFORMERS_RANK if self.number is None else self.number))
            return model
        options = {} if self.number is None else {NUMBERED[self.name]: self.number}
        spec = make_spec(self.name, options)
        if spec is None:
            return model
        if "fit_steps" in {field.name for field in fields(spec)}:
            spec = replace(spec, fit_steps=1)  # type: ignore[call-arg]  # how well codes fit changes no cost
        convert(model, spec.fit_to_tokens(tokens, "a block"))
        return model

    def build_fitted(self, shape: Shape, tokens: int, layers: int) -> nn.Sequential:
        """The same on CPU, hash functions fitted to random tokens."""
        torch.manual_seed(0)
        if self.name == "low_rank":  # the cost of factors does not depend on their values: no decomposition
            model = self.build(shape, tokens, layers).to_empty(device="cpu")
            for parameter in model.parameters():
                nn.init.trunc_normal_(parameter, std=0.02)
            return model
        model = self.build(shape, tokens, layers, "cpu")
        fit_hashes(model, torch.randn(1, min(tokens, 128), shape.width), seed=0)
        return model


def all_kinds() -> list[str]:
    """Every kind that exists now: softmax attention (a ViT's stock one), the low-rank transformer, the others."""
    return ["msa", "low_rank", *(name for name in SPECS if name != "msa")]


def token_list(text: str) -> list[int]:
    """Token counts from "64,128,...,8192": "..." doubles from the number before it to the one after it.

    Raises InputError for anything else, and for "..." between numbers that doubling does not connect.
    """
    parts = [part.strip() for part in text.split(",")]
    counts: list[int] = []
    for index, part in enumerate(parts):
        if part == "...":
            counts += _doublings(text, counts, parts[index + 1 :])
            continue
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise InputError(f"--tokens {text}: {part!r} is no number of tokens; write for example 64,128,...,8192")
        counts.append(int(part))
    return sorted(set(counts))


def _doublings(text: str, before: list[int], after: list[str]) -> list[int]:
    if not before or not after or not after[0].isdigit():
        raise InputError(f"--tokens {text}: ... stands between two numbers, for example 64,...,8192")
    found, end = [], int(after[0])
    count = 2 * before[-1]
    while count < end:
        found.append(count)
        count *= 2
    if count != end:
        raise InputError(f"--tokens {text}: doubling {before[-1]} never gives {end}; write the numbers out")
    return found
