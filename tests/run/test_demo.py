"""The demo end to end, one short epoch a training: the files, the rows, and the commands that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecoformer.cli import demo
from ecoformer.files.table import markdown
from ecoformer.lab import demo as measured

KEYS = [
    *("model", "attention", "dataset", "img_size", "epochs", "top1", "top5", "params", "muls", "adds", "energy_pj"),
    *("attention_energy_pj", "energy_convention", "seed", "versions", "how", "seconds"),
]


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["demo"])  # Hydra reads the settings of a training there


def test_demo_leaves_tables_a_picture_and_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drawn: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        demo, "KINDS", {kind: {"fit_steps": 2} for kind in ("distilled", "ecoformer", "uniform", "none")}
    )
    monkeypatch.setattr(demo, "SIZES", (224,))
    monkeypatch.setattr(measured, "FIT_IMAGES", 32)
    quick = ["data.img_size=48", "data.max_train_samples=128", "data.max_val_samples=40", "train.max_steps=2"]
    assert demo.main(["--out", str(tmp_path), *quick, "train.epochs=1", "train.progress=false"]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [(row["attention"], row["how"]) for row in rows] == [
        ("msa", "trained, 1 epoch"),
        *((kind, "converted") for kind in ("distilled", "ecoformer", "uniform", "none")),
        ("ecoformer", "converted, then 1 epoch"),
    ]
    assert all(key in row for row in rows for key in KEYS)
    # Converting changes what attention costs, training does not.
    assert rows[2]["energy_pj"] == rows[5]["energy_pj"] < rows[0]["energy_pj"]
    assert rows[3]["attention_energy_pj"] < rows[1]["attention_energy_pj"]
    sizes = json.loads((tmp_path / "energy.json").read_text())
    assert [row["attention"] for row in sizes] == ["stock", "msa", "ecoformer", "distilled"]
    report = (tmp_path / "report.md").read_text()
    assert "36 tokens" in report and "40 validation pictures" in report
    assert report.count("- `python train.py experiment=inks_") == 2
    above, below = drawn["demo.png"].subfigs
    picture, *seen = (axis.images[0].get_array() for axis in above.axes)
    assert len(seen) == 3 and all((view <= picture + 1e-6).all() and view.max() > 0 for view in seen)
    assert len(below.axes[0].lines) == len(rows) + 1  # and guessing
    named = {text.get_text() for text in below.legends[0].texts}
    assert named == {row["attention"] for row in (*rows, *sizes)}
    assert "vs stock" in (tmp_path / "report.html").read_text()
    assert "init.checkpoint=" in capfd.readouterr().out


def row(attention: str, how: str, energy: float, attention_energy: float) -> dict[str, Any]:
    figures = {"energy_pj": energy, "attention_energy_pj": attention_energy, "top1": 98.7654, "seconds": 12.3}
    return {"attention": attention, "how": how, **figures}


def test_savings_are_against_msa() -> None:
    rows = [
        row("msa", "trained", 8e6, 5e6),
        row("ecoformer", "converted", 3e6, 0.5e6),
        row("none", "converted", 9e6, 10e6),
    ]
    table = measured.accuracy_table(rows)
    assert table.headings == [
        *("attention", "weights", "in s", "top-1 %", "energy µJ", "saves vs msa"),
        *("attention only µJ", "saves vs msa"),
    ]
    assert table.cells == [
        ["msa", "trained", "12", "98.77", "8", "-", "5", "-"],
        ["ecoformer", "converted", "12", "98.77", "3", "62.5 %", "0.5", "90.0 %"],
        ["none", "converted", "12", "98.77", "9", "-12.5 %", "10", "-100.0 %"],
    ]
    lines = markdown(table).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_refused_setting_ends_the_demo_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        demo.main(["--out", str(tmp_path), "train.epohcs=1"])
    assert end.value.code == 2
    assert "did you mean train.epochs" in capfd.readouterr().err
    for override in ("output_dir=x", "attention=msa", "init.pretrained=true"):
        assert demo.main(["--out", str(tmp_path), override]) == 2
        assert f"error: {override}: the demo sets" in capfd.readouterr().err
    assert not (tmp_path / "table.json").exists()
