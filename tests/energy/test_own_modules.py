"""What meets somebody who counts a module of her own: what is no module, what has no size yet, sizes, her own rules."""

import math
from collections import Counter

import pytest
import timm
import torch
from torch import Tensor, nn

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
