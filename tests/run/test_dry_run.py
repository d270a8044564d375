"""dry_run=true: what it prints, what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from app_helpers import QUICK, TINY_DIGITS, TINY_HASH, TINY_PVT, compose_config
from torch import nn

from ecoformer.run.build import build_run
from ecoformer.run.checks import check_config
from ecoformer.run.directory import RunDir
from ecoformer.run.plan import class_counts, duration, mib, plan_figures
from ecoformer.run.probe import Probe, probe_run


def test_plan_of_an_image_folder(
    command: Callable[..., int], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "experiment=imagenet_pvt_v2_b0_ecoformer", "init.pretrained=false", TINY_PVT, *QUICK, f"data.root={folders}",
        "data.img_size=64", "data.num_workers=0", "attention.clamp=true", "attention.fit_steps=2",
        "train.grad_accum=2", "train.max_steps=null", "train.ema_decay=0.9", "callbacks.hash_update.num_images=8",
        "callbacks.hash_update.every=2", "train.epochs=6", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert command("train", *line, "dry_run=true", f"dry_run_out={tmp_path / 'plan.json'}") == 0
    plan = capsys.readouterr().out
    for text in (
        "18 train / 9 val images, 3 classes",
        "train 6 / 6 / 6, val 3 / 3 / 3 images (min / median / max)",
        "stage 1: 1 layer of 256",
        "16 = 8 x 2 accumulated x 1 process",
        "1.56e-06 (5e-05 x 16 / 512)",
        "1 x 6 epochs = 6",
        "3 layers, before epoch 1, 3, 5, on 8 images; ",
        "MiB for a batch of 8",
        "last.pt ",
        "step 1 ",
        "expected time",
    ):
        assert text in plan
    assert not (tmp_path / "run").exists()
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["images_per_class"]["val"] == {"ant": 3, "bee": 3, "cat": 3}
    assert figures["hash_fits"] == {"number": 3, "layers": 3, "images": 8}
    memory, seconds, probe = figures["memory_bytes"], figures["expected_seconds"], figures["probe"]
    assert memory["gradients"] == 4 * figures["params"] and memory["ema"] == memory["parameters"]
    assert 8 * figures["params"] <= memory["optimizer"] < 8 * figures["params"] + 4096  # AdamW's two moments
    assert seconds["training"] == pytest.approx(6 * probe["step_seconds"])
    assert seconds["validation"] == pytest.approx(6 * 2 * probe["val_batch_seconds"])
    assert seconds["hash_fits"] == pytest.approx(3 * probe["fit_seconds"])


def test_without_the_probe_nothing_is_computed(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecoformer.run.plan.probe_run", None)
    line = ["experiment=digits_ecoformer", *TINY_DIGITS, f"output_dir={tmp_path / 'run'}", "dry_run=true"]
    assert command("train", *line, "dry_run_probe=false") == 0
    plan = capsys.readouterr().out
    assert "per class" in plan and "expected time" not in plan and not (tmp_path / "run").exists()


def test_the_probe_says_what_would_stop_the_run(refused: Callable[..., str]) -> None:
    line = ["experiment=digits_ecoformer", *TINY_DIGITS, "dry_run=true", "callbacks.hash_update.num_images=65"]
    assert "65 calibration images > 64" in refused("train", *line)
    assert "add dry_run=true" in refused("train", "experiment=digits_msa", "dry_run_out=plan.json")


def test_the_probe_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    config = compose_config("experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH)
    check_config(config)
    run = build_run(config, RunDir(tmp_path / "run", None, []), torch.device("cpu"))
    before = {key: value.clone() for key, value in run.built.model.state_dict().items()}
    probe = probe_run(run)
    assert probe.fit_seconds is not None and probe.peak_bytes is None and probe.start_epoch == 0
    assert 0 <= probe.data_seconds < probe.step_seconds
    assert all(torch.equal(before[key], value) for key, value in run.built.model.state_dict().items())
    assert run.trainer.step == 0 and not run.trainer.state.optimizer.state and not (tmp_path / "run").exists()
    assert sum(class_counts(run.data)["train"].values()) == 64


def test_fits_that_a_run_has_behind_it_take_no_more_time(tmp_path: Path) -> None:
    config = compose_config(
        "experiment=digits_ecoformer", *TINY_DIGITS, "train.epochs=4", "callbacks.hash_update.every=1"
    )
    run = build_run(config, RunDir(tmp_path / "run", None, []), torch.device("cpu"))
    run.trainer.state.epoch, run.trainer.state.step = 3, 3 * run.trainer.steps_per_epoch
    probe = Probe(3, 2.0, 1.0, 1.0, 0.0, 1.0, *[0] * 7, None)
    figures = plan_figures(run, probe)
    assert figures["hash_fits"]["number"] == 4
    assert figures["expected_seconds"]["training"] == run.trainer.steps_per_epoch
    assert figures["expected_seconds"]["hash_fits"] == 2.0


def test_activations_are_counted_once() -> None:
    """A Linear keeps its input, which two users share; cross-entropy keeps the log-probabilities and the labels."""
    from ecoformer.run import probe

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
    stub = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu"), model=model),
        network=model,
        criterion=nn.CrossEntropyLoss(),
        amp_dtype=None,
        memory_format=torch.contiguous_format,
    )
    images, labels = torch.randn(6, 3, 2, 2), torch.arange(6) % 5
    total_weight = 4  # of nll_loss, a scalar
    assert probe._activation_bytes(stub, images, labels) == 6 * 12 * 4 + 6 * 5 * 4 + 6 * 8 + total_weight  # type: ignore[arg-type]


def test_units() -> None:
    assert [duration(s) for s in (1.234, 600, 9000, 200000)] == ["1.2 s", "10.0 min", "2.5 h", "2.3 days"]
    assert [mib(size) for size in (3 * 2**20, 12 * 2**30)] == ["3.0 MiB", "12.0 GiB"]
