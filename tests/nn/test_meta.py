"""Operations on meta tensors give from memory what they gave the first time, and what is no such operation runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.energy import count, recorder
from ecoformer.nn import meta
from ecoformer.nn.meta import RememberedMeta

X = (2, 6, 4, 5)
WAYS: dict[str, Callable[[Tensor], Any]] = {
    "layer_norm": lambda x: F.layer_norm(x, (5,)),
    "whole number": lambda x: x * 2,
    "number": lambda x: x * 2.0,
    "truth": lambda x: x * True,
    "two results": lambda x: x.float().max(dim=1),
    "many results": lambda x: torch.unbind(x),
    "convolution": lambda x: F.conv2d(x.float(), torch.empty(6, 6, 3, 3, device="meta"), stride=2),
    "view": lambda x: x.flatten(1),
    "list": lambda x: torch.cat([x, x]),
    "in place": lambda x: x.add_(1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", WAYS)
def test_what_comes_from_memory_is_what_came_first(way: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    if way == "layer_norm" and not dtype.is_floating_point:
        pytest.skip("layer_norm takes no whole numbers")
    x = torch.empty(X, device="meta", dtype=dtype).to(memory_format=layout)
    with torch.no_grad():
        plain = WAYS[way](x)
        with RememberedMeta():
            again = [WAYS[way](x) for _ in range(2)]
    for found in again:
        pairs = zip(*([y] if isinstance(y, Tensor) else y for y in (plain, found)), strict=True)
        for old, new in pairs:
            assert (new.shape, new.stride(), new.dtype, new.device) == (old.shape, old.stride(), old.dtype, old.device)


def test_an_operation_runs_once_for_equal_arguments() -> None:
    meta._result.cache_clear()
    with torch.no_grad(), RememberedMeta():
        for size in (3, 3, 4):
            torch.empty(size, device="meta").exp()
    assert (meta._result.cache_info().hits, meta._result.cache_info().misses) == (1, 2)


def test_what_returns_its_argument_still_does() -> None:
    x = torch.empty(X, device="meta")
    with torch.inference_mode(), RememberedMeta():
        assert all(F.dropout(x, 0.5, training=False) is x for _ in range(2))


def test_real_tensors_are_computed_and_draw_as_ever() -> None:
    x = torch.ones(1000)
    torch.manual_seed(1)
    expected = [torch.rand_like(x), torch.rand(3), x.exp()]
    torch.manual_seed(1)
    with torch.no_grad(), RememberedMeta():
        found = [torch.rand_like(x), torch.rand(3), x.exp()]
    for old, new in zip(expected, found, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "twins_svt_small", "vit_tiny_patch16_224"])
def test_a_ledger_is_the_same_with_and_without_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    ledgers = [count(model, 224).to_json() for _ in range(2)]
    monkeypatch.setattr(recorder, "run_on_meta", lambda func, args, kwargs: func(*args, **kwargs))
    assert ledgers == [count(model, 224).to_json()] * 2
