"""The dispatch mode that sees every operation, and the hooks that tell which module it belongs to.

It runs under inference mode, where composite operations reach a dispatch mode whole. Fused attention is therefore one
call on every device and build, whatever kernel would serve it; composites without a rule are decomposed and their
parts counted. Nothing is counted twice, because a counted operation runs with the mode off.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ecoformer.energy.call import Call, short_name
from ecoformer.energy.rules import RULES, is_known
from ecoformer.energy.values import ValueTracker, output_values
from ecoformer.errors import InputError
from ecoformer.nn.meta import run_on_meta

OnCall = Callable[[Call], None]
OnUnknown = Callable[[str], None]


class OpRecorder(TorchDispatchMode):
    """Runs every operation and hands it to `on_call`, or its name to `on_unknown` if no rule knows it.

    Args:
        on_each: told of every operation first, known or not.
        tracker: learns what values each result can hold.
        originals: the real tensors behind meta parameters and buffers, for models that read a scalar of theirs.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        on_call: OnCall,
        on_unknown: OnUnknown,
        on_each: OnCall,
        tracker: ValueTracker,
        originals: WeakTensorKeyDictionary,
    ) -> None:
        super().__init__()
        self.on_call, self.on_unknown, self.on_each, self.tracker = on_call, on_unknown, on_each, tracker
        self.originals = originals

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # torch.cond, flex_attention: functions inside, and no schema
            self.on_unknown(func.name())
            return func(*args, **kwargs)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return self._read_scalar(args[0])
        if short_name(func) not in RULES:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = run_on_meta(func, args, kwargs)
        call = Call(func, args, kwargs, out, self.tracker)
        self.on_each(call)
        if is_known(call):
            self.on_call(call)
        else:
            self.on_unknown(f"{call.full_name} of complex numbers" if call.is_complex else call.full_name)
        self._track_values(call)
        return out

    def _read_scalar(self, x: Tensor) -> Any:
        original = self.originals.get(x)
        if original is None or original.is_meta:
            raise InputError(
                "the model reads the value of a tensor, and a meta tensor has none: count with device='cpu'"
            )
        return original.item()

    def _track_values(self, call: Call) -> None:
        values = output_values(call)
        for x in call.written:
            self.tracker.written(x)
        for x in call.outputs:
            self.tracker.set(x, values)


class ModuleStack:
    """Which module runs now, by name; listeners learn of each module's start and end while it is the one that runs."""

    def __init__(self) -> None:
        self.running: list[tuple[str, nn.Module]] = []
        self.failed_in = ""  # the innermost module that an exception left
        self.on_enter: Callable[[str, nn.Module, tuple[Any, ...]], None] = lambda *_: None
        self.on_exit: Callable[[nn.Module, tuple[Any, ...], Any], None] = lambda *_: None

    @property
    def name(self) -> str:
        return self.running[-1][0] if self.running else ""

    @property
    def module(self) -> nn.Module | None:
        return self.running[-1][1] if self.running else None

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Hook every module of `model`; a module that is used under two names keeps its first one."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                enter, leave = partial(self._enter, name), partial(self._exit, name)
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                hooks.enter_context(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
            yield

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.running.append((name, module))
        self.failed_in = ""  # an error before was caught
        self.on_enter(name, module, (*args, *kwargs.values()))

    def _exit(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        assert self.name == name, f"module {name} ended inside {self.name}"
        if out is None:  # always_call: the forward raised
            self.failed_in = self.failed_in or name
        else:
            self.on_exit(module, (*args, *kwargs.values()), out)
        self.running.pop()


@contextmanager
def plain_inference() -> Iterator[None]:
    """Inference mode in plain eager execution.

    Without the fused transformer-encoder path and without compiled parts, both of which hide operations.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"), torch.inference_mode():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
