"""factorize(model, spec): replace dense weights by products of two factors, in place; expand(model) goes back."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.model.layers import FilterFn, called_modules, refuse_wrapped, replace_modules
from ecoformer.model.low_rank.compression_report import CompressionReport, LayerCompression
from ecoformer.model.low_rank.layers import LowRank, LowRankConv2d, LowRankLinear
from ecoformer.model.low_rank.spec import LowRankSpec, saves
from ecoformer.nn.bare import does_more
from ecoformer.nn.bert import of_transformers, refused_elsewhere


@torch.inference_mode(False)  # as convert
def factorize(
    model: nn.Module, spec: LowRankSpec, filter_fn: FilterFn | None = None, img_size: Any = None
) -> CompressionReport:
    """Replace Linear layers, 1x1 and patch convolutions of `model` by low-rank ones in place; report what was done.

    The factors are the truncated singular value decomposition of the weight, the best approximation of its rank in
    the Frobenius norm (Eckart and Young, 1936), with the singular values shared evenly between the two, so that
    gradients of both are of one size. A fused qkv is one matrix with one rank. A layer is left alone, and the report
    says why, where its factors would hold no fewer parameters, and where a forward pass does not call it: its owner
    reads the weight, and would have to multiply the factors out. Device, dtype, mode, bias and `requires_grad` carry
    over. Weights on meta tensors get factors on meta tensors. Compress before building an optimizer.

    Args:
        model: any module; converted attention counts like any other layer.
        spec: how the rank of a layer is chosen.
        filter_fn: (module, name) -> bool chooses the layers; by default all but the classifier.
        img_size: of the pass that shows which layers are called, or an example input, as in `ecoformer.energy.count`;
            None: the size that the model is made for. Where no pass can be tried, all are taken for called.
    Raises:
        InputError: a model that is wrapped (`refuse_wrapped`) or compressed already, nothing to compress, a weight with
            NaN or infinity. The model is then unchanged.
    """
    refuse_wrapped(model, "compress")
    held = low_rank_layers(model)
    if held:
        raise InputError(
            f"{len(held)} layers are low rank already ({next(iter(held))}, ...): expand(model) first to compress anew"
        )
    wanted = filter_fn or _all_but_classifier(model)
    users, called = _weight_users(model), called_modules(model, img_size)
    report = CompressionReport(spec, params_before=_count(model))
    built: dict[str, LowRank] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or not wanted(module, name):
            continue
        tied = [user for user in users[id(module.weight)] if user != name]
        reason = f"shares its weight with {tied[0]}" if tied else _unsupported(module)
        if not reason and called is not None and name not in called:
            reason = "is not called as a layer: its owner reads the weight"
        if reason:
            report.skipped[name] = reason
            continue
        with torch.no_grad():
            result = _compress(module, name, spec)
        if isinstance(result, str):
            report.skipped[name] = result
        else:
            built[name], change = result
            report.layers.append(change)
    if not built:
        raise InputError(_nothing(spec, report))
    _seat(model, built)
    report.params_after = _count(model)
    return report


@torch.inference_mode(False)
def expand(model: nn.Module) -> list[str]:
    """Multiply the factors of every low-rank layer out, in place, and return the layers' names.

    The model computes the same as before and no longer knows its ranks. Raises InputError as `refuse_wrapped`.
    """
    refuse_wrapped(model, "expand")
    layers = low_rank_layers(model)
    replace_modules(model, {layer: layer.dense() for layer in layers.values()})
    return list(layers)


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRank)}


def ranks_in(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The ranks of the low-rank layers in a state dict, by the layers' names."""
    names = (key.removesuffix(".down.weight") for key in state if key.endswith(".down.weight"))
    return {name: len(state[f"{name}.down.weight"]) for name in names if f"{name}.up.weight" in state}


def take_ranks(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Make layers of `model` low rank, in place, with the ranks that are given by their names; others are passed over.

    The values of the factors are undefined until a state dict is loaded.
    """
    built: dict[str, LowRank] = {}
    for name, module in model.named_modules():
        if name not in ranks or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        weight, rank = module.weight.flatten(1), ranks[name]
        built[name] = _build(module, weight.new_empty(weight.shape[0], rank), weight.new_empty(rank, weight.shape[1]))
    _seat(model, built)


def _seat(model: nn.Module, built: Mapping[str, LowRank]) -> None:
    """Put each layer where its dense one stands, under all names of it."""
    if any(of_transformers(module) for module in model.modules()):
        for layer in built.values():
            refused_elsewhere(layer)
    replace_modules(model, {model.get_submodule(name): layer for name, layer in built.items()})


def _compress(module: nn.Linear | nn.Conv2d, name: str, spec: LowRankSpec) -> tuple[LowRank, LayerCompression] | str:
    """The low-rank layer and what it costs; as text, why there is none."""
    weight_OI = module.weight.flatten(1)
    rows, columns = weight_OI.shape
    values: Tensor | None = None
    if weight_OI.is_meta:
        rank = spec.rank_of(rows, columns, None)
        up_OR, down_RI = weight_OI.new_empty(rows, rank), weight_OI.new_empty(rank, columns)
    else:
        if not bool(weight_OI.isfinite().all()):
            raise InputError(f"{name}: the weight holds NaN or infinity and has no singular values: repair the model")
        wide_OI = weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float()
        left, values, right = torch.linalg.svd(wide_OI, full_matrices=False)
        rank = spec.rank_of(rows, columns, values)
        root_R = values[:rank].sqrt()
        up_OR, down_RI = left[:, :rank] * root_R, root_R[:, None] * right[:rank]
    if not saves(rank, rows, columns):
        return f"rank {rank} of {rows} x {columns} would hold no fewer parameters"
    layer = _build(module, up_OR, down_RI)
    return layer, LayerCompression(
        name=name,
        rows=rows,
        columns=columns,
        rank=rank,
        params_before=_count(module),
        params_after=_count(layer),
        relative_error=None if values is None else _relative_error(weight_OI, layer),
    )


def _build(module: nn.Linear | nn.Conv2d, up_OR: Tensor, down_RI: Tensor) -> LowRank:
    if isinstance(module, nn.Linear):
        return LowRankLinear(module, up_OR, down_RI)
    return LowRankConv2d(module, up_OR, down_RI)


def _relative_error(weight_OI: Tensor, layer: LowRank) -> float:
    """Of the factors as they are stored, so rounding to half precision counts too."""
    norm = weight_OI.double().norm()
    product = layer.up.weight.flatten(1).double() @ layer.down.weight.flatten(1).double()
    return float((weight_OI.double() - product).norm() / norm) if norm > 0 else 0.0


def _unsupported(module: nn.Linear | nn.Conv2d) -> str:
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"a {type(module).__name__} may use its weight in its own way"
    if does_more(module):
        return "has hooks or a forward of its own, which its factors would not have"
    if isinstance(module, nn.Linear):
        return ""
    if module.groups > 1:
        return f"a convolution in {module.groups} groups"
    pointwise = set(module.kernel_size) == {1}
    if not pointwise and (module.kernel_size != module.stride or set(module.dilation) != {1}):
        return f"a convolution with kernel {module.kernel_size} and stride {module.stride}, whose patches overlap"
    return ""


def _weight_users(model: nn.Module) -> dict[int, list[str]]:
    """The modules that hold each parameter; tied weights have several."""
    users: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)].append(name)
    return users


def _all_but_classifier(model: nn.Module) -> FilterFn:
    get_classifier = getattr(model, "get_classifier", None)
    heads = get_classifier() if callable(get_classifier) else ()
    parts = heads if isinstance(heads, (tuple, list)) else [heads]
    kept = {id(module) for head in parts if isinstance(head, nn.Module) for module in head.modules()}
    return lambda module, name: id(module) not in kept


def _nothing(spec: LowRankSpec, report: CompressionReport) -> str:
    if not report.skipped:
        return "compress: no Linear layer or convolution was chosen: compress a model that has some, or another filter"
    name, reason = next(iter(report.skipped.items()))
    return (
        f"compress.{spec} compresses none of {len(report.skipped)} layers ({name}: {reason}): "
        "lower it, or leave compression out"
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
