"""Random features as model state, and drawing all of a model's anew."""

import torch
from torch import nn


class RedrawnAttention(nn.Module):
    """Mixin of attention layers with random features that training may draw anew."""

    def redraw(self, generator: torch.Generator) -> None:
        """Draw from a CPU generator, so that the draw is the same on every device, and change the buffer in place."""
        raise TypeError(f"{type(self).__name__} does not say how its features are drawn")


def redrawn_layers(model: nn.Module) -> dict[str, RedrawnAttention]:
    """The model's layers with random features, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RedrawnAttention)}


def redraw_features(model: nn.Module, seed: int) -> int:
    """Draw the random features of every layer anew, in the order of `named_modules`; returns how many layers there are.

    The draw depends on the seed alone, so every process may do it for itself.
    """
    layers = redrawn_layers(model)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.redraw(generator)
    return len(layers)
