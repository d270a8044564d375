"""What the hash codes do: whom a token attends to in MSA, and whose codes are similar, for one image.

Shapes: H heads, N tokens, K code bits, S pixels.
"""

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


def plot_code_maps(msa: nn.Module, ecoformer: nn.Module, image_3SS: Tensor, out: Path, title: str) -> None:
    """For each block that both models replaced: where one token looks, by softmax attention and by codes.

    The query is the image's brightest token. Maps show the mean over heads of the weights of that row, each scaled to
    its own range, with the range in the title: the ranges themselves differ, because codes give nearly flat weights.
    """
    softmax, codes = (layer_weights(model, image_3SS[None]) for model in (msa, ecoformer))
    picture, rows = image_3SS.mean(0), {}
    for label, weights in (("MSA attention", softmax), ("code similarity", codes)):
        means = {name.removesuffix(".attn"): weights[name][0].mean(0) for name in softmax if name in codes}
        rows[label] = [(*_of_brightest(picture, mean_NN), f"{name}\n") for name, mean_NN in means.items()]
    draw_maps(rows, picture, title, out, (1.9 * len(means) + 1.9, 4.4))


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


def _of_brightest(picture_SS: Tensor, weights_NN: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The map of the image's brightest token, and where that lies."""
    side = int(weights_NN.shape[0] ** 0.5)
    query = int(torch.nn.functional.adaptive_avg_pool2d(picture_SS[None, None], side).argmax())
    return weights_NN[query].reshape(side, side), (query // side, query % side)
