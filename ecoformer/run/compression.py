"""Compression with the ledger before and after it, in both conventions."""

from typing import Any

from torch import nn

from ecoformer.energy.conventions import CONVENTIONS
from ecoformer.energy.summary import summarize
from ecoformer.model.layers import FilterFn
from ecoformer.model.low_rank import CompressionReport, LowRankSpec, factorize
from ecoformer.nn.inputs import Size


def factorize_and_count(
    model: nn.Module,
    spec: LowRankSpec,
    filter_fn: FilterFn | None = None,
    *,
    img_size: Size,
    profile: str = "45nm_fp32",
) -> CompressionReport:
    """`factorize`, and in its report the figures of one image before and after. Raises InputError as both do."""
    before = _figures(model, img_size, profile)
    report = factorize(model, spec, filter_fn, img_size)
    after = _figures(model, img_size, profile)
    report.ledger = {name: {"before": before[name], "after": after[name]} for name in CONVENTIONS}
    return report


def _figures(model: nn.Module, img_size: Size, profile: str) -> dict[str, dict[str, Any]]:
    return {name: summarize(model, img_size, convention=name, profile=profile) for name in CONVENTIONS}
