"""Where a model's attention layers are: their names, stages, and how many tokens enter each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerStage
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.projections import READERS

FilterFn = Callable[[nn.Module, str], bool]  # of a module and its name


@dataclass(frozen=True)
class LayerInfo:
    """An attention layer of a model: its name, the module, and its stage, counted from 1.

    `num_prefix` of its tokens (class, registers) stand before those of the image.
    """

    name: str
    module: nn.Module
    stage: int
    num_stages: int
    num_prefix: int = 0

    @property
    def where(self) -> str:
        """How messages name the layer."""
        return f"stage {self.stage} ({self.name})" if self.num_stages > 1 else self.name


def attention_layers(model: nn.Module) -> list[LayerInfo]:
    """Every attention layer that we know, stock or ours, in forward order; empty if there is none.

    Stages are those of PVTv2 and Twins; any other model, a plain ViT say, is one stage.
    """
    stages = list(_stages(model))
    num_prefix = next((m.num_prefix_tokens for m in model.modules() if isinstance(m, VisionTransformer)), 0)
    layers = []
    for name, module in model.named_modules():
        if type(module) in READERS or isinstance(module, ReplacementAttention):
            inside = [number for number, members in enumerate(stages, start=1) if module in members]
            layers.append(LayerInfo(name, module, inside[0] if inside else 1, max(len(stages), 1), num_prefix))
    return layers


def _stages(model: nn.Module) -> Iterator[set[nn.Module]]:
    for module in model.modules():
        if isinstance(module, PyramidVisionTransformerStage):
            yield set(module.modules())
        elif isinstance(module, Twins):
            for blocks in module.blocks:
                yield set(blocks.modules())


def token_counts(model: nn.Module, img_size: int | tuple[int, int]) -> dict[str, int]:
    """Tokens that enter each attention layer at an image size, found by a forward pass on the meta device.

    Nothing is computed or allocated, and the model is left as it was. Raises InputError if it refuses the size.
    Attention itself is passed over, so it may be made for another size.
    """
    counts: dict[str, int] = {}
    with _counting(attention_layers(model), counts):
        require_image_size(model, img_size)
    return counts


def called_modules(model: nn.Module, img_size: Any = None) -> set[str] | None:
    """Names of the modules that a forward pass calls, found on the meta device. Owners of others read their weights.

    Args:
        img_size: pixels, or (height, width); None: the size that timm made the model for.
    Returns:
        None where no pass can be tried: no size is known, or the model takes something else than images.
    """
    defaults = getattr(model, "pretrained_cfg", None) or {}
    size: Any = img_size or getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = size or (defaults.get("input_size") or ())[-2:]
    if not size:
        return None
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs: called.add(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        require_image_size(model, size)
    except (InputError, StopIteration, TypeError):  # no convolution, other arguments
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return called


def require_image_size(model: nn.Module, img_size: int | tuple[int, int]) -> None:
    """Raise InputError if a forward pass on the meta device, attention as it is, refuses images of this size."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta_state = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    stem = next(p for p in model.parameters() if p.ndim == 4)
    images = torch.empty(1, stem.shape[1], height, width, device="meta", dtype=stem.dtype)
    try:
        with torch.no_grad():
            torch.func.functional_call(model, meta_state, (images,))
    except (AssertionError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{type(model).__name__} does not accept {height}x{width} images: {reason}") from error


@contextmanager
def _counting(layers: list[LayerInfo], counts: dict[str, int]) -> Iterator[None]:
    """While it lasts, the layers return their input and note how many tokens it has."""

    def note(name: str) -> Callable[..., Tensor]:
        def forward(x_BND: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            counts[name] = x_BND.shape[1]
            return x_BND

        return forward

    own = [(layer.module, vars(layer.module).get("forward")) for layer in layers]
    try:
        for layer in layers:
            layer.module.forward = note(layer.name)
        yield
    finally:
        for module, forward in own:
            del module.forward
            if forward is not None:
                module.forward = forward
