"""Hash attention with every term written out, and the whole count of a model from its parts."""

import pytest
import torch
from torch import nn

import ecoformer.kinds  # noqa: F401
from ecoformer.energy import count
from ecoformer.energy.kinds import ARITHMETIC
from ecoformer.kinds.ecoformer import EcoFormerAttention, EcoFormerSpec
from ecoformer.nn.msa import MultiHeadSelfAttention


def test_hash_attention_term_by_term() -> None:
    """B2 H3 N7 C4 K5 M6, own-token numerator."""
    batch, heads, tokens, channels, bits, anchors = 2, 3, 7, 4, 5, 6
    dim = heads * channels
    layer = EcoFormerAttention(dim, heads, EcoFormerSpec(num_bits=bits, num_anchors=anchors, top_k=3))
    rows, maps = batch * heads * tokens, batch * heads
    terms = {
        "to_qk, to_v, proj: products and biases": {
            "fma": 3 * batch * tokens * dim * dim,
            "add": 3 * batch * tokens * dim,
        },
        "|x|": {"mul": rows * channels, "add": rows * (channels - 1), "sqrt": rows},
        "1 / |x|, zero for zero tokens": {"compare": rows, "add": 2 * rows, "div": rows},
        "|a|^2": {"mul": heads * anchors * channels, "add": heads * anchors * (channels - 1)},
        "mean of x / |x| over tokens": {"fma": rows * channels, "div": maps * channels},
        "mean of a over anchors": {"add": heads * channels * (anchors - 1), "div": heads * channels},
        "mean of |x|^2, which is 0 or 1": {"popcount": maps * (tokens - 1), "div": maps},
        "mean of |a|^2": {"add": heads * (anchors - 1), "div": heads},
        "sigma from the means": {"fma": maps * channels, "mul": maps, "add": 2 * maps},
        "log2(e) / sigma, sigma not below the floor": {"compare": 2 * maps, "div": maps, "mul": maps},
        "scale of the products, 1 / |x| included": {"mul": rows},
        "-|x|^2 / (2 sigma)": {"mul": maps, "binary_mul": rows},
        "-|a|^2 / (2 sigma)": {"mul": maps + maps * anchors},
        "the mean of the features as a threshold a bit": {"fma": heads * bits * anchors},
        "x a": {"fma": rows * channels * anchors},
        "scaled, plus both squares": {"mul": rows * anchors, "add": 2 * rows * anchors},
        "exp2": {"exp": rows * anchors},
        "A k, minus the threshold": {"fma": rows * anchors * bits, "add": rows * bits},
        "sign, with half a step so that zero counts as +1": {"add": rows * bits},
        "context: codes times v": {"add": rows * bits * channels},
        "sum of codes": {"popcount": maps * bits * (tokens - 1)},
        "codes times context and sum": {"add": rows * bits * (channels + 1)},
        "+ (K + 1) v": {"mul": rows * channels, "add": rows * channels},
        "denominator + N (K + 1)": {"add": rows},
        "numerator / denominator": {"div": rows * channels},
    }
    found = count(layer, torch.zeros(batch, tokens, dim)).counts
    for kind in ARITHMETIC:
        assert found[kind] == sum(term.get(kind, 0) for term in terms.values()), kind


def test_softmax_attention_term_by_term() -> None:
    """B2 H3 N7 C4: qkv and proj with bias, two products, the scale, the softmax."""
    batch, heads, tokens, channels = 2, 3, 7, 4
    dim, rows = heads * channels, batch * heads * tokens
    layer = MultiHeadSelfAttention(dim, heads)
    found = count(layer, torch.zeros(batch, tokens, dim)).counts
    assert found["fma"] == batch * tokens * dim * 4 * dim + 2 * rows * tokens * channels
    assert found["mul"] == rows * tokens
    assert found["add"] == batch * tokens * 4 * dim + rows * (2 * tokens - 1)
    assert found["compare"] == rows * (tokens - 1)
    assert found["exp"] == found["div"] == rows * tokens
    assert found["binary_mul"] == found["popcount"] == found["sqrt"] == 0


@pytest.mark.parametrize("num_bits", [4, 64])
def test_only_codes_make_additions(num_bits: int) -> None:
    """The two code products grow with the bits; the multiply-adds only by the hash projection."""
    layers = [
        EcoFormerAttention(8, 2, EcoFormerSpec(num_bits=bits, num_anchors=3, top_k=2))
        for bits in (num_bits, num_bits + 1)
    ]
    less, more = (count(layer, torch.zeros(1, 9, 8)).counts for layer in layers)
    rows = 2 * 9
    assert more["fma"] - less["fma"] == (rows + 2) * 3
    assert more["add"] - less["add"] == rows + 2 * rows * (4 + 1)


def test_entries_name_module_function_and_attention() -> None:
    model = nn.Sequential(nn.Linear(8, 8), EcoFormerAttention(8, 2, EcoFormerSpec(num_anchors=3, top_k=2)))
    ledger = count(model, torch.zeros(1, 9, 8))
    exp = next(entry for entry in ledger.entries if entry.op == "aten.exp2_.default")
    assert (exp.module, exp.module_class, exp.function) == ("1", "EcoFormerAttention", "_features")
    assert (exp.attention, exp.core, exp.bits) == ("1", True, 32)
    projections = [entry for entry in ledger.entries if entry.module in ("1.to_qk", "1.to_v", "1.proj")]
    assert {(entry.attention, entry.part) for entry in projections} == {("1", "Linear")}
    whole = ledger.attention(projections=True)
    assert whole.muls == ledger.attention().muls + 3 * 9 * 8 * 8
    assert ledger.muls == whole.muls + 9 * 8 * 8


def test_groups_add_up_to_the_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    ledger = count(model, 8)
    for groups in (ledger.by_module(), ledger.by_stage(), ledger.by_layer(), ledger.by_op()):
        assert sum((part.counts for part in groups.values()), start=type(ledger.counts)()) == ledger.counts
    assert list(ledger.by_module()) == ["0", "1", "3"]
