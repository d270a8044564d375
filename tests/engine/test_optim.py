"""Optimisers by timm's options: every option reaches the optimiser or is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fakes import make_trainer
from test_resume import assert_same_run
from timm.utils import dispatch_clip_grad
from timm.utils.agc import unitwise_norm

import ecoformer.models  # noqa: F401  # timm knows the encoder for sequences
from ecoformer import MSASpec, convert
from ecoformer.config.schema import Config, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine.optim import build_optimizer, build_schedule, clip_gradients, learning_rate, scaled_lr
from ecoformer.errors import InputError
from ecoformer.run.checks import check_config


def tiny_pvt() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("pvt_v2_b0", num_classes=4, depths=[1, 1, 1, 1], embed_dims=[8, 16, 40, 64])


def test_options_reach_the_optimizer() -> None:
    optim = OptimConfig(eps=1e-5, betas=[0.8, 0.9], kwargs={"amsgrad": True})
    defaults = build_optimizer(tiny_pvt(), optim, 8).defaults
    assert (defaults["eps"], defaults["betas"], defaults["amsgrad"]) == (1e-5, (0.8, 0.9), True)
    assert build_optimizer(tiny_pvt(), OptimConfig(), 8).defaults["eps"] == 1e-8


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (OptimConfig(name="sgd", eps=1e-5), "optim.eps=1e-05 is not an option of optim.name=sgd"),
        (OptimConfig(name="lion", eps=1e-5), "optim.eps=1e-05 is not an option of optim.name=lion"),
        (OptimConfig(kwargs={"amsgrat": True}), "optim.name=adamw cannot be built: .*amsgrat"),
    ],
)
def test_what_the_optimizer_does_not_take_is_refused(optim: OptimConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_optimizer(tiny_pvt(), optim, 8)


@pytest.mark.parametrize("kind", ["stock", "msa"])
def test_layer_decay(kind: str) -> None:
    """A parameter's rate is the decay to the power of its layers beneath the head, in converted models as well."""
    model = tiny_pvt()
    if kind == "msa":
        convert(model, MSASpec(), img_size=64)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, layer_decay=0.5), 8)
    schedule = build_schedule(optimizer, ScheduleConfig(name="constant"), TrainConfig(epochs=1), 4)
    assert schedule is not None
    schedule.step_update(1)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    rate = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert rate["head.weight"] == learning_rate(optimizer) == 0.1
    block = [rate[f"stages.{stage}.blocks.0.mlp.fc1.weight"] for stage in range(4)]
    assert all(lower < upper for lower, upper in zip([rate["patch_embed.proj.weight"], *block], block, strict=False))
    assert all(math.log2(0.1 / value) == round(math.log2(0.1 / value)) for value in rate.values())


def test_layer_decay_of_sequence_models_and_of_models_without_layers() -> None:
    model = timm.create_model("lra_encoder", seq_len=8)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, layer_decay=0.5), 8)
    scale = {id(parameter): group["lr_scale"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert {found["token_embed.weight"], found["pos_embed"]} == {0.125}
    for block, expected in ((0, 0.25), (1, 0.5)):
        assert {value for name, value in found.items() if name.startswith(f"blocks.{block}.")} == {expected}
    assert found["head.weight"] == 1
    with pytest.raises(InputError, match="layer_decay: Linear does not say what its layers are"):
        build_optimizer(torch.nn.Linear(2, 2), OptimConfig(layer_decay=0.5), 8)


def test_an_optimiser_that_keeps_a_dtype_is_saved_and_goes_on(tmp_path: Path) -> None:
    optim = OptimConfig(name="adafactorbv", lr=1e-2)
    make_trainer(tmp_path / "whole", optim=optim, epochs=2).fit()
    make_trainer(tmp_path / "parts", optim=optim, epochs=2).fit(stop_after=1)
    make_trainer(tmp_path / "parts", optim=optim, epochs=2).fit(resume=tmp_path / "parts" / "last.pt")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_square_root_scaling() -> None:
    assert scaled_lr(OptimConfig(lr=0.1, lr_base_batch=256, lr_base_scale="sqrt"), 1024) == pytest.approx(0.2)
    assert scaled_lr(OptimConfig(lr=0.1, lr_base_batch=256), 1024) == pytest.approx(0.4)


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping(mode: str) -> None:
    models = [torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(5, 3)
    for model in models:
        model(images).square().sum().mul(50).backward()
    before = torch.nn.utils.get_total_norm([p.grad for p in models[0].parameters() if p.grad is not None])
    norm = clip_gradients(models[0], OptimConfig(clip_grad=0.02, clip_mode=mode))
    torch.testing.assert_close(norm, before)
    taken = list(models[1].parameters())[: -2 if mode == "agc" else None]  # adaptive clipping leaves out the head
    dispatch_clip_grad(taken, 0.02, mode)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    first = models[0][0].weight
    limit = {"norm": 0.02, "value": 0.06, "agc": 0.02 * unitwise_norm(first.detach()).sum()}[mode]
    assert first.grad.norm() <= limit + 1e-6  # type: ignore[union-attr]


@pytest.mark.parametrize("changes", [{"clip_mode": "agc", "clip_grad": 0.01}, {"layer_decay": 0.7, "eps": 1e-6}])
def test_a_run_with_them_goes_on_exactly(tmp_path: Path, changes: dict[str, Any]) -> None:
    from test_resume import assert_same_run

    def trainer(folder: str) -> Any:
        return make_trainer(tmp_path / folder, optim=OptimConfig(lr=1e-2, **changes))

    trainer("straight").fit()
    trainer("parts").fit(stop_after=1)
    trainer("parts").fit(resume=tmp_path / "parts" / "last.pt")
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"kwargs": {"eps": 1e-6}}, "optim.kwargs.eps=1e-06: write optim.eps=1e-06"),
        ({"lr_base_scale": "sqrt"}, "set that too"),
        ({"clip_mode": "agc"}, "optim.clip_mode=agc clips nothing without a limit"),
    ],
)
def test_meaningless_settings_are_refused(optim: dict[str, Any], message: str) -> None:
    config = Config(optim=OptimConfig(**optim))
    config.model.name = "pvt_v2_b0"
    with pytest.raises(InputError, match=message):
        check_config(config)
