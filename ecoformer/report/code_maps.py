"""Whom a token attends to, in one image. Shapes: B batch, H heads, N tokens, S pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ecoformer.fit.compare import eval_mode, layer_calls
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import ReplacementAttention
from ecoformer.report.figures import save_figure

Map = tuple[Tensor, tuple[int, int], str]  # weights (side, side) of one token, where it lies (y, x), a heading


@torch.no_grad()
def layer_weights(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Attention weights (B, H, N, N) of every replaced layer, at the features that the model gives it."""
    found = {layer.name: layer.module for layer in attention_layers(model)}
    layers = {name: module for name, module in found.items() if isinstance(module, ReplacementAttention)}
    with eval_mode(model):
        calls = layer_calls(model, layers, images)
        return {name: layers[name].attention_weights(x_BND) for name, (x_BND, _) in calls.items()}


def draw_maps(
    rows: Mapping[str, Sequence[Map]], picture_SS: Tensor, title: str, out: Path, size: tuple[float, float]
) -> None:
    """The picture and then a row's maps, one row a label; each map on its own scale, its range in its heading."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), 1 + max(map(len, rows.values())), squeeze=False)
    for line, (label, maps) in zip(axes, rows.items(), strict=True):
        line[0].imshow(picture_SS, cmap="gray")
        line[0].set_ylabel(label)
        for axis, (values, (y, x), heading) in zip(line[1:], maps, strict=True):
            axis.imshow(values, cmap="viridis")
            axis.plot(x, y, "r+", markersize=10)
            axis.set_title(f"{heading}{values.min():.4f} to {values.max():.4f}", fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=9)
    save_figure(figure, out)
