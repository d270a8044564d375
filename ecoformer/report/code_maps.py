"""What the hash codes do: whom a token attends to in MSA, and whose codes are similar, for one image.

Shapes: H heads, N tokens, K code bits, S pixels.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ecoformer.fit.compare import eval_mode, layer_calls
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import ReplacementAttention
from ecoformer.report.figures import save_figure


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
    names = [name for name in softmax if name in codes]
    figure = Figure(figsize=(1.9 * len(names) + 1.9, 4.4), layout="constrained")
    axes = figure.subplots(2, len(names) + 1, squeeze=False)
    picture = image_3SS.mean(0)
    for row, (label, weights) in enumerate((("MSA attention", softmax), ("code similarity", codes))):
        axes[row][0].imshow(picture, cmap="gray")
        axes[row][0].set_ylabel(label)
        for column, name in enumerate(names, start=1):
            mean_NN = weights[name][0].mean(0)
            side = int(mean_NN.shape[0] ** 0.5)
            query = _brightest_token(picture, side)
            values = mean_NN[query].reshape(side, side)
            axis = axes[row][column]
            axis.imshow(values, cmap="viridis")
            axis.plot(query % side, query // side, "r+", markersize=10)
            axis.set_title(f"{name.removesuffix('.attn')}\n{values.min():.4f} to {values.max():.4f}", fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=9)
    save_figure(figure, out)


def _brightest_token(picture_SS: Tensor, side: int) -> int:
    coarse = torch.nn.functional.adaptive_avg_pool2d(picture_SS[None, None], side)
    return int(coarse.argmax())
