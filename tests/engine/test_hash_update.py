"""When hashes are fitted, on what, and who gets them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from fakes import FakeData, FakeModel, make_trainer
from test_mid_epoch import crash_and_resume
from test_resume import assert_same_run

from ecoformer.config.schema import HashUpdateConfig
from ecoformer.engine.batches import RunningFigures
from ecoformer.engine.hash_update import due, fit_seed, fit_steps, schedule_line
from ecoformer.model.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HashUpdateConfig(), [0]),
        (HashUpdateConfig(at_epochs=[2, 5]), [6, 15]),
        (HashUpdateConfig(at_epochs=[], every=3), [0, 9, 18]),
        (HashUpdateConfig(at_epochs=[1], every=4), [0, 3, 12]),
        (HashUpdateConfig(at_epochs=[]), []),
        (HashUpdateConfig(enabled=False, at_epochs=[0, 1], every=1, every_steps=1), []),
        (HashUpdateConfig(every_steps=10), [0, 10, 20]),
        (HashUpdateConfig(at_epochs=[0, 1], every_steps=9), [0, 3, 9, 18]),
        (HashUpdateConfig(warmup_steps=5, warmup_every=2, every=4), [0, 2, 4, 12]),
        (HashUpdateConfig(every=2, every_steps=4, freeze_epoch=3), [0, 4, 6, 8]),
        (HashUpdateConfig(every_steps=4, freeze_step=9), [0, 4, 8]),
    ],
)
def test_due(config: HashUpdateConfig, expected: list[int]) -> None:
    assert fit_steps(config, steps_per_epoch=3, epochs=8) == expected
    # Pure: asked again, in another order, the answers are the same, so a resume at any step agrees.
    assert [step for step in reversed(range(24)) if due(config, step, 3)] == expected[::-1]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (HashUpdateConfig(every=2), "before epoch 1, 3, on 32 images"),
        (HashUpdateConfig(every=1, num_images=8), "before epoch 1, 2, 3, 4, on 8 images"),
        (HashUpdateConfig(every_steps=5), "before step 1, 6, 11, on 32 images"),
        (HashUpdateConfig(warmup_steps=8, warmup_every=1), "before step 1, 2, 3, 4, 5, ... (8 times), on 32 images"),
        (HashUpdateConfig(enabled=False), "never"),
    ],
)
def test_the_launch_plan_says_when(config: HashUpdateConfig, line: str) -> None:
    assert schedule_line(config, steps_per_epoch=3, epochs=4) == line


def test_seeds_differ_between_steps_and_runs() -> None:
    assert len({fit_seed(seed, step) for seed in range(20) for step in range(50)}) == 1000


def fits_of(run_dir: Path) -> list[tuple[int, int]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(record["epoch"], record["step"]) for record in records if record["event"] == "hash_fit"]


STEPS = HashUpdateConfig(at_epochs=[], every_steps=4, num_images=8)  # an epoch of the fakes has 6 steps


def test_a_resume_across_step_fits_equals_the_undisturbed_run(tmp_path: Path) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    make_trainer(straight, epochs=3, hash_update=STEPS).fit()
    for stop_after in (1, 2, 3):
        resume = parts / "last.pt" if stop_after > 1 else None
        make_trainer(parts, epochs=3, hash_update=STEPS).fit(resume, stop_after=stop_after)
    assert fits_of(straight) == fits_of(parts) == [(0, 0), (0, 4), (1, 8), (2, 12), (2, 16)]
    one, two = (load_checkpoint(run_dir / "last.pt")["model"] for run_dir in (straight, parts))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("step", "fits"), [(0, 1), (3, 0), (4, 1), (5, 0), (6, 0), (8, 1), (12, 1)])
def test_a_step_is_fitted_for_once_wherever_a_run_goes_on(tmp_path: Path, step: int, fits: int) -> None:
    trainer = make_trainer(tmp_path, hash_update=STEPS)
    (update,) = trainer.callbacks
    seen: list[int] = []
    update.fit = lambda trainer, step, on_joint, say: seen.append(step) or []
    trainer.state.step = step
    if step % 6 == 0:  # not called where a run goes on in the middle of an epoch
        update.on_epoch_start(trainer, step // 6)
    update.on_step_start(trainer, step)
    assert seen == [step] * fits


def test_step_fits_do_not_lower_the_training_rate() -> None:
    meter = RunningFigures()
    meter.add(1.0, 1.0, 10)
    meter.started -= 1.0
    with meter.paused():
        time.sleep(0.2)
    assert 8 < meter.images_per_second < 10


def test_fit_comes_before_the_steps_and_reaches_the_ema(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    class Recording(FakeData):
        def calibration_images(self, num_images: int, seed: int) -> torch.Tensor:
            calls.append((num_images, seed))
            assert trainer.step == 6 * len([call for call in calls[:-1]]) * 2  # epochs 0 and 2, 6 steps each
            return super().calibration_images(num_images, seed)

    config = HashUpdateConfig(at_epochs=[0, 2], num_images=5, held_out_images=0)
    trainer = make_trainer(tmp_path, Recording(), hash_update=config, epochs=3, max_steps=None)
    trainer.fit()
    assert calls == [(5, fit_seed(5, 0)), (5, fit_seed(5, 12))]
    assert trainer.state.ema is not None
    assert torch.equal(trainer.state.ema.module.attn.projection, trainer.model.attn.projection)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    fits = [record for record in records if record["event"] == "hash_fit"]
    assert [(record["epoch"], record["step"], record["block"]) for record in fits] == [(0, 0, "attn"), (2, 12, "attn")]
    assert fits[0]["objective_before"] == -1.0 and fits[0]["accepted_bits"] == 3
    for key in ("attention_error", "recall", "correlation"):
        assert fits[0][key] is None  # unknown to this kind
    order = [record["event"] for record in records if record["epoch"] == 0]
    assert order[0] == "hash_fit" and order[-1] == "epoch"


def test_changed_buffers_reach_the_ema(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.state.ema is not None
    trainer.model.attn.projection.fill_(7.0)
    kept = trainer.state.ema.module.attn.projection
    assert not torch.equal(kept, trainer.model.attn.projection)
    trainer.sync_buffers()
    assert kept is trainer.state.ema.module.attn.projection  # in place
    assert torch.equal(kept, trainer.model.attn.projection)


def test_a_model_without_hashes_needs_no_images(tmp_path: Path) -> None:
    class NoImages(FakeData):
        def calibration_images(self, num_images: int, seed: int) -> torch.Tensor:
            raise AssertionError("nothing to fit")

    assert make_trainer(tmp_path, NoImages(), FakeModel(hashed=False)).fit()["epochs"] == 2


def test_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, epochs=1, progress=True).fit()
    out = capsys.readouterr().out
    assert "hash fit before epoch 1: 8 images" in out and "attn" in out and "3/4" in out
    assert "epoch 1/1" in out and "top-1" in out


def test_table_says_between_which_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, epochs=1, progress=True, hash_update=STEPS).fit()
    assert "hash fit before step 5 of epoch 1: 8 images" in capsys.readouterr().out


@pytest.mark.parametrize("at", [3, 4, 5, 8])  # before a fit, right after it, a step later, after the second
def test_a_crash_in_mid_epoch_repeats_no_step_fit_and_skips_none(tmp_path: Path, at: int) -> None:
    options = {"log_every": 1, "checkpoint": {"every_steps": 1}, "hash_update": STEPS}
    make_trainer(tmp_path / "straight", **options).fit()
    crash_and_resume(tmp_path / "parts", at, **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert fits_of(tmp_path / "parts") == [(0, 0), (0, 4), (1, 8)]
