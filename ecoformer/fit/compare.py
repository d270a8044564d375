"""How close a layer comes to the attention that it stands for: the one measure of it, and the floors beside it.

Shapes: B batch, H heads, N tokens, D model channels.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.fit.target import AttentionTarget
from ecoformer.nn.base import ReplacementAttention, before_projection, called_with, given
from ecoformer.nn.heads import real_tokens, without_padding
from ecoformer.ops.closeness import relative_error, row_correlation, strongest_key_recall

NUM_KEYS = 8  # strongest keys of a token that a good hash finds

Attending = nn.Module | Callable[..., Tensor]


def divergence(found_BK: Tensor, target_BK: Tensor) -> Tensor:
    """KL(target || found) in nats, a mean over samples, of log-probabilities (B, K) or (B, K, Y, X).

    Of a map of classes every place is a sample.
    """
    return F.kl_div(found_BK, target_BK, reduction="none", log_target=True).sum(dim=1).mean()


def output_closeness(found_BK: Tensor, target_BK: Tensor) -> tuple[float, float]:
    """(divergence, agreement) of two models' log-probabilities of the classes, as `divergence` takes them.

    Agreement is the share of samples of which both models think the same class the likeliest.
    """
    agreement = (found_BK.argmax(dim=1) == target_BK.argmax(dim=1)).float().mean()
    return float(divergence(found_BK, target_BK)), float(agreement)


@dataclass(frozen=True)
class Closeness:
    """A layer against its target.

    Errors are relative L2 of the attention output before the output projection: of the layer, of random hash functions,
    of uniform attention (the mean of all values). Recall is the share of each token's strongest keys that is found,
    chance what constant weights find; correlation is that of the weights of a token's keys, 0 for constant ones. None:
    not asked for or not known, or there are no weights to compare.
    """

    attention_error: float | None = None
    uniform_error: float | None = None
    random_error: float | None = None
    recall: float | None = None
    random_recall: float | None = None
    chance_recall: float | None = None
    correlation: float | None = None
    random_correlation: float | None = None


@torch.no_grad()
def compare(
    layer: Attending,
    target: AttentionTarget,
    *inputs: Any,
    mask_BN: Tensor | None = None,
    random: Attending | None = None,
    map_images: int = 0,
    map_entries: int | None = None,
) -> Closeness:
    """Measure `layer`, and `random` as its floor, against `target` on what both are called with.

    Args:
        layer: a replacement attention, any layer with an output projection `proj`, or a function to the attention
            output. Only the first kind has weights to compare.
        mask_BN: True where a token takes part; only these are compared. Functions do not get it: give it to them as an
            input.
        target: of these inputs, its outputs in the shape of the layer's.
        map_images: how many images recall and correlation, which need N x N weights, are measured on.
        map_entries: maps of more entries, over all heads, are not formed; None: no limit.
    """
    x_BND = inputs[0]
    target_out, uniform_out = (without_padding(out, mask_BN) for out in (target.output, target.uniform))
    counts = [x_BND.shape[1]] * len(x_BND) if mask_BN is None else mask_BN.sum(dim=1).tolist()
    chances = [strongest_keys(count) / count for count in counts[:map_images]]

    def maps(of: Attending | None) -> tuple[float | None, float | None]:
        if not map_images or not isinstance(of, ReplacementAttention) or not of.shows_weights:
            return None, None
        if map_entries is not None and of.num_heads * x_BND.shape[1] ** 2 > map_entries:
            return None, None
        return _compare_maps(of, target, x_BND[:map_images], mask_BN)

    def output(of: Attending) -> Tensor:
        return without_padding(_output(of, inputs, mask_BN), mask_BN)

    recall, correlation = maps(layer)
    random_recall, random_correlation = maps(random)
    return Closeness(
        attention_error=relative_error(output(layer), target_out),
        uniform_error=relative_error(uniform_out, target_out),
        random_error=None if random is None else relative_error(output(random), target_out),
        recall=recall,
        random_recall=random_recall,
        chance_recall=sum(chances) / len(chances) if chances else None,
        correlation=correlation,
        random_correlation=random_correlation,
    )


def strongest_keys(num_tokens: int) -> int:
    """How many of a token's keys count as its strongest: NUM_KEYS, but no more than half of all."""
    return max(1, min(NUM_KEYS, num_tokens // 2))


def _output(layer: Attending, inputs: tuple[Any, ...], mask_BN: Tensor | None) -> Tensor:
    if isinstance(layer, ReplacementAttention):
        return layer.attention_output(*inputs, **given(mask_BN=mask_BN))
    if isinstance(layer, nn.Module):
        return before_projection(layer, *inputs, **given(mask_BN=mask_BN))
    return layer(*inputs)


def _compare_maps(
    layer: ReplacementAttention, target: AttentionTarget, x_BND: Tensor, mask_BN: Tensor | None
) -> tuple[float | None, float | None]:
    """Recall and correlation, one image and head at a time, of its real tokens; None where the target has no map."""
    if target.softmax is None:
        return None, None
    recalls, correlations = [], []
    for image in range(len(x_BND)):
        own = slice(image, image + 1)
        x_1ND = real_tokens(x_BND[own], None if mask_BN is None else mask_BN[own])
        keys = strongest_keys(x_1ND.shape[1])
        weights_1HNN = layer.attention_weights(x_1ND)
        for head in range(layer.num_heads):
            pair = weights_1HNN[:, head : head + 1], target.softmax.weights(image, head)
            recalls.append(strongest_key_recall(*pair, keys))
            correlations.append(row_correlation(*pair))
    return sum(recalls) / len(recalls), sum(correlations) / len(correlations)


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def layer_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """What each of the named layers is called with when `model` runs on the images in evaluation mode, in order.

    Its tokens, and of `feat_size` and `mask_BN` those that it is given.
    """
    calls: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def note(name: str) -> Any:
        return lambda module, args, kwargs: calls.update({name: called_with(args, kwargs)})

    with eval_mode(model), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(note(name), with_kwargs=True))
        model(images)
    return calls
