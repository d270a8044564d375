"""One optimiser step: accumulation, EMA, precision, schedule, loss, and what stops it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fakes import NUM_CLASSES, FakeData, FakeModel, make_model, make_trainer

from ecoformer.config.schema import HashUpdateConfig, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine.batches import grouped, num_groups
from ecoformer.engine.divergence import Diverged
from ecoformer.engine.optim import amp_dtype, build_loss, build_optimizer, build_schedule, scaled_lr
from ecoformer.errors import InputError
from ecoformer.model.checkpoint import load_checkpoint

PLAIN = OptimConfig(name="momentum", lr=0.1, momentum=0.0, weight_decay=0.0)


def plain_model() -> FakeModel:
    return make_model(dropout=0.0, batch_norm=False)


@pytest.mark.parametrize("clip_grad", [None, 0.1])
def test_accumulation_equals_the_large_batch(tmp_path: Path, clip_grad: float | None) -> None:
    """44 images: steps of 24 and 20, once as one batch each, once as batches of 8+8+8 and 8+8+4."""
    optim = OptimConfig(**{**vars(PLAIN), "clip_grad": clip_grad})
    weights = []
    for batch_size, grad_accum in ((24, 1), (8, 3)):
        data = FakeData(batch_size=batch_size)
        trainer = make_trainer(
            tmp_path / str(grad_accum), data, plain_model(), optim=optim, grad_accum=grad_accum, epochs=1
        )
        trainer.fit()
        assert trainer.step == 2
        weights.append(trainer.model.state_dict())
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-5, atol=1e-7, msg=key)


def test_groups() -> None:
    assert [len(group) for group in grouped(range(7), 3, 10)] == [3, 3, 1]
    assert [len(group) for group in grouped(range(7), 3, 2)] == [3, 3]
    assert num_groups(7, 3, None) == 3 and num_groups(7, 3, 2) == 2 and num_groups(6, 3, 5) == 2
    with pytest.raises(InputError, match="fills not one batch"):
        num_groups(0, 1, None)


def test_max_steps_limits_each_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit()
    assert trainer.step == 4


def test_ema_averages_parameters_and_copies_buffers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1, max_steps=1, ema_decay=0.75, optim=PLAIN)
    assert trainer.state.ema is not None
    start = {key: value.clone() for key, value in trainer.model.named_parameters()}
    trainer.fit()
    averaged = dict(trainer.state.ema.module.named_parameters())
    moved = False
    for key, value in trainer.model.named_parameters():
        torch.testing.assert_close(averaged[key], 0.75 * start[key] + 0.25 * value)
        moved |= not torch.equal(start[key], value)
    assert moved
    model_buffers = dict(trainer.model.named_buffers())
    for key, value in trainer.state.ema.module.named_buffers():
        assert torch.equal(value, model_buffers[key]), key
    assert bool(model_buffers["attn.fitted"]) and model_buffers["norm.num_batches_tracked"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path, value: float) -> None:
    data = FakeData()
    model = FakeModel()

    def poison(epoch: int, first_batch: int) -> None:
        if epoch == 1:
            with torch.no_grad():
                model.head.bias.fill_(value)

    data.train_loader.set_epoch = poison
    with pytest.raises(Diverged) as caught:
        make_trainer(tmp_path, data, model, epochs=3).fit()
    message = str(caught.value)
    assert (
        "loss is nan at step 6 of epoch 2 on rank 0, learning rate 0.0075: lower optim.lr" in message
        and "\n" not in message
    )
    assert f"1 of 3 epochs are saved in {tmp_path / 'last.pt'}" in message
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["epoch"] == 1 and all(value.isfinite().all() for value in saved["model"].values())


def test_unfitted_hash_with_updates_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never fitted"):
        make_trainer(tmp_path, hash_update=HashUpdateConfig(enabled=False)).fit()


def test_bf16_channels_last_trains(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, amp="bf16", channels_last=True, smoothing=0.1)
    summary = trainer.fit()
    assert 0 < summary["loss"] < 2 * math.log(NUM_CLASSES)
    assert trainer.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert trainer.model.stem.weight.dtype == torch.float32


def test_amp_names() -> None:
    cpu = torch.device("cpu")
    assert amp_dtype("off", cpu) is None and amp_dtype("bf16", cpu) is torch.bfloat16
    assert amp_dtype("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(InputError, match=r"train\.amp=fp16 needs a GPU, the device is cpu"):
        amp_dtype("fp16", cpu)


def test_losses() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    one_hot = F.one_hot(labels, 5).float()
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(build_loss(TrainConfig())(logits, labels), expected)
    torch.testing.assert_close(
        build_loss(TrainConfig(smoothing=0.3))(logits, one_hot), expected
    )  # soft targets are taken as they are
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(build_loss(TrainConfig(smoothing=0.3))(logits, labels), smoothed)


def test_learning_rate_scaling() -> None:
    assert scaled_lr(OptimConfig(lr=0.1), 1024) == 0.1
    assert scaled_lr(OptimConfig(lr=5e-5, lr_base_batch=512), 256) == 2.5e-5


def test_schedule_is_a_pure_function_of_the_step() -> None:
    def rates(steps: list[int]) -> list[float]:
        model = plain_model()
        optimizer = build_optimizer(model, OptimConfig(lr=0.4), 8)
        config = ScheduleConfig(warmup_epochs=2, warmup_lr=0.1, min_lr=0.02)
        schedule = build_schedule(optimizer, config, TrainConfig(epochs=10), 5)
        assert schedule is not None
        found = []
        for step in steps:
            schedule.step_update(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    straight = rates(list(range(51)))
    assert [rates([step])[0] for step in range(51)] == straight
    assert rates(list(reversed(range(51)))) == straight[::-1]
    assert straight[0] == 0.1 and straight[5] == pytest.approx(0.25)  # half of the warm-up
    assert straight[25] == pytest.approx(0.02 + 0.38 / 2)  # half of the cosine
    assert straight[50] == 0.02


@pytest.mark.parametrize(
    ("optim", "schedule", "message"),
    [
        (OptimConfig(name="adamw_of_tomorrow"), ScheduleConfig(), "optim.name=adamw_of_tomorrow cannot be built"),
        (OptimConfig(name="sgd", betas=[0.9, 0.99]), ScheduleConfig(), "is not an option of optim.name=sgd"),
        (OptimConfig(name="adahessian"), ScheduleConfig(), "optim.name=adahessian cannot take a step with gradients"),
        (OptimConfig(name="fusedadam"), ScheduleConfig(), "optim.name=fusedadam cannot be built"),
        (OptimConfig(), ScheduleConfig(name="cyclic"), "schedule.name=cyclic does not exist; choose one of cosine"),
    ],
)
def test_bad_names_are_refused(tmp_path: Path, optim: OptimConfig, schedule: ScheduleConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, optim=optim, schedule=schedule)


@pytest.mark.gpu
def test_fp16_on_a_gpu_scales_gradients_and_saves_the_scale(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, amp="fp16", device=torch.device("cuda"), grad_accum=2)
    assert trainer.fit()["epochs"] == 2
    saved = load_checkpoint(tmp_path / "last.pt")["training"]
    assert saved["scaler"]["scale"] > 1 and saved["rng"][0]["cuda"] is not None
    assert (
        make_trainer(tmp_path, amp="fp16", device=torch.device("cuda"), grad_accum=2, epochs=3).fit(
            resume=tmp_path / "last.pt"
        )["epochs"]
        == 3
    )


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path: Path) -> None:
    plain, compiled = (
        make_trainer(tmp_path / str(switch), model=plain_model(), optim=PLAIN, compile=switch)
        for switch in (False, True)
    )  # plain_model has no dropout, which a compiled model draws in its own way
    plain.fit()
    compiled.fit()
    assert compiled.network is not compiled.model
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_batch_norm_of_one_image_is_refused(tmp_path: Path) -> None:
    class Pooled(FakeModel):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled = self.stem(images).mean(dim=(2, 3), keepdim=True)
            return self.head(self.norm(pooled).flatten(1))

    with pytest.raises(InputError, match=r"a batch of 1 image is too small for the batch norm .* train\.batch_size"):
        make_trainer(tmp_path, FakeData(batch_size=1), Pooled(hashed=False), batch_size=1).fit()


def test_a_slow_average_is_noted(tmp_path: Path) -> None:
    (note,) = make_trainer(tmp_path, ema_decay=0.9999).notes()
    assert "train.ema_decay=0.9999 is slow for 12 steps" in note and "100% its starting weights" in note
    assert make_trainer(tmp_path, ema_decay=0.5).notes() == make_trainer(tmp_path, ema_decay=0.0).notes() == []
