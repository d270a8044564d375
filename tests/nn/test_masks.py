"""A mask of tokens: padding changes nothing, in outputs, gradients and fits, whatever it holds."""

import copy
from dataclasses import asdict

import pytest
import torch
from kind_cases import SPECS, TOKENS, build

from ecoformer import InputError
from ecoformer.fit.contract import FittableAttention
from ecoformer.fit.hashes import fit_and_measure
from ecoformer.kinds import BUILDERS
from ecoformer.ops.ecoformer import columns_forward

MASKED = [spec for spec in SPECS if spec.name != "linear_sra"]
# A layer with a bias for each place on a map takes no other map; test_binary_qk.py has its masks.
MASKED = [spec for spec in MASKED if getattr(spec, "form", "") != "grid"]
EXACT = [spec for spec in MASKED if spec.name != "linformer"]
FITTED = [spec for spec in MASKED if issubclass(BUILDERS[type(spec)], FittableAttention)]
LENGTHS = (TOKENS, 13, 18)


def padded(lengths=LENGTHS, dim=12):
    """Tokens of random samples in float64, padded by random numbers, and the mask of the real ones."""
    x = torch.randn(len(lengths), TOKENS, dim, dtype=torch.float64)
    return x, torch.arange(TOKENS)[None] < torch.tensor(lengths)[:, None]


def attn_mask(mask):
    return mask[:, None, None, :]


def layer_of(spec, form):
    layer = build(spec)[0].double()
    if form == "module":  # a hook takes the fast path away
        for child in layer.children():
            child.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize("form", ["fast", "module"])
@pytest.mark.parametrize("spec", EXACT, ids=str)
def test_outputs_and_gradients_are_those_without_padding(spec, form, monkeypatch):
    monkeypatch.setattr(columns_forward, "GROUP_BYTES", 2**14)
    layer = layer_of(spec, form)
    x, mask = padded()
    x.requires_grad_()
    weight = torch.randn_like(x)
    out = layer(x, attn_mask=attn_mask(mask))
    assert out.isfinite().all()
    found = torch.autograd.grad((out * weight)[mask].sum(), [x, *layer.parameters()], allow_unused=True)
    alone = [layer(sample[None, :length]) for sample, length in zip(x, LENGTHS, strict=True)]
    total = sum((part * w[None, : part.shape[1]]).sum() for part, w in zip(alone, weight, strict=True))
    expected = torch.autograd.grad(total, [x, *layer.parameters()], allow_unused=True)
    torch.testing.assert_close(out[mask], torch.cat([part[0] for part in alone]), rtol=1e-9, atol=1e-11)
    assert not found[0][~mask].any()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("numerator", ["own_token", "kernel"])
def test_long_samples_in_pieces_are_masked_alike(numerator, monkeypatch):
    spec = next(s for s in SPECS if s.name == "ecoformer" and s.numerator == numerator)
    layer = build(spec)[0].double()
    x = torch.randn(2, 202, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 202) < 0.7
    whole = layer(x, attn_mask=attn_mask(mask))
    monkeypatch.setattr(columns_forward, "PIECE_TOKENS", 101)
    parts = layer(x, attn_mask=attn_mask(mask))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)
    weight = torch.randn_like(x)
    grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (whole, parts)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("spec", [spec for spec in EXACT if spec.name in ("ecoformer", "random_hash")], ids=str)
def test_gradients_of_all_outputs_agree_with_the_module_form(spec):
    fast, module = layer_of(spec, "fast"), None
    module = copy.deepcopy(fast)
    module.to_qk.register_forward_hook(lambda *_: None)
    x, mask = padded()
    x[0, 3] = 0
    weight = torch.randn_like(x)
    grads = []
    for layer in (fast, module):
        leaf = x.clone().requires_grad_()
        out = (layer(leaf, attn_mask=attn_mask(mask)) * weight).sum()
        grads.append(torch.autograd.grad(out, [leaf, *layer.parameters()]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("spec", MASKED, ids=str)
def test_what_padding_holds_changes_nothing(spec):
    layer = layer_of(spec, "fast")
    x, mask = padded()
    other = torch.where(mask[..., None], x, 7 * torch.randn_like(x))
    out, again = (layer(tokens, attn_mask=attn_mask(mask)) for tokens in (x, other))
    torch.testing.assert_close(out[mask], again[mask], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", EXACT, ids=str)
def test_bfloat16_and_autocast_take_masks(spec):
    layer = build(spec)[0]
    x, mask = padded()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x.float(), attn_mask=attn_mask(mask))
        alone = layer(x[1:2, : LENGTHS[1]].float())
    torch.testing.assert_close(out[1, : LENGTHS[1]].float(), alone[0].float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("spec", [s for s in EXACT if s.name in ("uniform", "hedgehog", "binary_qk")], ids=str)
def test_an_exported_layer_takes_masks_of_any_batch(spec):
    layer = build(spec)[0].requires_grad_(False)
    x, mask = torch.randn(3, TOKENS, 12), torch.rand(3, 1, 1, TOKENS) < 0.7
    batch = torch.export.Dim("batch", min=1)
    sizes = {"x_BND": {0: batch}, "attn_mask": {0: batch}}
    program = torch.export.export(layer, (x,), {"attn_mask": mask}, dynamic_shapes=sizes, strict=False).module()
    torch.testing.assert_close(program(x[:1], attn_mask=mask[:1]), layer(x[:1], attn_mask=mask[:1]))


def fresh_layer(spec):
    return build(spec, fitted=False)[0].double()


@pytest.mark.parametrize("spec", FITTED, ids=str)
def test_fits_see_real_tokens_alone(spec):
    length = 16
    x, mask = padded((length,) * 6)
    padded_layer = fresh_layer(spec)
    plain_layer = copy.deepcopy(padded_layer)
    reports = [
        fit_and_measure(layer, tokens, 4, torch.Generator().manual_seed(1), **masks)
        for layer, tokens, masks in ((padded_layer, x, {"mask_BN": mask}), (plain_layer, x[:, :length], {}))
    ]
    for name, value in plain_layer.state_dict().items():
        torch.testing.assert_close(padded_layer.state_dict()[name], value, rtol=1e-6, atol=1e-8, msg=name)
    ours, theirs = (asdict(report) for report in reports)
    for key in ours.keys() - {"seconds", "block"}:
        same = ours[key] is theirs[key] or ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-8)
        assert same, key


@pytest.mark.parametrize("spec", FITTED, ids=str)
def test_fits_of_samples_of_any_length_do_not_look_at_padding(spec):
    x, mask = padded((TOKENS, 13, 18, 9, 21, 4))
    other = torch.where(mask[..., None], x, 7 * torch.randn_like(x))
    layer = fresh_layer(spec)
    states = []
    for tokens in (x, other):
        twin = copy.deepcopy(layer)
        report = twin.fit_on_call(tokens, torch.Generator().manual_seed(1), mask_BN=mask)
        assert report.bit_balance == report.bit_balance  # not NaN
        states.append(twin.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_refusals():
    x, mask = padded()
    layer = layer_of(next(s for s in SPECS if s.name == "linear_sra"), "fast")
    with pytest.raises(InputError, match="LinearSRAAttention takes no attn_mask: its tokens cannot be left out"):
        layer(x, attn_mask=attn_mask(mask))
    layer = layer_of(SPECS[0], "fast")
    with pytest.raises(InputError, match="takes no is_causal=True: keep the stock attention"):
        layer(x, is_causal=True)
    with pytest.raises(InputError, match=r"attn_mask is float32 \(25, 25\): .* takes which keys take part alone, bool"):
        layer(x, attn_mask=torch.zeros(TOKENS, TOKENS))
    few = fresh_layer(next(s for s in SPECS if s.name == "ecoformer"))
    with pytest.raises(InputError, match="4 tokens < num_anchors=5"):
        few.fit_hash(x, torch.Generator(), mask_BN=torch.arange(TOKENS).expand(3, -1) < 4)
