"""Key maps: the layouts of published PVTv2, Twins and EcoFormer weights, turned into the keys of our models.

Sources: github.com/whai362/PVT (block1.0.attn.q), github.com/Meituan-AutoML/Twins (blocks.0.0.attn.qkv, as in timm),
github.com/ziplab/EcoFormer (attn.to_qk, attn.fast_attention.ksh.A in either layout), timm (stages.0.blocks.0.attn.q).
Shapes: H heads, K code bits, M anchors, C head channels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.models.weight_files import read_weights

PUBLISHED_IMG_SIZE = 224

# The official PVT layout counts stages from 1 and keeps them apart by name.
_PVT = (
    (re.compile(r"^patch_embed1\."), lambda m: "patch_embed."),
    (re.compile(r"^patch_embed(\d)\."), lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (re.compile(r"^block(\d)\.(\d+)\."), lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (re.compile(r"^norm(\d)\."), lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (re.compile(r"\.dwconv\.dwconv\."), lambda m: ".dwconv."),
)
_HASH = {"A": "A", "mvec": "mean", "anchor": "anchors"}
_HASH_KEY = re.compile(r"^(.*\.attn)\.fast_attention\.ksh\.(A|mvec|anchor)$")
_UNUSED = {
    "fast_attention.projection_matrix": "the published code never uses it",
    "relative_position_index": "timm computes it",
}
# What sizes are read from has so many dimensions, and none of them is 0.
_DIMENSIONS = {
    re.compile(r"(^|\.)norm1\.weight$|\.qkv\.bias$"): 1,
    re.compile(r"^head\.weight$|\.mlp\.fc1\.weight$|\.qkv\.weight$"): 2,
    re.compile(r"^pos_embed$|\.hash\.A$|\.ksh\.A$"): 3,
    re.compile(r"^patch_embed.*\.proj\.weight$|\.attn\.sr\.weight$|\.ksh\.(mvec|anchor)$"): 4,
}
_PVT_LAST_QKV = re.compile(r"^(stages\.(\d+)\.blocks\.\d+\.attn)\.qkv\.(weight|bias)$")


@dataclass
class KeyReport:
    """What became of every key of a file, and which keys of the model it does not fill.

    `renamed` maps a key to its new names (a fused qkv may be cut in two); `dropped` gives the reason.
    """

    used: list[str] = field(default_factory=list)
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the file fills the whole model and nothing in it is left without a place."""
        return not self.missing and not self.unknown

    def lines(self) -> list[str]:
        """One line a key."""
        return [
            *(f"used     {key}" for key in self.used),
            *(f"renamed  {key} -> {', '.join(new)}" for key, new in self.renamed.items()),
            *(f"dropped  {key} ({reason})" for key, reason in self.dropped.items()),
            *(f"added    {key} ({reason})" for key, reason in self.added.items()),
            *(f"unknown  {key} (the model has no such part)" for key in self.unknown),
            *(f"missing  {key}" for key in self.missing),
        ]

    def summary(self) -> str:
        """One line for all keys."""
        others = ("renamed", "dropped", "added", "unknown", "missing")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in others)
        return f"keys: {len(self.used)} used as they are, {counts}"


@dataclass
class ForeignWeights:
    """Weights under our names, the attention that they belong to (as in a config), and the report so far.

    `meta` is what the file says of itself (num_heads, img_size), empty for all but .npz files.
    """

    path: Path
    layout: str  # in words
    attention: dict[str, Any]
    tensors: dict[str, Tensor]
    report: KeyReport
    meta: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # on what was found around the weights

    @property
    def img_size(self) -> int:
        """Pixels that the weights are for: what the file says, else ImageNet's 224."""
        return int(self.meta.get("img_size", PUBLISHED_IMG_SIZE))

    def compare(self, model_state: Mapping[str, Tensor]) -> KeyReport:
        """Complete the report with what `model_state` needs and what it has no place for."""
        self.report.missing = [key for key in model_state if key not in self.tensors]
        targets = {new: old for old, news in self.report.renamed.items() for new in news}
        self.report.unknown = [targets.get(key, key) for key in self.tensors if key not in model_state]
        return self.report


def read_foreign(path: Path, use_ema: bool = True) -> ForeignWeights:
    """Read a file, recognise its layout and rename its keys; `use_ema` as in `read_weights`.

    Raises InputError if it cannot be read or its keys are none of the known layouts.
    """
    file = read_weights(path, use_ema)
    tensors = file.tensors
    layout = _layout(tensors)
    if layout is None:
        raise InputError(
            f"{path} holds none of the known layouts (its first key is {next(iter(tensors))}): give weights of PVTv2, "
            "Twins, ViT or EcoFormer"
        )
    for key, value in tensors.items():
        needed = next((count for pattern, count in _DIMENSIONS.items() if pattern.search(key)), None)
        if needed is not None and (value.ndim != needed or 0 in value.shape):
            raise InputError(
                f"{path}: {key} has the shape {list(value.shape)}, where {needed} sizes above 0 are needed"
            )
    report = KeyReport()
    out: dict[str, Tensor] = {}
    # EcoFormer's models have plain attention in the last stage, which timm's PVTv2 spells q and kv.
    last_stage = _last_stage(tensors) if "PVTv2" in layout else -1
    for key, value in tensors.items():
        reason = next((why for part, why in _UNUSED.items() if part in key), None)
        if reason is not None:
            report.dropped[key] = reason
            continue
        placed = _place(key, value, layout, last_stage)
        out |= placed
        if list(placed) == [key]:
            report.used.append(key)
        else:
            report.renamed[key] = tuple(placed)
    for prefix in [key.removesuffix(".A") for key in out if key.endswith(".attn.hash.A")]:
        # The published files do not say that a hash was fitted; all that were published are.
        for name, value in (("fitted", torch.tensor(True)), ("fit_count", torch.tensor(1))):
            if f"{prefix}.{name}" not in out:
                out[f"{prefix}.{name}"] = value
                report.added[f"{prefix}.{name}"] = "published hash functions are fitted"
    attention = _attention(out, layout)
    if attention["name"] == "ecoformer" and "top_k" in file.meta:
        attention["top_k"] = int(file.meta["top_k"])  # no shape shows it
    return ForeignWeights(path, layout, attention, out, report, file.meta, file.notes)


def same_family(weights: ForeignWeights, model_state: Mapping[str, Tensor]) -> bool:
    """Whether weights are laid out as those of a model are: both PVTv2, both Twins, or both without stages."""
    layout = _layout(model_state)
    return layout is not None and layout.split()[-1] == weights.layout.split()[-1]


def _layout(tensors: Mapping[str, Tensor]) -> str | None:
    if "patch_embed1.proj.weight" in tensors:
        return "official PVTv2"
    if "patch_embeds.0.proj.weight" in tensors:
        return "Twins"  # timm kept the official names
    if "patch_embed.proj.weight" in tensors:
        return "timm's PVTv2" if any(key.startswith("stages.") for key in tensors) else "timm's ViT"
    return None


def _last_stage(tensors: Mapping[str, Tensor]) -> int:
    stages = filter(None, (re.match(r"(block|stages\.)(\d)\.", key) for key in tensors))
    return max((int(stage[2]) - (stage[1] == "block") for stage in stages), default=-1)  # blocks are counted from 1


def _place(key: str, value: Tensor, layout: str, last_stage: int) -> dict[str, Tensor]:
    """The tensors, by their new names, that one tensor becomes."""
    if layout == "official PVTv2":
        for pattern, new in _PVT:
            key = pattern.sub(new, key, count=1)
    hash_part = _HASH_KEY.match(key)
    if hash_part:
        # mvec (1, H, 1, M) and anchor (1, H, M, C) carry axes to broadcast over images and tokens.
        if hash_part[2] == "mvec":
            value = value[0, :, 0]
        elif hash_part[2] == "anchor":
            value = value[0]
        return {f"{hash_part[1]}.hash.{_HASH[hash_part[2]]}": value.contiguous()}
    fused = _PVT_LAST_QKV.match(key)
    if fused and int(fused[2]) == last_stage:
        dim = len(value) // 3
        prefix, kind = fused[1], fused[3]
        return {f"{prefix}.q.{kind}": value[:dim].clone(), f"{prefix}.kv.{kind}": value[dim:].clone()}
    return {key: value}


def _attention(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    codes = [value for key, value in tensors.items() if key.endswith(".attn.hash.A")]
    if codes:
        _, num_bits, num_anchors = codes[0].shape
        # What the published weights were trained with.
        return {"name": "ecoformer", "num_bits": num_bits, "num_anchors": num_anchors, "numerator": "own_token"}
    separate = any(re.search(r"\.attn\.(q|kv|sr)\.weight$", key) for key in tensors)
    if layout == "Twins":
        return {"name": "stock" if separate else "msa"}
    fused = any(key.endswith(".attn.qkv.weight") for key in tensors)
    return {"name": "msa" if "PVTv2" in layout and fused else "stock"}
