"""Operations on meta tensors, remembered: many of PyTorch's meta kernels are Python, and models repeat themselves.

What a pass gives is the same as without.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OF_EVERY_MODULE = vars(nn.Module()).keys()
SCALARS = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class _Meta:
    """All that a plain meta tensor is."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Unlike(Exception):
    """A value that is more than a description of it would say."""


@contextmanager
def evaluated_unchanged(model: nn.Module, on_meta: bool = True) -> Iterator[None]:
    """Evaluation mode; afterwards every attribute, parameter and buffer is what it was.

    A forward on meta tensors may cache some in its modules, and `functional_call` leaves them in modules that stand in
    two places. Dicts, lists and sets that are attributes get their content back, those within others do not; `on_meta`
    dicts say meanwhile that they hold no tensors, which are caches of passes elsewhere, or constants.
    """
    stores = ("_parameters", "_buffers", "_modules")
    saved = [(vars(m), dict(vars(m)), [dict(vars(m)[store]) for store in stores]) for m in model.modules()]
    containers: dict[int, tuple[Any, list[Any]]] = {}
    unsaid: dict[int, _Unsaid] = {}
    for module in model.modules():
        module.training = False
        for name, own in list(vars(module).items()):
            if name in OF_EVERY_MODULE or not isinstance(own, dict | list | set):
                continue
            if on_meta and type(own) is dict and any(isinstance(x, Tensor) and not x.is_meta for x in own.values()):
                vars(module)[name] = unsaid.setdefault(id(own), _Unsaid(own))
            else:
                containers[id(own)] = own, _content(own)
    try:
        yield
    finally:
        for current, attributes, contents in saved:
            current.clear()
            current.update(attributes)
            for store, content in zip(stores, contents, strict=True):
                current[store].clear()
                current[store].update(content)
        for own, before in containers.values():
            _refill(own, before)


class _Unsaid(dict[Any, Any]):
    """What a dict holds but for its tensors; they are there for code that does not ask whether they are."""

    def __init__(self, whole: dict[Any, Any]) -> None:
        super().__init__({key: value for key, value in whole.items() if not isinstance(value, Tensor)})
        self.whole = whole

    def __missing__(self, key: Any) -> Any:
        return self.whole[key]


def _content(own: Any) -> list[Any]:
    return [*own.keys(), *own.values()] if isinstance(own, dict) else list(own)


def _refill(own: Any, content: list[Any]) -> None:
    now = _content(own)
    if len(now) == len(content) and all(map(operator.is_, now, content)):
        return  # some refuse to be changed
    own.clear()
    if isinstance(own, dict):
        for key, value in zip(content[: len(content) // 2], content[len(content) // 2 :], strict=True):
            own[key] = value  # a Counter's update would add
    elif isinstance(own, list):
        own.extend(content)
    else:
        own.update(content)


class RememberedMeta(TorchDispatchMode):
    """While it lasts, every operation runs as `run_on_meta` does."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run_on_meta(func, args, kwargs or {})


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) of an operation; where it makes new meta tensors of others, from memory the second time."""
    if _makes_new_tensors(func) and any(isinstance(x, Tensor) for x in args):
        try:
            result = _result(func, _described([args, list(kwargs.items())]), torch.get_default_dtype())
        except _Unlike:
            result = None
        if result is not None:
            return _made(result)
    return func(*args, **kwargs)


@lru_cache(maxsize=4096)
def _result(func: Any, described: Any, default_dtype: torch.dtype) -> Any:
    """The description of what an operation gives; None if that is one of its arguments, or lies elsewhere."""
    args, kwargs = _made(described)
    out = func(*args, **dict(kwargs))
    given = {x.untyped_storage()._cdata for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)}
    try:
        description = _described(out)
    except _Unlike:
        return None
    shares = any(x.untyped_storage()._cdata in given for x in tree_leaves(out) if isinstance(x, Tensor))
    return None if shares else description


@cache
def _makes_new_tensors(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is not None and all(part.alias_info is None for part in [*schema.arguments, *schema.returns])


def _described(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        if not tree.is_meta or tree.layout is not torch.strided or tree.is_conj() or tree.is_neg():
            raise _Unlike
        return _Meta(tree.shape, tree.stride(), tree.dtype)
    if isinstance(tree, list | tuple):
        return list if isinstance(tree, list) else tuple, tuple(_described(x) for x in tree)
    if isinstance(tree, SCALARS):
        return type(tree), tree  # 1, 1.0 and True are equal, and not the same
    raise _Unlike


def _made(described: Any) -> Any:
    if isinstance(described, _Meta):
        return torch.empty_strided(described.shape, described.stride, dtype=described.dtype, device="meta")
    kind, content = described
    return kind(_made(x) for x in content) if kind in (list, tuple) else content
