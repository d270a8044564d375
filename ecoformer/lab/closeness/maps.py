"""Whom a token attends to, in one image. Shapes: B batch, H heads, N tokens, S pixels."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ecoformer.fit.compare import layer_calls
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.inputs import takes_sequences
from ecoformer.nn.msa import MSASpec
from ecoformer.report.figures import save_figure


@torch.no_grad()
def layer_weights(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Attention weights (B, H, N, N) of every layer that is replaced, or softmax attention over all tokens, timm's too.

    They are those at the features that the model gives it.
    """
    known = {layer.name: layer.module for layer in attention_layers(model)}
    softmax = MSASpec().is_met_by
    layers = {name: layer for name, layer in known.items() if isinstance(layer, ReplacementAttention) or softmax(layer)}
    found = {}
    for name, (x_BND, _) in layer_calls(model, layers, images).items():
        layer = layers[name]
        if isinstance(layer, ReplacementAttention):
            found[name] = layer.attention_weights(x_BND).cpu()
        else:
            found[name] = SoftmaxTarget.of(layer, name, x_BND).maps().cpu()
    return found


def plot_maps(
    blocks: list[dict[str, Any]], source: nn.Module, model: nn.Module, image_3SS: Tensor, folder: Path
) -> None:
    """One picture a block: whom three tokens attend to, in the original (where it shows weights) and in codes.

    Maps are means over the heads, each scaled to its own range, which its heading states. Tokens that lie on no square
    map (a class token) are left out; of a model of sequences, whose tokens lie on none, there is no picture.
    """
    if takes_sequences(model):
        return
    shown = {"distilled": layer_weights(model, image_3SS[None]), "original": layer_weights(source, image_3SS[None])}
    picture_SS = image_3SS.mean(0).cpu()
    for block in blocks:
        name = block["block"]
        rows = {label: weights[name][0].mean(0) for label, weights in shown.items() if name in weights}
        _plot_block(rows, picture_SS, block, folder / f"{name}.png")


def _plot_block(rows: dict[str, Tensor], picture_SS: Tensor, block: dict[str, Any], out: Path) -> None:
    side = int(block["num_tokens"] ** 0.5)
    extra = block["num_tokens"] - side * side  # class tokens come first
    queries = [(side // 4, side // 4), (side // 2, side // 2), (3 * side // 4, side // 3)]
    figure = Figure(figsize=(8, 2.2 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), 1 + len(queries), squeeze=False)
    for line, (label, weights_NN) in zip(axes, rows.items(), strict=True):
        line[0].imshow(picture_SS, cmap="gray")
        line[0].set_ylabel(label)
        for axis, (y, x) in zip(line[1:], queries, strict=True):
            values = weights_NN[extra + y * side + x, extra:].reshape(side, side)
            axis.imshow(values, cmap="viridis")
            axis.plot(x, y, "r+", markersize=10)
            axis.set_title(f"{values.min():.4f} to {values.max():.4f}", fontsize=7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"{block['block']}: error {block['error']:.3f}, uniform {block['error_uniform']:.3f}", fontsize=9)
    save_figure(figure, out)
