"""The tuned kind: conversion keeps the keys, the fit follows them, state and accounting hold."""

import distilled_models
import pytest
import timm
import torch
from distilled_models import vit

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.energy import count, load_profile
from ecoformer.kinds import EcoFormerTunedSpec, MSASpec
from ecoformer.nn.heads import split_heads
from ecoformer.ops.codes.attention import TokenHash, binary_codes
from ecoformer.ops.codes.naive import binary_attention_reference

SMALL = EcoFormerTunedSpec(num_bits=8, num_anchors=5, fit_steps=20, fit_batch_size=4)
VARIANTS = [
    SMALL,
    EcoFormerTunedSpec(num_bits=8, num_anchors=0, fit_steps=20, fit_batch_size=4),
    EcoFormerTunedSpec(num_bits=8, num_anchors=5, qk="shared", fit_steps=20, fit_batch_size=4),
    EcoFormerTunedSpec(num_bits=8, num_anchors=5, code="sign", fit_steps=20, fit_batch_size=4),
    EcoFormerTunedSpec(num_bits=8, num_anchors=5, floor=0.25, fit_steps=20, fit_batch_size=4),
    EcoFormerTunedSpec(num_bits=8, num_anchors=5, bit_weights=False, fit_steps=20, fit_batch_size=4),
]
IDS = ["kernel", "linear", "shared", "sign", "floor", "equal"]


@pytest.fixture
def images():
    return distilled_models.images()


@pytest.mark.parametrize("qk", ["separate", "shared"])
def test_turning_back_into_msa_gives_the_same_model(qk, images):
    model = vit()
    expected = model(images)
    convert(model, EcoFormerTunedSpec(num_bits=4, qk=qk))
    convert(model, MSASpec())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_projection_has_no_keys_to_start_from():
    model = vit(EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2))
    with pytest.raises(InputError, match=r"no keys to fit ecoformer_tuned to: start from the MSA checkpoint"):
        convert(model, SMALL)


@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
def test_forward_is_the_quadratic_form_of_its_codes(spec, images):
    model = vit(spec)
    fit_hashes(model, images, seed=0)
    layer = model.blocks[0].attn
    x = torch.randn(2, 17, 24)
    q = split_heads(layer.to_q(x), 3)
    query = TokenHash(*(getattr(layer.query_hash, key) for key in ("A", "threshold", "anchors", "bandwidth")))
    code_q = code_k = binary_codes(q, query)
    if spec.qk == "separate":
        k = split_heads(layer.to_k(x), 3)
        key = TokenHash(*(getattr(layer.key_hash, name) for name in ("A", "threshold", "anchors", "bandwidth")))
        code_k = binary_codes(k, key)
    floor = layer.floor
    if spec.code == "sign":
        code_q, code_k, floor = 2 * code_q - 1, 2 * code_k - 1, floor + layer.bit_weight.sum(-1)
    out = binary_attention_reference(code_q, code_k, split_heads(layer.to_v(x), 3), layer.bit_weight, floor)
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(1, 2).flatten(2)), rtol=1e-4, atol=1e-5)


def test_fit_reports_its_error_beside_the_floors(images):
    model = vit(SMALL)
    for report in fit_hashes(model, images, seed=0):
        assert report.attention_error < report.random_error and report.attention_error < report.uniform_error
        assert report.objective_after < report.objective_before and report.accepted_bits == report.num_bits == 8
        assert 0 < report.flipped_bits < 1 and 0 < report.bit_balance <= 1


def test_refits_start_from_what_they_have_and_never_get_worse(images):
    model = vit(SMALL)
    first = fit_hashes(model, images, seed=0)[0]
    again = fit_hashes(model, images, seed=1)[0]
    assert again.objective_before == pytest.approx(first.objective_after, rel=1e-4)
    assert again.objective_after <= again.objective_before
    assert model.blocks[0].attn.fit_count == 2


def test_what_is_not_fitted_stays_as_it_was_set(images):
    layer = vit(VARIANTS[4]).blocks[0].attn
    layer.fit_hash(torch.randn(8, 17, 24), torch.Generator().manual_seed(0))
    assert (layer.floor == 0.25).all() and not (layer.bit_weight == 1).all()
    layer = vit(VARIANTS[5]).blocks[0].attn
    layer.fit_hash(torch.randn(8, 17, 24), torch.Generator().manual_seed(0))
    assert (layer.bit_weight == 1).all() and not (layer.floor == 1).all()


def test_paper_accounting_of_one_block_by_hand(images):
    tokens, heads, channels, bits, anchors = 7, 3, 8, 8, 5
    layers = [vit(spec).blocks[0].attn for spec in VARIANTS]
    attention_muls = bits + 1 + channels
    attention_adds = 2 * bits + 2 * bits * channels + channels
    hash_muls, hash_adds = 2 * anchors + anchors * bits, 2 * anchors * channels + anchors * bits
    shared_out = heads * bits * (channels + 1)
    for layer, hashes, muls, adds in (
        (layers[0], 2, hash_muls, hash_adds),
        (layers[1], 2, channels * bits, channels * bits),
        (layers[2], 1, hash_muls, hash_adds),
        (layers[3], 2, hash_muls, hash_adds),
        (layers[4], 2, hash_muls, hash_adds),
        (layers[5], 2, hash_muls, hash_adds),
    ):
        assert layer.paper_core_ops(tokens) == (
            heads * tokens * (hashes * muls + attention_muls) + (shared_out if layer.spec.bit_weights else 0),
            heads * tokens * (hashes * adds + attention_adds),
        )


@pytest.mark.parametrize("convention", ["paper", "audited"])
@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
def test_ledger_counts_every_operation(spec, convention):
    ledger = count(vit(spec), 16, convention=convention, strict=True)
    assert ledger.uncounted == [] and ledger.attention().energy_pj(load_profile("45nm_fp32")) > 0
    if convention == "audited":
        # Products with codes are additions: the only ones left are those of the hash, the weights and the division.
        products = [e for e in ledger.attention().entries if e.function.endswith("binary_attention")]
        assert products and all(entry.counts["fma"] == 0 for entry in products)


def test_published_size_costs_less_core_energy_than_ecoformer():
    def energy(spec):
        with torch.device("meta"):
            model = timm.create_model("pvt_v2_b0")
            convert(model, spec)
        names = {f"stages.{stage}.blocks.{block}.attn" for stage in range(3) for block in range(2)}
        ledger = count(model, 224, convention="paper").attention(projections=True)
        layers = ledger.select(lambda entry: entry.attention in names)
        profile = load_profile("45nm_fp32")
        return layers.attention().energy_pj(profile), layers.energy_pj(profile)

    official, tuned = energy(EcoFormerSpec()), energy(EcoFormerTunedSpec())
    assert 0.8 < tuned[0] / official[0] < 1
    assert 1 < tuned[1] / official[1] < 1.5


def test_keys_that_were_kept_for_a_shared_projection_train_again_in_another_kind():
    model = vit(VARIANTS[2])
    convert(model, MSASpec())
    assert all(parameter.requires_grad for parameter in model.parameters())
