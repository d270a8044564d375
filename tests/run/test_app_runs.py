"""Whole runs: what they leave, how they are continued, converted and evaluated."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from app_helpers import TINY_DIGITS, TINY_HASH
from fresh import Fresh
from fresh import command as run_command
from omegaconf import OmegaConf

from ecoformer import InputError, attention_layers, fit_hashes
from ecoformer.config.loading import load_config
from ecoformer.config.schema import Config
from ecoformer.data.sources import SOURCES
from ecoformer.run.saved import save_weights
from ecoformer.run.start import build_model, model_of_run, read_run

Train = Callable[..., dict[str, Any]]
Runs = Callable[[str], Path]
LONG = ["train.epochs=4", "train.max_steps=8"]  # 32 steps: long enough to be killed on the way


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


class TestResume:
    line = ("experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH, *LONG, "callbacks.hash_update.every=2")

    def test_killed_and_resumed_equals_undisturbed(
        self, train: Train, fresh: Callable[..., Fresh], tmp_path: Path
    ) -> None:
        whole = train(tmp_path / "whole", *self.line)
        killed = fresh(run_command, ["train", *self.line, f"output_dir={tmp_path / 'killed'}"])
        killed.wait_for(tmp_path / "killed" / "last.pt")
        killed.kill(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert torch.load(tmp_path / "killed" / "last.pt", weights_only=True)["epoch"] < 4
        resumed = train(tmp_path / "killed", *self.line, "resume=auto")
        assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
        for key in ("top1", "top5", "loss", "best_epoch", "epochs", "energy_pj"):
            assert resumed[key] == whole[key]

    def test_sigterm_stops_with_one_line_and_143(self, fresh: Callable[..., Fresh], tmp_path: Path) -> None:
        stopped = fresh(run_command, ["train", *self.line, f"output_dir={tmp_path}"])
        stopped.wait_for(tmp_path / "last.pt")
        stopped.kill(signal.SIGTERM)
        assert stopped.wait() == 143
        errors = stopped.stderr
        assert errors.count("\n") == 1 and "SIGTERM" in errors and "resume=auto" in errors

    def test_auto_without_a_run_starts_anew_and_says_so(
        self, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = ["experiment=digits_msa", *TINY_DIGITS, "train.progress=true", "resume=auto"]
        assert train(tmp_path, *line)["epochs"] == 1
        assert "holds no last.pt, starting anew" in capsys.readouterr().out
        assert train(tmp_path, *line)["epochs"] == 1  # finished: nothing is left to do

    def test_a_finished_run_can_be_made_longer(self, train: Train, tmp_path: Path) -> None:
        line = ["experiment=digits_msa", *TINY_DIGITS, "schedule.warmup_epochs=0"]
        assert train(tmp_path, *line)["epochs"] == 1
        assert train(tmp_path, *line, "train.epochs=2", "resume=auto")["epochs"] == 2


def test_what_a_run_leaves(digits_runs: Runs) -> None:
    folder = digits_runs("ecoformer")
    summary = json.loads((folder / "summary.json").read_text())
    config = load_config(Config, OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
    assert config.output_dir == str(folder) and config.attention["fit_steps"] == 2
    assert summary["attention_options"]["numerator"] == "own_token"
    assert summary["versions"].keys() >= {"torch", "timm", "ecoformer"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fits = [record for record in records if record["event"] == "hash_fit"]
    assert len(fits) == 3 and [record["event"] for record in records].count("epoch") == 1
    contract = "block epoch seconds objective_before objective_after accepted_bits correlation bit_balance flipped_bits"
    assert all(set(contract.split()) <= fit.keys() and fit["held_out_images"] == 16 for fit in fits)
    assert (folder / "hash_fits.png").is_file()
    (start,) = json.loads((folder / "provenance.json").read_text())["starts"]
    assert start["outcome"] == "finished" and start["started"] <= start["ended"]
    assert f"{summary['top1']:.2f} %" in (folder / "console.log").read_text()  # also the table at the end
    assert not list(folder.glob("*.tmp"))


def test_overwrite_sets_the_earlier_run_aside(train: Train, tmp_path: Path) -> None:
    line = ["experiment=digits_msa", *TINY_DIGITS]
    train(tmp_path, *line)
    first = (tmp_path / "best.pt").read_bytes()
    assert train(tmp_path, *line, "overwrite=true", "seed=1")["seed"] == 1
    assert (tmp_path / "earlier-1" / "best.pt").read_bytes() == first
    assert OmegaConf.load(tmp_path / "earlier-1" / "config.yaml").seed == 0


@pytest.mark.parametrize("kind", ["stock", "msa", "ecoformer"])
def test_eval_gives_the_figures_of_the_summary(
    kind: str, digits_runs: Runs, command: Callable[..., int], tmp_path: Path
) -> None:
    folder = digits_runs(kind)
    line = [f"checkpoint={folder / 'best.pt'}", f"attention={kind}", "device=cpu", f"out={tmp_path / 'eval.json'}"]
    assert command("eval", *line) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    timed = {"images_per_second", "train_images_per_second", "duration_s", "best_epoch", "last_top1"}
    for key in summary.keys() - timed:
        assert found[key] == summary[key], key
    assert found["images_per_second"] > 0


def test_eval_follows_its_own_settings(digits_runs: Runs, command: Callable[..., int], tmp_path: Path) -> None:
    line = [f"checkpoint={digits_runs('msa') / 'best.pt'}", "energy=audited", "data.max_val_samples=8", "batch_size=4"]
    assert command("eval", *line, "data.img_size=64", f"out={tmp_path / 'eval.json'}") == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert (found["energy_convention"], found["num_images"], found["img_size"]) == ("audited", 8, 64)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_images_of_another_source_are_prepared_as_those_of_the_run(
    in_chans: int, train: Train, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "experiment=digits_msa", *TINY_DIGITS, f"model.in_chans={in_chans}")
    checkpoint = tmp_path / "run" / "best.pt"
    splits = SOURCES["digits"](read_run(checkpoint).config.data)
    for index, label in enumerate(splits.val.targets.tolist()):
        folder = tmp_path / "archive" / splits.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        splits.val.open(index).save(folder / f"{index}.png")
    found = {}
    for name, line in {"digits": [], "folder": ["data.name=folder", f"data.root={tmp_path / 'archive'}"]}.items():
        options = ["data.max_val_samples=2000", "device=cpu", f"out={tmp_path / name}.json"]
        assert command("eval", f"checkpoint={checkpoint}", *options, *line) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["folder"]["num_images"] == found["digits"]["num_images"] > 99
    assert found["folder"]["loss"] == pytest.approx(found["digits"]["loss"], rel=1e-5)
    assert "normalised and cropped as data=digits" in capsys.readouterr().out


def test_the_averaged_weights_are_the_ones_evaluated_and_handed_on(train: Train, tmp_path: Path) -> None:
    train(tmp_path, "experiment=digits_msa", *TINY_DIGITS, "train.ema_decay=0.5")
    last, best = (read_run(tmp_path / name) for name in ("last.pt", "best.pt"))
    assert_same(last.content["ema"], best.content["model"])
    assert not torch.equal(last.content["ema"]["head.weight"], last.content["model"]["head.weight"])
    assert_same(model_of_run(last).state_dict(), best.content["model"])


class TestInit:
    @staticmethod
    def built(runs: Runs, source: str, target: str, *, num_classes: int = 10, **init: Any) -> Any:
        config = read_run(runs(target) / "best.pt").config
        config.init.checkpoint = str(runs(source) / "best.pt")
        for key, value in init.items():
            setattr(config.init, key, value)
        return build_model(config, num_classes)

    @pytest.mark.parametrize(("source", "target"), [("stock", "msa"), ("stock", "ecoformer"), ("msa", "ecoformer")])
    def test_converts_and_keeps_what_carries_over(self, source: str, target: str, digits_runs: Runs) -> None:
        built = self.built(digits_runs, source, target)
        assert f"{source} -> {target}" in built.origin
        before = read_run(digits_runs(source) / "best.pt").content["model"]
        after = built.model.state_dict()
        for key in ("patch_embed.proj.weight", "stages.0.blocks.0.attn.proj.weight", "head.weight"):
            assert torch.equal(before[key], after[key])
        other = read_run(digits_runs(target) / "best.pt").content["model"]
        assert after.keys() == other.keys()

    @pytest.mark.parametrize("kind", ["stock", "msa", "ecoformer"])
    def test_the_same_kind_keeps_everything(self, kind: str, digits_runs: Runs) -> None:
        built = self.built(digits_runs, kind, kind)
        assert_same(built.model.state_dict(), read_run(digits_runs(kind) / "best.pt").content["model"])

    def test_what_the_named_layers_leave_out_is_part_of_the_config(self, digits_runs: Runs, tmp_path: Path) -> None:
        """Else the checkpoint of such a run would be one that nothing can build again."""
        run = read_run(digits_runs("ecoformer") / "best.pt")
        run.config.init.checkpoint = str(digits_runs("msa") / "best.pt")
        run.config.attention["layers"] = [1]
        with pytest.raises(InputError, match=r"has msa in stages\.1\..*leaves out: set attention\.rest=msa, or name"):
            build_model(run.config, 10)
        for rest, kind in (("msa", "MultiHeadSelfAttention"), ("msa_shift", "ShiftMSAttention")):
            run.config.attention["rest"] = rest
            model = build_model(run.config, 10).model.eval()
            fit_hashes(model, torch.randn(2, 3, 32, 32), seed=0)
            kinds = [type(layer.module).__name__ for layer in attention_layers(model)]
            assert kinds[:3] == ["EcoFormerAttention", kind, kind]  # timm's last stage is softmax attention already
            save_weights(tmp_path / f"{rest}.pt", replace(run, content={**run.content, "model": model.state_dict()}))
            assert_same(model_of_run(read_run(tmp_path / f"{rest}.pt")).state_dict(), model.state_dict())

    def test_reset_head(self, digits_runs: Runs) -> None:
        built = self.built(digits_runs, "msa", "msa", num_classes=3, reset_head=True)
        assert built.model.head.weight.shape[0] == 3
        assert built.notes == ["new classifier head: 10 -> 3 classes"]

    def test_second_stage_through_the_command_line(
        self, digits_runs: Runs, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoint = digits_runs("msa") / "best.pt"
        line = ["experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH, "train.progress=true"]
        summary = train(tmp_path, *line, f"init.checkpoint={checkpoint}")
        assert summary["init"] == str(checkpoint) and summary["attention"] == "ecoformer"
        assert "msa -> ecoformer" in capsys.readouterr().out


def test_default_output_dir_and_sweep(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["experiment=digits_stock", *TINY_DIGITS]
    assert command("train", *line) == 0
    assert len(list((tmp_path / "outputs" / "digits_stock").glob("*/summary.json"))) == 1
    # The second of three jobs is refused; the third runs all the same.
    assert command("train", "-m", *line, "train.batch_size=8,7000,4", "output_dir=sweep") == 2
    assert [(tmp_path / "sweep" / str(job) / "summary.json").exists() for job in range(3)] == [True, False, True]
    (start,) = json.loads((tmp_path / "sweep" / "2" / "provenance.json").read_text())["starts"]
    assert "train.batch_size=4" in start["overrides"], "the job's own, of the sweep's three"
    errors = capsys.readouterr().err
    assert "error: job 1 (" in errors and "train.batch_size=7000" in errors
    assert "error: 1 of the sweep's jobs failed" in errors


def test_without_training_a_run_converts_fits_and_evaluates(
    train: Train, command: Callable[..., int], digits_runs: Runs, tmp_path: Path
) -> None:
    start = [
        "experiment=digits_ecoformer",
        *TINY_DIGITS,
        *TINY_HASH,
        f"init.checkpoint={digits_runs('msa') / 'best.pt'}",
    ]
    summary = train(tmp_path / "run", *start, "train.epochs=0")
    assert summary["epochs"] == 0 and "train_images_per_second" not in summary
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert events == ["energy", *["hash_fit"] * 3, "evaluation"]
    before = torch.load(digits_runs("msa") / "best.pt", weights_only=True)["model"]
    assert torch.equal(weights(tmp_path / "run")["head.weight"], before["head.weight"])

    assert command("eval", f"checkpoint={tmp_path / 'run' / 'best.pt'}", f"out={tmp_path / 'figures.json'}") == 0
    assert json.loads((tmp_path / "figures.json").read_text())["top1"] == summary["top1"]
    again = train(tmp_path / "run", *start, "train.epochs=0", "resume=auto")
    assert again["top1"] == summary["top1"] and again["epochs"] == 0
    assert train(tmp_path / "run", *start, "resume=auto")["epochs"] == 1, "and it can be trained on from there"
