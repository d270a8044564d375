"""Random features as model state, and drawing all of a model's anew."""

import torch
from torch import nn


class RedrawnAttention(nn.Module):
    """Mixin of attention layers with random features that training may draw anew."""

    def redraw(self, generator: torch.Generator) -> None:
        """Draw from a CPU generator, so that the draw is the same on every device, and change the buffer in place."""
        raise TypeError(f"{type(self).__name__} does not say how its features are drawn")


def redraw_features(model: nn.Module, seed: int) -> int:
    """Draw the random features of every layer anew, in the order of `modules`; returns how many layers there are.

    The draw depends on the seed alone, so every process may do it for itself.
    """
    layers = [module for module in model.modules() if isinstance(module, RedrawnAttention)]
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        layer.redraw(generator)
    return len(layers)
