"""Runs with compress=low_rank: what they leave, how they are continued, evaluated and converted, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from app_helpers import TINY_DIGITS, compose_config, run_task

from ecoformer.errors import InputError
from ecoformer.model.low_rank import low_rank_layers
from ecoformer.run.start import build_model, model_of_run, read_run

Train = Callable[..., dict[str, Any]]
Runs = Callable[[str], Path]
LOW_RANK = ["compress=low_rank", "compress.energy=0.6", "schedule.warmup_epochs=0"]


@pytest.fixture(scope="module")
def run(digits_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that compressed the stock run's weights and fine-tuned them."""
    folder = tmp_path_factory.mktemp("low_rank") / "run"
    checkpoint = digits_runs("stock") / "best.pt"
    line = ["experiment=digits_stock", *TINY_DIGITS, *LOW_RANK, f"init.checkpoint={checkpoint}"]
    run_task("train", *line, f"output_dir={folder}")
    return folder


def test_report_lies_in_the_run_folder(run: Path) -> None:
    report = json.loads((run / "compression.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["compress"] == {"name": "low_rank", "energy": 0.6}
    assert report["params_after"] == summary["params"] < report["params_before"]
    assert report["ledger"]["paper"]["after"]["energy_pj"] == summary["energy_pj"]
    assert report["ledger"]["audited"]["after"]["muls"] < report["ledger"]["audited"]["before"]["muls"]
    assert all(layer["relative_error"] <= 0.4**0.5 for layer in report["layers"])
    assert "| one image | before | after | saves |" in (run / "compression.md").read_text()


def test_best_is_evaluated_with_its_ranks(run: Path, command: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert command("eval", f"checkpoint={run / 'best.pt'}", "progress=false", "device=cpu", f"out={out}") == 0
    figures, summary = json.loads(out.read_text()), json.loads((run / "summary.json").read_text())
    assert figures["top1"] == summary["top1"] and figures["params"] == summary["params"]


def test_resume_continues_with_the_ranks_of_the_checkpoint(
    run: Path, digits_runs: Runs, train: Train, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    checkpoint = digits_runs("stock") / "best.pt"
    line = ["experiment=digits_stock", *TINY_DIGITS, *LOW_RANK, f"init.checkpoint={checkpoint}"]
    resumed = train(tmp_path / "run", *line, "train.epochs=2", "resume=auto")
    assert resumed["epochs"] == 2
    first, last = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (run, tmp_path / "run"))
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in last.items()}
    assert any(".down." in key for key in last) and not torch.equal(first["head.weight"], last["head.weight"])
    assert (tmp_path / "run" / "compression.json").read_text() == (run / "compression.json").read_text()


def build(run: Path, attention: dict[str, Any] | None = None, **compress: Any) -> Any:
    config = read_run(run / "best.pt").config
    config.init.checkpoint = str(run / "best.pt")
    config.attention = attention or config.attention
    for key, value in compress.items():
        setattr(config.compress, key, value)
    return build_model(config, 10)


def test_from_a_compressed_run_everything_is_kept(run: Path) -> None:
    built, saved = build(run), read_run(run / "best.pt").content["model"]
    assert built.compression is None and not built.notes
    assert all(torch.equal(value, saved[key]) for key, value in built.model.state_dict().items())


@pytest.mark.parametrize("kind", ["msa", "ecoformer"])
def test_from_a_compressed_run_into_another_attention(run: Path, kind: str) -> None:
    options = {"clamp": True, "fit_steps": 2} if kind == "ecoformer" else {}
    built = build(run, {"name": kind, **options})
    assert "low-rank layers were multiplied out" in built.notes[0]
    assert built.compression is not None and low_rank_layers(built.model)
    # MLPs were of low rank already, so compressing their product again changes nothing.
    name = "stages.3.blocks.0.mlp.fc1"
    before = low_rank_layers(model_of_run(read_run(run / "best.pt")))[name].weight
    after = built.model.get_submodule(name)
    assert after.rank <= low_rank_layers(model_of_run(read_run(run / "best.pt")))[name].rank
    assert (after.weight - before).norm() <= 0.64 * before.norm()


def test_from_a_compressed_run_to_full_weights_or_another_rank(run: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    before = model_of_run(read_run(run / "best.pt")).eval()
    full = build(run, name="none", energy=None)
    assert not low_rank_layers(full.model)
    torch.testing.assert_close(full.model.eval()(images), before(images), rtol=1e-4, atol=1e-4)
    other = build(run, energy=None, rank=2)
    assert {layer.rank for layer in low_rank_layers(other.model).values()} == {2}


def test_counted_without_weights() -> None:
    line = ["experiment=digits_msa", *TINY_DIGITS, "compress=low_rank"]
    built = build_model(compose_config(*line, "compress.rank=2"), 10, with_weights=False)
    assert built.compression is not None and all(layer.relative_error is None for layer in built.compression.layers)
    with pytest.raises(InputError, match=r"compress\.energy=0\.9 needs weights"):
        build_model(compose_config(*line, "compress.energy=0.9"), 10, with_weights=False)


def test_dry_run_tells_what_would_be_compressed(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "experiment=digits_msa", *TINY_DIGITS, "compress=low_rank", "dry_run=true") == 0
    assert "compression    low rank (ratio=0.5): " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["compress=lowrank"], "compress=lowrank does not exist; did you mean low_rank?"),
        (["compress.name=svd"], "compress.name=svd does not exist"),
        (["compress.rank=4"], "compress=none takes no options, got rank: add compress=low_rank"),
        (["compress=low_rank", "compress.rank=4", "compress.ratio=0.5"], "exclude each other"),
        (["compress=low_rank", "compress.rank=four"], "compress.rank=four must be a whole number or null"),
        (["compress=low_rank", "compress.rank=500"], "compress.rank=500 compresses none of"),
        (["compress=low_rank", "compress.layers=[]"], "compress.layers=[] chooses nothing"),
        (["compress=low_rank", "compress.layers=['*.nope']"], "'*.nope' matches no Linear layer or convolution"),
        (["compress=low_rank", "compress.ranks=4"], "unknown key compress.ranks; did you mean compress.rank?"),
    ],
)
def test_refusals(refused: Callable[..., str], tmp_path: Path, settings: list[str], message: str) -> None:
    folder = tmp_path / "run"
    assert message in refused("train", "experiment=digits_msa", *TINY_DIGITS, *settings, f"output_dir={folder}")
    assert not folder.exists()


def test_compression_may_not_change_on_resume(run: Path, refused: Callable[..., str]) -> None:
    line = ["experiment=digits_stock", *TINY_DIGITS, f"resume={run / 'last.pt'}"]
    assert "compress.energy=0.6, now it is None" in refused("train", *line)
