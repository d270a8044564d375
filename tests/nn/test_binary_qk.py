"""BinaryAttention's scales and bias: by hand, under masks, on maps and sequences, and what old checkpoints are."""

import math

import pytest
import timm
import torch
from kind_cases import TOKENS, build
from test_attention_kinds import position_bias
from tiny_models import tiny_pvt, tiny_vit

from ecoformer import InputError, convert
from ecoformer.energy import count
from ecoformer.kinds import make_spec
from ecoformer.nn.heads import join_heads, split_heads


def layer_of(form, **sizes):
    module, linears = build(make_spec("binary_qk", {"form": form, "num_tokens": TOKENS}), **sizes)
    torch.nn.init.normal_(module.position_bias)
    return module.double(), {role: linear.double() for role, linear in linears.items()}


@pytest.mark.parametrize(("form", "num_tokens"), [("grid", TOKENS), ("line", TOKENS), ("line", 11), ("line", 1)])
def test_the_bias_and_its_gradient_pair_by_pair(form, num_tokens):
    module, _ = layer_of(form)
    weight = torch.randn(3, num_tokens, num_tokens, dtype=torch.float64)
    found = module.bias(num_tokens)
    if form == "grid":
        expected = position_bias(module, num_tokens)
    else:
        at = torch.arange(num_tokens)
        expected = module.position_bias.view(3, -1)[:, at[None] - at[:, None] + TOKENS - 1]
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad((bias * weight).sum(), module.position_bias)[0] for bias in (found, expected)]
    torch.testing.assert_close(*grads)


def test_keys_that_take_no_part_on_a_map():
    """The scales too are those of the tokens that do."""
    module, linears = layer_of("grid")
    x = torch.randn(2, TOKENS, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, TOKENS) < 0.6
    out = module(x, attn_mask=mask[:, None, None])
    q, k, v = (split_heads(linears[role](x), 3) for role in ("query", "key", "value"))
    sizes = [
        torch.stack([size[:, real].mean(dim=(1, 2)) for size, real in zip(part.abs(), mask, strict=True)])
        for part in (q, k)
    ]
    scores = torch.where(q < 0, -1.0, 1.0).double() @ torch.where(k < 0, -1.0, 1.0).double().mT / math.sqrt(4)
    scores = scores * (sizes[0] * sizes[1])[..., None, None] + position_bias(module, TOKENS)
    expected = linears["proj"](join_heads(scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1) @ v))
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out[mask].square().sum(), x)
    assert grad[mask].any() and not grad[~mask].any()


def test_prefix_tokens_have_biases_of_their_own():
    model = tiny_vit()
    report = convert(model, make_spec("binary_qk", {"form": "grid"}), img_size=32)
    assert report.notes == [] and report.replaced[0].new == ("position_bias",)
    attn = model.blocks[0].attn
    assert attn.grid == (4, 4) and attn.num_prefix == 1 and not attn.position_bias.any()
    torch.nn.init.normal_(attn.position_bias)
    bias, tables = attn.bias(17), attn.position_bias.view(attn.num_heads, 7 * 7 + 3)
    to_map, from_map, own = tables[:, -3:].unbind(1)
    assert (bias[:, 0, 1:] == to_map[:, None]).all() and (bias[:, 1:, 0] == from_map[:, None]).all()
    assert torch.equal(bias[:, 0, 0], own)
    assert torch.equal(bias[:, 1, -1], tables[:, 48]) and torch.equal(bias[:, 6, 6], tables[:, 24])


def test_a_conversion_to_grid_and_to_line_starts_as_scaled():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    outs = {}
    for form in ("signs", "scaled", "grid", "line"):
        twin = tiny_vit()
        twin.load_state_dict(model.state_dict())
        convert(twin, make_spec("binary_qk", {"form": form}), img_size=32)
        outs[form] = twin(images)
    assert torch.equal(outs["grid"], outs["scaled"]) and torch.equal(outs["line"], outs["scaled"])
    assert not torch.allclose(outs["signs"], outs["scaled"])


def test_a_checkpoint_of_the_signs_alone_has_no_new_keys_and_stays():
    model = tiny_vit()
    stock = set(model.state_dict())
    convert(model, make_spec("binary_qk"))
    assert set(model.state_dict()) == stock
    assert not convert(model, make_spec("binary_qk", {"form": "signs"})).replaced
    report = convert(model, make_spec("binary_qk", {"form": "grid"}), img_size=32)
    assert len(report.replaced) == 2
    assert convert(model, make_spec("binary_qk"), img_size=32).replaced[0].dropped == ("position_bias",)


def test_scores_are_bits_in_the_ledger():
    """N^2 D of them for either of the forms, and a scale and a bias for each score."""
    ledgers = []
    for form in ("signs", "grid"):
        model = tiny_vit()
        convert(model, make_spec("binary_qk", {"form": form}), img_size=32)
        ledgers.append(count(model.to("meta"), 32, convention="audited").attention().counts)
    signs, grid = ledgers
    assert signs["binary_mul"] == grid["binary_mul"] == signs["popcount"] > 0
    pairs = 2 * model.blocks[0].attn.num_heads * 17**2
    assert grid["add"] - signs["add"] >= pairs and grid["mul"] - signs["mul"] < pairs


@pytest.mark.parametrize(
    ("form", "extra_muls", "extra_adds"),
    [
        ("scaled", 3 * TOKENS**2 + 4 * 3, 2 * TOKENS * 12),
        ("grid", 3 * TOKENS**2 + 4 * 3, 2 * TOKENS * 12 + 3 * TOKENS**2),
        ("line", 3 * TOKENS**2 + 4 * 3, 2 * TOKENS * 12 + 3 * TOKENS**2),
    ],
)
def test_paper_accounting_by_hand(form, extra_muls, extra_adds):
    """Of 25 tokens, 12 channels, 3 heads: what scale and bias add to the signs' counts."""
    options = {} if form == "scaled" else {"num_tokens": TOKENS}
    muls, adds = build(make_spec("binary_qk", {"form": form, **options}))[0].paper_core_ops(TOKENS)
    plain_muls, plain_adds = build(make_spec("binary_qk"))[0].paper_core_ops(TOKENS)
    assert (muls - plain_muls, adds - plain_adds) == (extra_muls, extra_adds)


def test_refusals():
    grid = make_spec("binary_qk", {"form": "grid"})
    with pytest.raises(InputError, match=r"blocks.0.attn: binary_qk of form=grid needs the number of tokens: call"):
        convert(tiny_vit(), grid)
    with pytest.raises(InputError, match=r"needs a square map, 512 tokens are none: set attention.form=line"):
        convert(tiny_pvt(), grid, img_size=(64, 128))
    with pytest.raises(InputError, match=r"stage 1 .* has 256 tokens, attention.num_tokens=17: leave it out"):
        convert(tiny_pvt(), make_spec("binary_qk", {"form": "grid", "num_tokens": 17}), img_size=64)
    for form, tokens in (("grid", 9), ("grid", 36), ("line", 26)):
        with pytest.raises(InputError, match=f"made for 25 tokens and got {tokens}: keep the image size"):
            layer_of(form)[0](torch.randn(1, tokens, 12, dtype=torch.float64))


def test_a_map_of_as_many_tokens_and_another_shape_is_refused():
    """A hierarchical model tells its layers their map; a count of tokens may be that of a square."""
    model = timm.create_model("pvt_v2_b0", num_classes=4).eval()
    convert(model, make_spec("binary_qk", {"form": "grid"}), img_size=64)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)
        with pytest.raises(
            InputError, match=r"a map of 16 x 16 tokens and got 32 x 8: .*, or set attention\.form=line"
        ):
            model(torch.randn(1, 3, 128, 32))
