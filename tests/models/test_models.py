"""The published rows in timm's registry."""

import pytest
import timm
import torch

import ecoformer.models
from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.kinds import SPECS, hash_layers


def test_every_row_is_registered():
    assert len(ecoformer.models.MODEL_NAMES) == 9 * len(SPECS)
    assert timm.list_models("*ecoformer*") == sorted(n for n in ecoformer.models.MODEL_NAMES if "ecoformer" in n)
    assert timm.is_model("twins_svt_large_msa") and timm.is_model("pvt_v2_b5_msa_shared_qk")


def test_create_model_takes_spec_and_timm_options():
    model = timm.create_model("pvt_v2_b0_ecoformer", num_classes=5, num_bits=8, num_anchors=4, top_k=2).eval()
    assert {layer.spec.num_bits for layer in hash_layers(model).values()} == {8}
    images = torch.randn(1, 3, 64, 64)
    fit_hashes(model, images, seed=0)
    assert model(images).shape == (1, 5)


def test_img_size_fits_the_attention_to_the_tokens():
    model = timm.create_model("pvt_v2_b0_linformer", img_size=64, proj_dim=20)
    assert [layer.spec.proj_dim for layer in model.modules() if hasattr(layer, "key_mix")] == [20, 20, 20, 20, 16, 16]
    with pytest.raises(InputError, match=r"stage 1 .*: linformer needs the number of tokens"):
        timm.create_model("pvt_v2_b0_linformer")


def test_a_row_is_the_converted_stock_model():
    torch.manual_seed(0)
    row = timm.create_model("twins_svt_small_ecoformer", num_classes=5)
    torch.manual_seed(0)
    stock = timm.create_model("twins_svt_small", num_classes=5)
    convert(stock, EcoFormerSpec())
    assert row.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(row.parameters(), stock.parameters(), strict=True))
