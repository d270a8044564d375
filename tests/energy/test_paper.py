"""The published accounting, exact to the integer."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from ecoformer.energy import count, load_profile, summarize
from ecoformer.kinds import make_spec
from ecoformer.lab.energy.cases import Case
from ecoformer.model.convert import convert

# (multiplications, additions) at 224 px, 1000 classes, 16 bits, 25 anchors
EXPECTED = {
    ("pvt_v2_b0", "ecoformer"): (535392840, 564786176),
    ("pvt_v2_b0", "msa"): (2015865904, 1993315712),
    ("pvt_v2_b0", "stock"): (572023672, 571428224),
    ("pvt_v2_b1", "ecoformer"): (2029620424, 2088843392),
    ("pvt_v2_b1", "msa"): (5019124144, 4996573952),
    ("pvt_v2_b1", "stock"): (2119676152, 2119080704),
    ("pvt_v2_b2", "ecoformer"): (3852777536, 3965112192),
    ("pvt_v2_b2", "msa"): (8640611832, 8604980992),
    ("pvt_v2_b2", "stock"): (4045833616, 4044719552),
    ("pvt_v2_b3", "ecoformer"): (6541431056, 6715070592),
    ("pvt_v2_b3", "msa"): (11861205432, 11823269632),
    ("pvt_v2_b3", "stock"): (6923564416, 6921874112),
    ("pvt_v2_b4", "ecoformer"): (9571194156, 9823508288),
    ("pvt_v2_b4", "msa"): (15972298376, 15927716608),
    ("pvt_v2_b4", "stock"): (10137948148, 10135518336),
    ("twins_svt_small", "ecoformer"): (2718878336, 2808034816),
    ("twins_svt_small", "msa"): (5957848896, 5910366720),
    ("twins_svt_small", "stock"): (2935786048, 2933942080),
}
# billions of picojoules, to the five places of the same derivation
ENERGY = {
    ("pvt_v2_b0", "ecoformer"): 2.48926,
    ("pvt_v2_b0", "msa"): 9.25269,
    ("pvt_v2_b0", "stock"): 2.63077,
    ("pvt_v2_b4", "ecoformer"): 44.25458,
    ("twins_svt_small", "msa"): 27.36337,
}


def build(name: str, attention: str, img_size: int = 224, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    spec = make_spec(attention)
    if spec is not None:
        convert(model, spec, img_size=img_size)
    return model


@pytest.mark.parametrize(("name", "attention"), EXPECTED, ids=[f"{name}-{attention}" for name, attention in EXPECTED])
def test_table(name: str, attention: str) -> None:
    settings = {"num_bits": 16, "num_anchors": 25} if attention == "ecoformer" else {}
    ledger = Case(name, attention, **settings).count("paper")
    assert (ledger.muls, ledger.adds) == EXPECTED[name, attention]
    assert ledger.uncounted == []
    if (name, attention) in ENERGY:
        energy = ledger.energy_pj(load_profile("45nm_fp32")) / 1e9
        assert round(energy, 5) == ENERGY[name, attention]


def test_area_follows_the_published_figures() -> None:
    ledger = Case("pvt_v2_b0", "ecoformer", num_bits=16, num_anchors=25).count("paper")
    muls, adds = EXPECTED["pvt_v2_b0", "ecoformer"]
    assert ledger.area_um2(load_profile("45nm_fp32")) == 7700 * muls + 4184 * adds


@pytest.mark.parametrize("attention", ["stock", "msa", "ecoformer"])
def test_batch_scales_every_count(attention: str) -> None:
    model = build("pvt_v2_b0", attention, img_size=96, depths=(1, 1, 1, 1))
    one, three = (count(model, (batch, 3, 96, 96), convention="paper") for batch in (1, 3))
    assert (three.muls, three.adds) == (3 * one.muls, 3 * one.adds)


def test_attention_only_is_the_core_of_every_block() -> None:
    """PVTv2-B0 at 224 px, stage by stage: N tokens, d channels, H heads, keys (h // r) * (w // r); two blocks each."""
    stages = [(56, 32, 1, 8), (28, 64, 2, 4), (14, 160, 5, 2), (7, 256, 8, 1)]
    muls = adds = 0
    for side, dim, heads, ratio in stages:
        tokens, keys = side**2, (side // ratio) ** 2
        muls += 2 * (2 * tokens * keys * dim + heads * tokens * keys)
        adds += 2 * 2 * tokens * keys * dim
    row = summarize(build("pvt_v2_b0", "stock"), 224)
    assert (row["attention_muls"], row["attention_adds"]) == (muls, adds)
    assert row["attention_energy_pj"] == pytest.approx(3.7 * muls + 0.9 * adds)


def test_bits_and_anchors_enter_the_core_only() -> None:
    """Two blocks in stages 1 to 3 of PVTv2-B0: H * N = 3136, 2 * 784 and 5 * 196 tokens, C = 32 channels a head."""
    rows = {}
    for bits, anchors in ((4, 10), (64, 50)):
        row = rows[bits] = _with_hash(num_bits=bits, num_anchors=anchors)
        heads_tokens = 2 * (3136 + 2 * 784 + 5 * 196)
        last_stage = 2 * 2 * 49**2 * 256, 2 * 8 * 49**2
        muls = heads_tokens * (2 * anchors + anchors * bits + bits + 1 + 32) + sum(last_stage)
        adds = heads_tokens * (2 * anchors * 32 + anchors * bits + 2 * bits + 2 * bits * 32 + 32) + last_stage[0]
        assert (row["attention_muls"], row["attention_adds"]) == (muls, adds)
    outside = [row["energy_pj"] - row["attention_energy_pj"] for row in rows.values()]
    assert outside[0] == pytest.approx(outside[1], rel=1e-12)


def _with_hash(**options: int) -> dict[str, Any]:
    model = build("pvt_v2_b0", "stock")
    convert(model, make_spec("ecoformer", options), img_size=224)
    return summarize(model, 224)


class TinyConv(nn.Module):
    """A convolution with groups and bias, a norm and a Linear layer: every term of the base count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(nn.functional.gelu(self.norm(x)))


def test_base_by_hand() -> None:
    """9 x 11 input -> 5 x 5 output: (9 + 2 - 3) // 2 + 1 and (11 + 2 - 5) // 2 + 1."""
    positions = 5 * 5
    conv = (3 * 5 * 4 * (6 // 2) + 6) * positions
    expected = conv + 2 * positions * 6 + positions * 6 * 7
    ledger = count(TinyConv(), (4, 9, 11), convention="paper")
    assert (ledger.muls, ledger.adds) == (expected, expected)


def test_attention_without_a_formula_is_counted_by_its_products() -> None:
    """Swin's windows: the published formula per window, whether or not its attention is fused."""
    model = build("swin_tiny_patch4_window7_224", "stock")
    core_muls = core_adds = 0
    for side, dim, heads, depth in [(56, 96, 3, 2), (28, 192, 6, 2), (14, 384, 12, 6), (7, 768, 24, 2)]:
        windows, tokens = (side // 7) ** 2, 49
        core_muls += depth * windows * (2 * tokens**2 * dim + heads * tokens**2)
        core_adds += depth * windows * 2 * tokens**2 * dim
    row = summarize(model, 224)
    assert (row["attention_muls"], row["attention_adds"]) == (core_muls, core_adds)
    assert row["uncounted"] == []
