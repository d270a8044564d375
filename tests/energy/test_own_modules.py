"""What meets somebody who counts a module of her own: what is no module, what has no size yet, sizes, her own rules."""

import math
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ecoformer import InputError
from ecoformer.energy import UncountedOperationError, count, rule, rules
from ecoformer.energy.kinds import counts


class Attention(nn.Module):
    """Softmax attention over (B, N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x_BND: Tensor) -> Tensor:
        _batch, _tokens, width = x_BND.shape
        query, key, value = self.qkv(x_BND).split(width, dim=-1)
        return (query @ key.transpose(1, 2)).softmax(dim=-1) @ value


class Fourier(nn.Module):
    def forward(self, x_BCYX: Tensor) -> Tensor:
        return torch.fft.fft2(x_BCYX).real


@pytest.mark.parametrize("given", ["resnet18", nn.Linear, lambda x: x], ids=["name", "class", "function"])
def test_what_is_no_module_is_one_line(given: object) -> None:
    with pytest.raises(InputError, match=r"is no torch\.nn\.Module: give an instance of one$"):
        count(given, torch.ones(1, 4))  # type: ignore[arg-type]


def test_a_lazy_module_must_have_run_once() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), torch.ones(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"1\.weight is lazy.*: call the model on an example once$"):
        count(model, images)
    model(images)
    assert count(model, images).muls == 3 * 8 * 8 * 4


def test_a_size_for_a_model_of_tokens_is_told_what_it_was_taken_for() -> None:
    with pytest.raises(InputError, match=r"; \(196, 64\) is read as an image size: give an example of what") as caught:
        count(Attention(), (196, 64))
    assert "\n" not in str(caught.value)
    assert count(Attention(), torch.ones(1, 196, 64)).muls > 0
    for model, given in ((Attention(), torch.ones(1, 8)), (timm.create_model("vit_tiny_patch16_224"), 100)):
        with pytest.raises(InputError) as caught:
            count(model, given)
        assert "is read as" not in str(caught.value)


def test_a_rule_of_ones_own_for_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds for them where it says so; else the message says that they are what has no rule."""
    images, name = torch.ones(2, 3, 8, 16), "_fft_c2c"

    def butterflies(call: object) -> Counter[str]:
        return counts(fma=int(5 * 2 * 3 * 8 * 16 * math.log2(8 * 16)))

    monkeypatch.setitem(rules.RULES, name, butterflies)
    with pytest.raises(UncountedOperationError, match=r"_fft_c2c\.default of complex numbers in the model itself"):
        count(Fourier(), images)
    del rules.RULES[name]
    monkeypatch.setitem(rules.COMPLEX, name, 0)  # taken away again afterwards
    rule(name, complex_times=1)(butterflies)
    assert count(Fourier(), images).counts["fma"] == 5 * 768 * 7


class SpaceToDepth(nn.Module):
    """Its first convolution sees 16 numbers of every channel of the image."""

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.stem = nn.Conv2d(16 * in_chans, 8, 1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.stem(nn.functional.pixel_unshuffle(x_BCYX, 4))


def test_channels_are_those_that_the_model_says() -> None:
    assert count(SpaceToDepth(), 32).input_shape == (1, 3, 32, 32)
    assert count(nn.Sequential(SpaceToDepth(2)), 32).input_shape == (1, 2, 32, 32)
    assert count(timm.create_model("tresnet_m", in_chans=1), 64).input_shape == (1, 1, 64, 64)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_precision_is_that_of_buffers_and_else_of_the_input() -> None:
    ones = torch.ones(2, 4)
    for model, given in ((nn.SiLU(), ones.half()), (Scaled(), ones), (Scaled(), ones.half())):
        ledger = count(model, given)
        assert (ledger.dtype, ledger.counts["written_bytes"]) == ("float16", 16)
    assert count(nn.SiLU(), ones).counts["written_bytes"] == 32
    assert count(Scaled(), ones, dtype=torch.float32).counts["written_bytes"] == 32


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x)


def test_autocast_is_not_passed_over() -> None:
    ones = torch.ones(2, 4)
    with pytest.raises(InputError, match=r"^autocast does not reach meta tensors: .*device='cpu'$"):
        count(Autocast(), ones)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match=r"^autocast"):
        count(nn.Linear(4, 4), ones)
    entries = count(Autocast(), ones, device="cpu").entries
    assert {entry.bits for entry in entries if entry.counts["fma"]} == {16}


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.metadata  # no word on meta tensors


class Dividing(nn.Module):
    """An error that comes of the size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 // (x.shape[0] // 4))


class Recovering(nn.Module):
    """A part fails and is passed over; what fails then is another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Failing(), Dividing()

    def forward(self, x: Tensor) -> Tensor:
        with suppress(AttributeError):
            self.first(x)
        return self.second(x)


class OnCpu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(4, device="cpu")


class Sparse(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.eye(4).to_sparse())


class Named(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("my part"):
            return super().forward(x)


def test_names_for_a_profiler_and_data_parallel_wrappers_cost_nothing() -> None:
    plain, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    expected = count(plain, x)
    for model in (Named(*plain), nn.DataParallel(plain)):
        ledger = count(model, x)
        assert (ledger.adds, ledger.muls, ledger.uncounted) == (expected.adds, expected.muls, [])


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (Failing(), {}, r"AttributeError: 'Tensor' object has no attribute 'metadata'$"),
        (Dividing(), {}, r"shape \(2, 4\): integer division or modulo by zero$"),
        (Recovering(), {}, r"shape \(2, 4\) in 'second': integer"),
        (OnCpu(), {}, r"on device cpu is not on the expected device meta: count with device='cpu'$"),
        (nn.ModuleList(), {}, r'missing the required "forward" function$'),
        (nn.Linear(4, 4, device="meta"), {"device": "cpu"}, r"^weight is on meta, without values for device='cpu'"),
        (nn.Linear(4, 4), {"device": "nowhere"}, r"^device='nowhere' cannot be used: "),
        (nn.Conv2d(3, 4, 1), {"input": 8, "in_chans": "3"}, r"^input=8 is no image size: .*in_chans='3'"),
        (nn.Conv2d(3, 4, 1), {"input": 8, "in_chans": -1}, r"^input=8 is no image size: .*in_chans=-1"),
        (nn.Linear(4, 4), {"input": torch.eye(4).to_sparse()}, r"^a nested or sparse_coo tensor is no example"),
        (Sparse(), {}, r"^weight is sparse_coo, whose work has no rule: make it dense$"),
        (Sparse(), {"device": "cpu"}, r"^weight is sparse_coo, "),
        (nn.Linear(4, 4), {"dtype": "fp16"}, r"^dtype='fp16' is no torch\.dtype"),
    ],
)
def test_what_cannot_run_is_one_line(model: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        count(model, **{"input": torch.ones(2, 4), **settings})
    assert "\n" not in str(caught.value)


def test_a_sharded_model_is_refused() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (1,)))
        for device in ("meta", "cpu"):
            with pytest.raises(
                InputError, match="weight is shared among processes: count the model before it is sharded"
            ):
                count(model, torch.ones(2, 4), device=device)
    finally:
        torch.distributed.destroy_process_group()
