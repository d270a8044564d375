"""Mixed precision as training, evaluation and benchmarks enter it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast to `dtype` on `device`; None switches it off.

    On a CPU, fused softmax attention that will be differentiated runs in float32: torch's backward pass of it in
    bfloat16 is several times slower than in float32, and eats up what bfloat16 gains elsewhere (docs/speed.md).
    """
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        if device.type != "cpu" or dtype is None or torch.compiler.is_compiling():
            yield
        else:
            with _Float32Attention():
                yield


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not torch.is_grad_enabled() or not args:
            return func(*args, **kwargs)
        dtype = args[0].dtype
        with torch.autocast("cpu", enabled=False):
            floats = [value.float() if _is_half(value) else value for value in args]
            named = {name: value.float() if _is_half(value) else value for name, value in kwargs.items()}
            return func(*floats, **named).to(dtype)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
