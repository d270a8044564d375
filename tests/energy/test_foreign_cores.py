"""Attention cores of models that others wrote, against a second derivation that shares nothing with the ledger.

The ledger sees operations below the dispatcher and finds cores by data flow. Here calls are seen above it, as the
model's authors wrote them, and every product of two activations is multiplied out.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ecoformer.energy import count, load_profile
from ecoformer.energy.summary import figures

WHOLE = "multi_head_attention_forward"  # torch's own, whose inner calls are not seen
PRODUCTS = (WHOLE, "matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "scaled_dot_product_attention")
TIMM = (
    *("beit_base_patch16_224", "botnet26t_256", "caformer_s18", "cait_xxs24_224", "coat_lite_tiny", "coatnet_0_rw_224"),
    *("convit_tiny", "crossvit_9_240", "davit_tiny", "deit3_small_patch16_224", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "eva02_tiny_patch14_224", "gcvit_xxtiny", "hiera_tiny_224"),
    *("levit_128s", "maxvit_rmlp_pico_rw_256", "mobilenetv4_hybrid_medium", "mobilevit_xxs", "mvitv2_tiny"),
    *("nest_tiny_jx", "pit_ti_224", "pvt_v2_b0", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    *("tiny_vit_5m_224", "tnt_s_patch16_224", "twins_svt_small", "visformer_tiny", "vit_tiny_patch16_224"),
    *("volo_d1_224", "xcit_nano_12_p16_224"),
)
TORCHVISION = ("maxvit_t", "swin_t", "vit_b_16")


class ActivationProducts(TorchFunctionMode):
    """Multiplications in products of two tensors that both depend on the input."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.active = {id(images): images}  # kept, so that no id is used twice
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves([args, kwargs or {}]) if isinstance(x, Tensor)]
        live = [x for x in given if id(x) in self.active]
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and len(live) >= 2:
            self.total += self.terms(name, args, live, out)
        if live:
            self.active |= {id(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}
        return out

    @staticmethod
    def terms(name: str, args: Any, live: list[Tensor], out: Tensor) -> int:
        if name == "scaled_dot_product_attention":
            query, key, value = live[:3]
            return out.numel() // value.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        if name == WHOLE:
            query, key = live[:2]  # (N, B, D)
            return 2 * query.numel() * key.shape[0]
        if name == "einsum":
            letters = args[0].replace(" ", "").partition("->")[0].split(",")
            sizes = {
                letter: size
                for term, x in zip(letters, live, strict=True)
                for letter, size in zip(term, x.shape, strict=True)
            }
            return math.prod(sizes.values())
        return out.numel() * live[0].shape[-1] if live[0] is args[0] else out.numel() * live[1].shape[-1]


def build(name: str) -> tuple[nn.Module, int]:
    with torch.device("meta"):
        if name in TORCHVISION:
            return torchvision.models.get_model(name).eval(), 224
        model = timm.create_model(name).eval()
    return model, model.pretrained_cfg["input_size"][-1]


@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_products_in_attention(name: str) -> None:
    model, size = build(name)
    images = torch.zeros(1, 3, size, size, device="meta")
    with torch.no_grad(), ActivationProducts(images) as products:
        model(images)
    core = count(model, size, convention="audited").attention()
    assert core.counts["fma"] == products.total > 0


@pytest.mark.parametrize(
    "name", ["mobilevitv2_050", "focalnet_tiny_srf", "swiftformer_xs", "resnet18", "mixer_s32_224"]
)
@pytest.mark.parametrize("convention", ["paper", "audited"])
def test_no_attention_is_said_and_not_called_zero(name: str, convention: str) -> None:
    ledger = count(*build(name), convention=convention)
    assert not ledger.has_attention
    found = figures(ledger, load_profile("45nm_fp32"))
    assert {found[key] for key in found if key.startswith("attention_")} == {None} and found["muls"] > 0


SMALL = ("nano", "pico", "femto", "atto", "tiny", "xx_small", "xxs", "_s0", "_m0", "_b0", "micro", "small", "_18", "26")
LARGE = ("huge", "giant", "gigantic", "_xlarge", "enormous", "so400m")
# EfficientViM mixes by a state space, which is no attention: of its two products one is booked as belonging to none.
# NaFlexViT takes patches, or resizes with an operation that has no rule.
OTHERWISE = ("efficientvim", "naflexvit")


@pytest.mark.slow
def test_small_models_of_every_timm_module() -> None:
    """At most four of each module: their cores agree, or there is no product of two activations and that is said."""
    agree, without = [], []
    for module in sorted(timm.models.list_modules()):
        names = [name for name in timm.list_models(module=module) if not any(word in name for word in LARGE)]
        chosen = [name for name in names if any(word in name for word in SMALL)] or names
        for name in chosen[:4] if module not in OTHERWISE else ():
            model, size = build(name)
            images = torch.zeros(1, 3, size, size, device="meta")
            with torch.no_grad(), ActivationProducts(images) as products:
                model(images)
            ledger = count(model, size, convention="audited", strict=False)
            assert ledger.attention().counts["fma"] == products.total, name
            assert ledger.has_attention == (products.total > 0), name
            (agree if ledger.has_attention else without).append(name)
    print(f"{len(agree)} models agree, {len(without)} have no product of two activations")
    assert len(agree) >= 150 and len(without) >= 100
