"""Linear SRA: timm's own layer is the reference; what carries over, and tokens that are no part of the map."""

import copy

import pytest
import torch
from timm.models.pvt_v2 import Attention as PvtAttention
from tiny_models import tiny_pvt, tiny_twins, tiny_vit
from torch import nn

from ecoformer import InputError, attention_layers, convert
from ecoformer.kinds import BUILDERS, make_spec
from ecoformer.nn.projections import Projections

SPEC = make_spec("linear_sra")


def layer(dim, num_heads, spec=SPEC, **kwargs):
    linears = {name: nn.Linear(dim, dim) for name in ("query", "key", "value", "proj")}
    source = Projections(where="layer", dim=dim, num_heads=num_heads, proj_drop=0.0, parts={}, **linears, **kwargs)
    return BUILDERS[type(spec)].from_projections(source, spec)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (9, 13), (8, 21), (3, 5)], ids=str)
def test_equals_timms_layer_with_its_weights(size):
    """Outputs and gradients; strict loading proves that parts and names are the same."""
    theirs, ours = PvtAttention(12, 3, linear_attn=True), layer(12, 3)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, size[0] * size[1], 12, requires_grad=True)
    target, grads = torch.randn_like(x), []
    for module in (theirs, ours):
        (module(x, size) * target).sum().backward()
        grads.append([x.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
        x.grad = None
    torch.testing.assert_close(ours(x, size), theirs(x, size))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_a_converted_pvt_v2_li_is_kept_and_one_that_is_rebuilt_computes_the_same():
    model = tiny_pvt(depths=(1, 1, 1, 1), linear=True)
    images = torch.randn(2, 3, 64, 96)
    before = model(images)
    report = convert(model, SPEC, filter_fn=lambda module, name: True)
    assert len(report.kept) == 4 and not report.replaced
    other = make_spec("linear_sra", {"pool_size": 5})
    assert convert(model, other, filter_fn=lambda module, name: True).replaced[0].new == ()
    report = convert(model, SPEC, filter_fn=lambda module, name: True)
    assert (report.replaced[0].copied, report.replaced[0].dropped) == (("q", "kv", "proj", "sr", "norm"), ())
    torch.testing.assert_close(model(images), before)


@pytest.mark.parametrize("build", [tiny_pvt, lambda: tiny_twins(depths=(1, 2, 2, 2))], ids=["pvt", "twins"])
def test_the_kernel_of_sra_is_summed(build):
    model = build()
    stock = {info.name: copy.deepcopy(info.module) for info in attention_layers(model)}
    convert(model, SPEC)
    name = next(name for name, module in stock.items() if getattr(module, "sr", None) is not None)
    ours, theirs = model.get_submodule(name), stock[name]
    x = torch.randn(1, theirs.dim, 1, 1)
    constant = theirs.sr(x.expand(-1, -1, *theirs.sr.kernel_size))
    torch.testing.assert_close(ours.sr(x), constant)
    assert torch.equal(ours.norm.weight, theirs.norm.weight) and ours.norm.eps == theirs.norm.eps
    assert torch.equal(ours.kv.weight, theirs.kv.weight)


def test_elsewhere_the_convolution_starts_as_the_identity():
    ours = layer(12, 3)
    x = torch.randn(1, 12, 3, 3)
    torch.testing.assert_close(ours.sr(x), x)
    assert ours.new_parts == ("sr", "norm")


def test_prefix_tokens_stay_out_of_the_pooling():
    ours = layer(12, 3, make_spec("linear_sra", {"pool_size": 2}), num_prefix=2)
    x = torch.randn(2, 2 + 16, 12)
    prefix, image = x[:, :2], x[:, 2:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    expected = nn.functional.gelu(ours.norm(torch.cat([prefix, image], 1)))
    torch.testing.assert_close(ours.pooled(x, (4, 4)), expected)
    assert ours.paper_core_ops(18)[1] == 2 * 18 * (4 + 2) * 12 + 16 * 12


@pytest.mark.parametrize(
    ("kwargs", "prefix"), [({}, 1), ({"class_token": False, "global_pool": "avg"}, 0), ({"reg_tokens": 2}, 3)]
)
def test_a_vit_says_how_many_prefix_tokens_it_has(kwargs, prefix):
    model = tiny_vit(**kwargs)
    convert(model, SPEC)
    assert {block.attn.num_prefix for block in model.blocks} == {prefix}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_a_map_that_is_no_square_has_to_be_told():
    with pytest.raises(InputError, match="a map of tokens that is no square cannot be carried"):
        convert(tiny_vit(img_size=(32, 24)), SPEC)
    model = tiny_vit()
    convert(model, SPEC)
    layer = model.blocks[0].attn
    with pytest.raises(InputError, match="linear_sra pools a map, and 12 image tokens are no square one"):
        layer(torch.randn(1, 13, 24))
    assert layer(torch.randn(1, 13, 24), (4, 3)).shape == (1, 13, 24)
