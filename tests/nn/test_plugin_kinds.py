"""A kind from a module outside of the tree: importing it is all."""

from __future__ import annotations

import importlib

import pytest
import timm
import torch
from kind_registry import kinds_restored
from tiny_models import tiny_vit

import ecoformer.models  # noqa: F401  before the kind comes
from ecoformer import InputError, convert
from ecoformer.kinds import make_spec
from ecoformer.nn.projections import read_projections

KIND = """
from dataclasses import dataclass
from ecoformer.kinds import AttentionSpec, ReplacementAttention, attention_kind

@dataclass(frozen=True)
class LastSpec(AttentionSpec):
    name = "{name}"
    share: float = 0.5

@attention_kind(LastSpec)
class LastAttention(ReplacementAttention):
    def attend(self, q_BHNC, k_BHNC, v_BHNC):
        return self.spec.share * v_BHNC[:, :, -1:].expand_as(v_BHNC)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    def load(module, name):
        (tmp_path / f"{module}.py").write_text(KIND.format(name=name))
        importlib.invalidate_caches()
        return importlib.import_module(module)

    monkeypatch.syspath_prepend(tmp_path)
    with kinds_restored():
        yield load


def test_it_has_a_spec_converts_and_is_in_timms_registry(plugin):
    plugin("their_kinds", "last_token")
    model = tiny_vit()
    stock = model.blocks[0].attn
    spec = make_spec("last_token", {"share": 0.25})
    convert(model, spec)
    attention, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    values = torch.nn.functional.linear(x, stock.qkv.weight[48:], stock.qkv.bias[48:])
    expected = stock.proj(0.25 * values[:, -1:].expand_as(values))
    torch.testing.assert_close(attention(x), expected)
    assert torch.equal(read_projections(attention, "here").key.weight, stock.qkv.weight[24:48])
    assert not convert(model, spec).replaced
    row = timm.create_model("pvt_v2_b0_last_token", share=0.125)
    assert row.stages[0].blocks[0].attn.spec.share == 0.125


@pytest.mark.parametrize("name", ["ecoformer", "stock"])
def test_a_name_that_exists_is_refused(plugin, name):
    with pytest.raises(InputError, match=rf"attention={name} exists already: give other_kinds_{name}.LastSpec another"):
        plugin(f"other_kinds_{name}", name)
    assert make_spec("ecoformer").num_bits == 16


def test_the_same_module_twice_is_no_clash(plugin):
    importlib.reload(plugin("again_kinds", "again"))
    assert make_spec("again").share == 0.5


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        ("v_BHNC.mean(dim=2, keepdim=True)", r"\(2, 3, 1, 8\)"),  # all blocks would have added it to every token
        ("v_BHNC.transpose(1, 2)", r"\(2, 17, 3, 8\)"),
        ("v_BHNC.transpose(1, 2).flatten(2)", r"\(2, 17, 24\)"),
        ("(v_BHNC, None)", "<class 'tuple'>"),
    ],
)
def test_a_shape_that_no_attention_returns_is_refused(plugin, monkeypatch, wrong, shape):
    right = "self.spec.share * v_BHNC[:, :, -1:].expand_as(v_BHNC)"
    assert right in KIND
    monkeypatch.setitem(globals(), "KIND", KIND.replace(right, wrong))
    name = f"wrong_{len(wrong)}"
    plugin(f"kinds_{name}", name)
    model = tiny_vit()
    convert(model, make_spec(name))
    with pytest.raises(
        InputError, match=rf"^LastAttention.attend returns {shape}, not \(2, 3, 17, 8\), \(B, H, N, C\)$"
    ):
        model.blocks[0].attn(torch.randn(2, 17, 24))
