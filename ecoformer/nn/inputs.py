"""What goes into a model: an example of it, made from a size, for whatever runs a model without data.

A model of images takes (B, C, H, W). A model of sequences says so by an attribute `vocab_size` and takes ids (B, N),
int64, 0 = padding; `seq_len` is the most tokens that it takes.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ecoformer.errors import InputError, first_line, is_whole

RGB = 3  # channels of an image where nothing says otherwise
Size = int | tuple[int, ...] | list[int]
SizeT = TypeVar("SizeT")
# A size, a tensor, a tuple of positional arguments that holds tensors, or a mapping of keyword arguments.
Input = Size | Tensor | tuple[Any, ...] | Mapping[str, Any]


def takes_sequences(model: nn.Module | str) -> bool:
    """Whether a model, or timm's model of a name, takes sequences of ids, not images."""
    if isinstance(model, nn.Module):
        return isinstance(getattr(model, "vocab_size", None), int)
    known = known_of(model)
    return known is not None and len(known.input_size) == 1


def known_of(name: str) -> Any:
    """timm's description of a model, by its name; None where it has none: models of files and hubs, wrong names."""
    import timm  # not for those who only count: it loads whatever it can log to

    try:
        return timm.get_pretrained_cfg(name) if ":" not in name else None
    except RuntimeError:  # a tag that the model does not have
        return None


def size_of(name: str) -> int:
    """The size that timm's model of that name is made for, in pixels or tokens; 224 where timm does not say."""
    known = known_of(name)
    return 224 if known is None else int(known.input_size[-1])


def in_words(name: str, size: int) -> str:
    """What messages call a size of timm's model of that name: "224 px", "512 tokens"."""
    return f"{size} {'tokens' if takes_sequences(name) else 'px'}"


def own_size(model: nn.Module) -> Size | None:
    """The size that a model is made for: `seq_len` of sequences, (height, width) of images; None: it does not say."""
    img_size: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)
    img_size = img_size or ((getattr(model, "pretrained_cfg", None) or {}).get("input_size") or ())[-2:]
    return input_size(model, img_size) or None


def input_size(model: nn.Module, img_size: SizeT) -> SizeT | int:
    """The size of what a model is run on: `img_size` of images, all its `seq_len` tokens of a model of sequences."""
    return int(model.seq_len) if takes_sequences(model) else img_size  # type: ignore[arg-type]


def first_convolution(model: nn.Module) -> nn.Conv2d | None:
    """The one that images meet, in a model that registers its modules in the order in which it runs them."""
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def in_chans_of(model: nn.Module) -> int:
    """Channels of the images that a model takes: what it says, as timm's do, else those of its first convolution.

    A first convolution may see more than the image has (space to depth), and not every model has one.
    """
    for module in model.modules():
        said = module.in_channels if isinstance(module, nn.Conv2d) else getattr(module, "in_chans", None)
        if isinstance(said, int):
            return said
    return RGB


def example_input(
    model: nn.Module,
    size: Size,
    batch_size: int = 1,
    *,
    in_chans: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A random batch of the kind that `model` takes; on the meta device without values.

    Args:
        size: of images S, (H, W), (C, H, W) or (B, C, H, W); of sequences the number of tokens, none of them padding.
        in_chans: channels of images where `size` does not say; None: those that the model takes.
        seed: of the values, which do not depend on the device.
        dtype: of images.
    Raises:
        InputError: a size of another form.
    """
    generator, meta = torch.Generator().manual_seed(seed), torch.device(device).type == "meta"
    if takes_sequences(model):
        if not is_whole(size) or size < 1:
            raise InputError(f"input={size!r} is no number of tokens: give at least 1, or an example")
        vocab_size: Any = model.vocab_size
        if meta:
            return torch.empty(batch_size, size, dtype=torch.int64, device=device)
        return torch.randint(1, vocab_size, (batch_size, size), generator=generator).to(device)
    shape = _image_shape(size, batch_size, in_chans_of(model) if in_chans is None else in_chans)
    if meta:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randn(shape, generator=generator).to(device, dtype)


def model_arguments(
    model: nn.Module,
    given: Input,
    *,
    in_chans: int | None = None,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of the forward pass for a size or an example, on a device.

    Only shapes and dtypes of examples matter on the meta device; `dtype` is that of their floating-point tensors.
    """
    if isinstance(given, Mapping):
        return (), {key: _moved(x, device, dtype) for key, x in given.items()}
    if isinstance(given, Tensor):
        return (_moved(given, device, dtype),), {}
    if isinstance(given, tuple | list) and not all(is_whole(x) for x in given):
        return tuple(_moved(x, device, dtype) for x in given), {}
    return (example_input(model, given, in_chans=in_chans, device=device, dtype=dtype),), {}


def _moved(value: Any, device: str | torch.device, dtype: torch.dtype | None) -> Any:
    def move(x: Tensor) -> Tensor:
        if x.is_nested or x.layout is not torch.strided:
            raise InputError(
                f"a nested or {str(x.layout).removeprefix('torch.')} tensor is no example: give a dense one"
            )
        target = dtype if dtype is not None and x.is_floating_point() else x.dtype
        if torch.device(device).type == "meta":
            return torch.empty_like(x, device=device, dtype=target)
        return x.detach().to(device=device, dtype=target)

    return tree_map_only(Tensor, move, value)


def _image_shape(size: Any, batch_size: int, in_chans: int) -> tuple[int, ...]:
    sizes = [size] if is_whole(size) else list(size) if isinstance(size, tuple | list) else []
    if not 1 <= len(sizes) <= 4 or not all(is_whole(n) and n >= 1 for n in [*sizes, in_chans]):
        raise InputError(
            f"input={repr(size)[:60]} is no image size: give S, (H, W), (C, H, W) or (B, C, H, W), "
            f"each at least 1 (in_chans={in_chans!r} too), or an example as a tensor"
        )
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    return (*(batch_size, in_chans)[: 4 - len(sizes)], *sizes)


def not_accepted(model: nn.Module, arguments: Any, error: Exception, remedy: str = "") -> InputError:
    """The error for a model that does not run on arguments, of which the first tensor is named."""
    x = next((x for x in tree_leaves(arguments) if isinstance(x, Tensor)), torch.empty(0))
    what = f"{x.shape[-2]}x{x.shape[-1]} images" if x.dim() == 4 else f"an input of shape {tuple(x.shape)}"
    return InputError(f"{type(model).__name__} does not accept {what}: {first_line(error).rstrip('.!')}{remedy}")
