"""Where a model's attention layers are: their names, stages, and how many tokens enter each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ecoformer.nn.readers  # noqa: F401  so that what it reads is known
from ecoformer.errors import InputError, require
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.bert import read_kin, with_key_masks
from ecoformer.nn.inputs import Input, first_convolution, model_arguments, not_accepted, own_size
from ecoformer.nn.layout import prefix_tokens, stages_of
from ecoformer.nn.meta import RememberedMeta, evaluated_unchanged
from ecoformer.nn.projections import READERS, call_of, learn_classes

FilterFn = Callable[[nn.Module, str], bool]  # of a module and its name
# By name: the modules of some take a second to load.
WRAPPERS = {"DataParallel", "DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel", "OptimizedModule"}


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

    Stages and prefix tokens are those that `nn.layout` knows; a plain ViT is one stage.
    """
    require(model, nn.Module, "Module: give a model")
    read_kin(model)
    learn_classes(model)
    stages, num_prefix = stages_of(model), prefix_tokens(model)
    layers = []
    for name, module in model.named_modules():
        if type(module) in READERS or isinstance(module, ReplacementAttention):
            inside = [number for number, members in enumerate(stages, start=1) if module in members]
            layers.append(LayerInfo(name, module, inside[0] if inside else 1, max(len(stages), 1), num_prefix))
    return layers


def token_counts(model: nn.Module, input: Input) -> dict[str, int]:
    """Tokens that enter each attention layer for an input, found by a forward pass on the meta device.

    Nothing is computed or allocated, and the model is left as it was. Raises InputError if it refuses the input.
    Attention itself is passed over, so it may be made for another size.

    Args:
        input: a size or an example, as in `ecoformer.energy.count`.
    """
    counts: dict[str, int] = {}
    with _counting(attention_layers(model), counts), with_key_masks(model):
        require_input(model, input)
    return counts


def refuse_wrapped(model: nn.Module, verb: str) -> None:
    """Raise InputError for a model with DistributedDataParallel and the like, or torch.compile, around it or a part.

    The wrapper knows the parameters that it was given: it would not average, shard or trace those that are new. `verb`
    is what was to be done to the model.
    """
    for name, module in model.named_modules():
        if wrapper := next((base.__name__ for base in type(module).__mro__ if base.__name__ in WRAPPERS), None):
            raise InputError(
                f"{wrapper} wraps {name or 'the model'}: {verb} the model that it was made from, and wrap the result"
            )


def replace_modules(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> None:
    """Put each new module in its old one's place, under all names where blocks share it."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in made:
            model.set_submodule(name, made[module])


def called_modules(model: nn.Module, input: Input | None = None) -> set[str] | None:
    """Names of the modules that a forward pass calls, found on the meta device. Owners of others read their weights.

    Args:
        input: a size or an example; None: the size that the model is made for.
    Returns:
        None where no pass can be tried: no size is known, or the model takes something else.
    """
    input = own_size(model) if input is None else input
    if input is None:
        return None
    called: set[str] = set()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
        try:
            require_input(model, input)
        except InputError:
            return None
    return called


def require_input(model: nn.Module, input: Input) -> None:
    """Raise InputError if a forward pass on the meta device, attention as it is, refuses a size or an example."""
    state = [*model.named_parameters(), *model.named_buffers()]
    meta_state = {name: torch.empty_like(value, device="meta") for name, value in state}
    stem = first_convolution(model)
    args, kwargs = model_arguments(model, input, dtype=None if stem is None else stem.weight.dtype)
    try:
        with torch.no_grad(), evaluated_unchanged(model), RememberedMeta():
            torch.func.functional_call(model, meta_state, args, kwargs)
    except InputError:
        raise
    except Exception as error:
        raise not_accepted(model, [args, kwargs], error) from error


@contextmanager
def _counting(layers: list[LayerInfo], counts: dict[str, int]) -> Iterator[None]:
    """While it lasts, the layers return their input and note how many tokens it has."""

    def note(layer: LayerInfo) -> Callable[..., Any]:
        def forward(x_BND: Tensor, *args: Any, **kwargs: Any) -> Any:
            call = call_of(layer.module)
            counts[layer.name] = call.tokens(x_BND)
            return (x_BND, None) if call.is_pair else x_BND

        return forward

    own = [(layer.module, vars(layer.module).get("forward")) for layer in layers]
    try:
        for layer in layers:
            layer.module.forward = note(layer)
        yield
    finally:
        for module, forward in own:
            del module.forward
            if forward is not None:
                module.forward = forward
