"""count(model, input): run a model once on meta tensors and write down what it does."""

import re
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ecoformer.energy.conventions import CONVENTIONS, AuditedBook, Book, CountingDefect, PaperBook
from ecoformer.energy.dataflow import DataFlow
from ecoformer.energy.ledger import Ledger
from ecoformer.energy.recorder import ModuleStack, OpRecorder, plain_inference
from ecoformer.energy.values import ValueTracker
from ecoformer.errors import InputError, first_line, require
from ecoformer.nn.inputs import Input, first_convolution, model_arguments
from ecoformer.nn.meta import evaluated_unchanged


class UncountedOperationError(InputError):
    """An operation without a rule, in strict mode. `operation` is its name."""

    def __init__(self, operation: str, module: str) -> None:
        self.operation = operation
        place = f"module {module!r}" if module else "the model itself"
        super().__init__(
            f"operation {operation} in {place} has no counting rule: add one with ecoformer.energy.rule, "
            "or count with strict=False to have it listed as uncounted"
        )


def count(
    model: nn.Module,
    input: Input,
    *,
    convention: str = "audited",
    strict: bool = True,
    in_chans: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "meta",
) -> Ledger:
    """Count one forward pass of any model in evaluation mode.

    By default nothing is allocated: parameters, buffers and input are replaced by meta tensors for the pass. The
    model's tensors, mode and hooks are as before when it returns.

    Args:
        model: any module; a compiled or data-parallel model is counted as the module in it.
        input: an image size S, (H, W), (C, H, W) or (B, C, H, W), or the tokens of a model of sequences; or an
            example: a tensor, a tuple of positional arguments that holds tensors, or a mapping of keyword arguments.
            Only shapes and dtypes of examples matter on meta tensors.
        convention: "audited" counts every operation by kind, "paper" follows the published accounting.
        strict: raise at the first operation without a rule; otherwise it is listed in `Ledger.uncounted`.
        in_chans: channels of an image given by size alone; None: those that the model says, or its first convolution.
        dtype: precision of parameters and floating-point inputs; None keeps the model's own, or else the input's.
        device: "meta", or a real device for models whose control flow reads tensor values.
    Raises:
        InputError: no module, a lazy one that has not run yet, unknown convention, an input that the model refuses, or
            (strict) an unknown operation.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention={convention!r} does not exist: choose one of {', '.join(CONVENTIONS)}")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    require(model, nn.Module, "torch.nn.Module: give an instance of one")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} holds TorchScript, whose parts cannot be told apart: count the original"
        )
    device = _usable(device)
    require(dtype, torch.dtype | None, "torch.dtype: give torch.float16, for example", "dtype=")
    dtype = dtype or _float_dtype(model)
    stack = ModuleStack()
    flow = DataFlow()
    book: Book = (PaperBook if convention == "paper" else AuditedBook)(stack, flow)
    uncounted: dict[str, None] = {}

    def on_unknown(operation: str) -> None:
        if strict:
            raise UncountedOperationError(operation, stack.name)
        uncounted[operation] = None

    def on_enter(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if device.type == "meta" and any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise InputError(
                "autocast does not reach meta tensors: give dtype=torch.bfloat16, or count with device='cpu'"
            )
        book.on_enter(name, module, inputs)

    with ExitStack() as scope:
        scope.enter_context(evaluated_unchanged(model, on_meta=device.type == "meta"))
        scope.enter_context(plain_inference())
        substitutes, originals = _substitutes(model, device, dtype)
        args, kwargs = model_arguments(model, input, in_chans=in_chans, device=device, dtype=dtype)
        given = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
        shape = next((tuple(x.shape) for x in given), ())
        dtype = dtype or next((x.dtype for x in given if x.is_floating_point()), torch.get_default_dtype())
        for x in given:
            flow.add_input(x)
        scope.enter_context(torch.device(device))
        scope.enter_context(stack.watch(model))
        stack.on_enter, stack.on_exit = on_enter, book.on_exit
        tracker = ValueTracker(enabled=convention == "audited")
        scope.enter_context(
            OpRecorder(book.on_call, on_unknown, lambda call: flow.record(call, stack.name), tracker, originals)
        )
        try:
            functional_call(model, substitutes, args, kwargs, strict=False)
        except (InputError, CountingDefect):
            raise
        except Exception as error:
            place = f" in {stack.failed_in!r}" if stack.failed_in else ""
            reason = first_line(error)
            if isinstance(error, KeyError | AttributeError):
                reason = f"{type(error).__name__}: {reason}"
            if device.type == "meta" and re.search(r"\bmeta\b|fake|scalarType", reason, re.IGNORECASE):
                reason = f"{reason.partition('. ')[0].rstrip('.!')}: count with device='cpu'"
            elif all(isinstance(x, int) for x in tree_leaves(input)):
                stem = first_convolution(model)
                if stem is None:
                    reason += f"; {input} is read as an image size: give an example of what the model takes"
                elif model.get_submodule(stack.failed_in) is stem and shape[1] != stem.in_channels:
                    reason += f": it takes {stem.in_channels}, give in_chans={stem.in_channels} with a size (H, W)"
            raise InputError(
                f"{type(model).__name__} does not run on an input of shape {shape}{place}: {reason}"
            ) from error
    entries = book.entries()
    return Ledger(
        convention=convention,
        params=sum(p.numel() for p in model.parameters()),
        input_shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        entries=entries,
        uncounted=list(uncounted),
        has_attention=book.has_attention,
    )


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InputError(f"device={str(device)!r} cannot be used: {first_line(error)}") from error


def _float_dtype(model: nn.Module) -> torch.dtype | None:
    numbers = chain(model.parameters(), model.buffers())
    return next((x.dtype for x in numbers if x.is_floating_point()), None)


def _substitutes(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], WeakTensorKeyDictionary]:
    """Copies of all parameters and buffers on `device`, and the originals behind them.

    Buffers keep their precision unless the whole model changes it, as `model.to(dtype)` would do.
    """
    recast = dtype != _float_dtype(model)
    originals = WeakTensorKeyDictionary()
    substitutes = {}
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(x):
            raise InputError(f"{name} is lazy, its size is that of a first input: call the model on an example once")
        if x.layout is not torch.strided:
            raise InputError(f"{name} is {str(x.layout).removeprefix('torch.')}, whose work has no rule: make it dense")
        if type(x.data).__name__ == "DTensor":  # by name: its module takes a second to load
            raise InputError(f"{name} is shared among processes: count the model before it is sharded")
        if x.is_meta and device.type != "meta":
            raise InputError(f"{name} is on meta, without values for device={str(device)!r}: build the model elsewhere")
        target = dtype if recast and x.is_floating_point() else x.dtype
        if device.type == "meta":
            copy = torch.empty_like(x, device=device, dtype=target)
        else:
            copy = x.detach().to(device=device, dtype=target, copy=True)
        originals[copy] = x
        substitutes[name] = copy
    return substitutes, originals
