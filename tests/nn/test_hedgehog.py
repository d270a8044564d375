"""Hedgehog's fit: its loss and gradients by hand, what it lowers, what stays, what is refused, and large scores."""

import copy

import pytest
import torch
from kind_cases import TOKENS, build
from test_attention_kinds import mimicking
from tiny_models import sharp_vit

from ecoformer import InputError, convert, fit_hashes
from ecoformer.fit.output_fit import fit_to_output
from ecoformer.kinds import make_spec
from ecoformer.kinds.hedgehog import FeatureMaps, weight_sums
from ecoformer.lab.closeness import distill


def maps_and_tokens(batch=2, num_tokens=5):
    """Random maps of 3 heads and 4 channels, queries, keys and values, float64."""
    draw = torch.Generator().manual_seed(0)
    sizes = ((3, 2, 4, 4), (3, 2, 4), *[(batch, 3, num_tokens, 4)] * 3)
    weight, bias, *qkv = (torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes)
    return FeatureMaps(weight.requires_grad_(), bias.requires_grad_()), qkv


def entropy_by_hand(maps, q, k, mask):
    """-p log w, one pair of tokens after the other."""
    total = []
    for head in range(3):
        sums = 0
        for b, real in enumerate(mask):
            keys = k[b, head][real]

            def features(x, part, head=head):
                y = maps.weight_H2CC[head, part] @ x + maps.bias_H2C[head, part]
                return torch.cat([y.exp() / y.exp().sum(), (-y).exp() / (-y).exp().sum()])

            for query in q[b, head][real]:
                p = torch.stack([torch.exp(query @ key / 2) for key in keys])
                w = torch.stack([features(query, 0) @ features(key, 1) for key in keys])
                sums = sums - (p / p.sum() * (w / w.sum()).log()).sum()
        total.append(sums)
    return torch.stack(total)


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_and_its_gradients_by_hand(masked):
    maps, (q, k, v) = maps_and_tokens()
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]]) if masked else None
    target = torch.zeros_like(v)
    found, count = weight_sums(maps, q, k, *((v, mask, target) if masked else (v, target)))
    everything = torch.ones(2, 5, dtype=torch.bool)
    expected = entropy_by_hand(maps, q, k, mask if masked else everything)
    torch.testing.assert_close(found, expected)
    assert count.tolist() == [8 if masked else 10] * 3
    leaves = (maps.weight_H2CC, maps.bias_H2C)
    ours, theirs = (torch.autograd.grad(sums.sum(), leaves, retain_graph=True) for sums in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_gradients_of_maps_in_the_layer():
    module, _ = build(make_spec("hedgehog", {"fit_steps": 5}))
    module.double()
    q, k, v = (torch.randn(2, 3, TOKENS, 4, dtype=torch.float64) for _ in range(3))
    weight = torch.randn_like(v)
    leaves = (module.feature_weight, module.feature_bias)
    grads = [
        torch.autograd.grad((out * weight).sum(), leaves)
        for out in (module.attend(q, k, v), mimicking(module, q, k, v))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("size", [1e-3, 1e3, 1e6])
def test_scores_of_any_size_give_finite_outputs_and_gradients(size):
    module, _ = build(make_spec("hedgehog", {"fit_steps": 0}))
    q, k, v = (torch.randn(2, 3, TOKENS, 4) for _ in range(3))
    q, k = (q * size).requires_grad_(), (k * size).requires_grad_()
    out = module.attend(q, k, v)
    assert out.isfinite().all() and (out.abs() <= v.abs().amax() * 1.001).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, module.feature_weight))
    sums, _ = weight_sums(module._maps(torch.float32), q, k, v, v)
    grads += torch.autograd.grad(sums.sum(), (q, k, module.feature_weight))
    assert sums.isfinite().all() and all(grad.isfinite().all() for grad in grads)


def test_a_fit_follows_the_weights_and_beats_its_start_and_uniform_attention():
    source = sharp_vit()
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made = distill(source, make_spec("hedgehog", {"fit_steps": 60, "fit_batch_size": 8}), images, seed=0)
    for report in made.reports:
        assert report.objective_after < report.objective_before and report.accepted_bits == report.num_bits == 8
        assert report.attention_error < report.random_error and report.attention_error < report.uniform_error
        assert 0 < report.flipped_bits < 1
    assert made.model.blocks[0].attn.is_fitted and made.model.blocks[0].attn.target(torch.randn(1, 17, 24)) is None


def test_held_out_images_have_errors_and_maps():
    model = sharp_vit()
    convert(model, make_spec("hedgehog", {"fit_steps": 20, "fit_batch_size": 8}))
    draw = torch.Generator().manual_seed(1)
    images, held_out = (torch.randn(n, 3, 16, 16, generator=draw) for n in (24, 8))
    for report in fit_hashes(model, images, seed=0, held_out=held_out):
        assert report.held_out_images == 8 and report.attention_error < report.random_error
        assert min(report.recall, report.random_recall) > report.chance_recall and report.correlation > 0.3


def test_a_head_whose_loss_rises_keeps_its_maps():
    maps, (q, k, v) = maps_and_tokens(batch=8)
    options = {"lr": 1e3, "steps": 3, "batch_size": 4, "sums": weight_sums}
    fit = fit_to_output(maps, [q, k, v], v, torch.Generator().manual_seed(0), **options)
    assert not fit.accepted_H.any()
    assert torch.equal(fit.hashing.weight_H2CC, maps.weight_H2CC)
    assert torch.equal(fit.error_after_H, fit.error_before_H)


def test_no_steps_leave_identity_and_a_fit_is_made_once():
    module, _ = build(make_spec("hedgehog", {"fit_steps": 0}))
    assert torch.equal(module.feature_weight, torch.eye(4).expand(3, 2, 4, 4)) and not module.feature_bias.any()
    with pytest.raises(InputError, match="fitted once, to the attention that it replaces"):
        module.fit_hash(torch.randn(2, TOKENS, 12), torch.Generator())
    fresh, _ = build(make_spec("hedgehog"), fitted=False)
    with pytest.raises(InputError, match="never fitted"):
        fresh(torch.randn(2, TOKENS, 12))


def test_the_settings_of_a_fit_do_not_matter_once_it_is_made_and_msa_comes_back():
    model, images = sharp_vit(), torch.randn(4, 3, 16, 16)
    source = copy.deepcopy(model)
    convert(model, make_spec("hedgehog", {"fit_steps": 2}))
    assert convert(model, make_spec("hedgehog", {"fit_steps": 3})).replaced
    fit_hashes(model, images, seed=0)
    assert not convert(model, make_spec("hedgehog")).replaced
    report = convert(model, make_spec("msa"))
    assert report.replaced[0].dropped == ("feature_weight", "feature_bias")
    torch.testing.assert_close(model(images), source(images))
