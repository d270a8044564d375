"""The demo end to end, one short epoch a run: the files, the rows, and the commands that it prints."""

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_helpers import TINY_HASH, TINY_PVT

from ecoformer.cli import demo
from ecoformer.lab.speed import throughput

KEYS = [
    *("model", "attention", "dataset", "img_size", "epochs", "top1", "top5", "params", "muls", "adds", "energy_pj"),
    *("attention_energy_pj", "energy_convention", "images_per_second", "seed", "duration_s", "versions"),
]


def test_demo_leaves_table_report_and_plots(
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = subprocess.run

    def in_this_process(line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "train" not in line:  # git, of which a run asks where it comes from
            return run(line, **options)
        train = line.index("train")
        return subprocess.CompletedProcess(line, command("train", *line[train + 1 :]))

    monkeypatch.setattr(demo.subprocess, "run", in_this_process)  # the next test starts a process
    quick = functools.partial(throughput.interleaved_throughput, rounds=2, min_seconds=0)
    monkeypatch.setattr(throughput, "interleaved_throughput", quick)
    settings = [TINY_PVT, TINY_HASH[1], "train.epochs=1", "train.max_steps=2", "data.max_val_samples=40"]
    assert demo.main(["--out", str(tmp_path), *settings]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["attention"] for row in rows] == ["stock", "msa", "ecoformer"]
    assert all(key in row for row in rows for key in KEYS)
    assert all(row["command"].startswith("python train.py experiment=digits_") for row in rows)
    report = (tmp_path / "report.md").read_text()
    assert "40 validation images" in report and "saves vs stock" in report
    assert {"training_curves.png", "code_maps.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "init.checkpoint=" in capfd.readouterr().out


def test_a_failed_run_ends_the_demo_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(tmp_path), "train.epohcs=1"]) == 2
    assert "did you mean train.epochs" in capfd.readouterr().err
    assert not (tmp_path / "table.json").exists()
