"""The demo end to end, one short epoch a run: the files, the rows, and the commands that it prints."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = [
    *("model", "attention", "dataset", "img_size", "epochs", "top1", "top5", "params", "muls", "adds", "energy_pj"),
    *("attention_energy_pj", "energy_convention", "images_per_second", "seed", "duration_s", "versions"),
]


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sys.modules.pop("demo", None)
    import demo

    return demo


def test_demo_leaves_table_report_and_plots(demo, tmp_path, capfd):
    settings = ["train.epochs=1", "train.max_steps=2", "data.max_val_samples=40"]
    assert demo.main(["--out", str(tmp_path), *settings]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["attention"] for row in rows] == ["stock", "msa", "ecoformer"]
    assert all(key in row for row in rows for key in KEYS)
    assert all(row["command"].startswith("python train.py experiment=digits_") for row in rows)
    report = (tmp_path / "report.md").read_text()
    assert "40 validation images" in report and "saves vs stock" in report
    assert {"training_curves.png", "code_maps.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "init.checkpoint=" in capfd.readouterr().out


def test_a_failed_run_ends_the_demo_with_its_code(demo, tmp_path, capfd):
    assert demo.main(["--out", str(tmp_path), "train.epohcs=1"]) == 2
    assert "did you mean train.epochs" in capfd.readouterr().err
    assert not (tmp_path / "table.json").exists()
