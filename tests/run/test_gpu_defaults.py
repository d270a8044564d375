"""What a GPU run takes by default is decided once, and saved; blocks computed again give the same gradients."""

import copy

import pytest
import timm
import torch
from app_helpers import QUICK, TINY_PVT, run_task

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.config.schema import Config
from ecoformer.run.build import checkpoint_gradients, settle


@pytest.mark.parametrize(
    ("device", "has_gpu", "has_bf16", "amp", "deterministic"),
    [
        ("auto", True, True, "bf16", False),
        ("cuda:1", True, False, "fp16", False),
        ("cpu", True, True, "off", True),
        ("auto", False, False, "off", True),
    ],
)
def test_auto_is_what_the_device_does_best(monkeypatch, device, has_gpu, has_bf16, amp, deterministic):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    config = Config(device=device, deterministic=None)
    config.train.amp = "auto"
    settle(config)
    assert (config.train.amp, config.deterministic) == (amp, deterministic)
    asked = Config(device=device)
    asked.train.amp = "fp16"
    settle(asked)
    assert (asked.train.amp, asked.deterministic) == ("fp16", True)


def test_a_run_saves_what_auto_meant(tmp_path):
    settings = ["experiment=digits_msa", TINY_PVT, *QUICK, "train.max_steps=1", "device=cpu", "train.amp=auto"]
    settings += ["deterministic=null", "train.grad_checkpointing=true"]
    run_task("train", *settings, f"output_dir={tmp_path / 'run'}")
    saved = torch.load(tmp_path / "run" / "last.pt")["config"]["settings"]
    assert (saved["train"]["amp"], saved["deterministic"]) == ("off", True)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "vit_tiny_patch16_224"])
def test_blocks_computed_again_give_the_same_gradients(name):
    torch.manual_seed(0)
    size = {} if name.startswith("pvt") else {"img_size": 64, "depth": 2}
    kept = timm.create_model(name, num_classes=5, **size)
    convert(kept, EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2, fit_steps=1), img_size=64)
    images = torch.randn(2, 3, 64, 64)
    fit_hashes(kept, images, seed=0)
    again = copy.deepcopy(kept)
    checkpoint_gradients(again)
    for model in (kept, again):
        model.train()(images).square().sum().backward()
    for (key, expected), found in zip(kept.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=key)


def test_a_model_that_cannot_says_so():
    with pytest.raises(InputError, match=r"grad_checkpointing=true: Linear cannot: leave it out"):
        checkpoint_gradients(torch.nn.Linear(2, 2))
