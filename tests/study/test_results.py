"""The committed tables are what the committed runs say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoformer.files import json_text, read_json
from ecoformer.files.table import render
from ecoformer.lab.study.plan import jobs, load_study
from ecoformer.lab.study.rows import collect, over_seeds, over_stage1_seeds
from ecoformer.lab.study.speed import with_speed
from ecoformer.lab.study.tables import NOTES, STAGE1_SEED_NOTES, stage1_seed_table, study_table

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {"md": ".md", "csv": ".csv", "latex": ".tex"}


@pytest.mark.parametrize("name", ["cifar10", "cifar10_long", "imagenette"])
def test_a_study_s_tables_follow_from_its_runs(name: str) -> None:
    folder = ROOT / "results" / name
    study = load_study(ROOT / "configs" / "study" / f"{name}.yaml")
    rows = collect(study, jobs(study, folder))
    assert (folder / "table.json").read_text() == json_text(rows, indent=2) + "\n"
    first = min(row["stage1_seed"] for row in rows)
    speed = read_json(folder / "speed.json") if (folder / "speed.json").exists() else {}
    merged = over_seeds(with_speed([row for row in rows if row["stage1_seed"] == first], speed))
    tables = {"table": (study_table(merged), study.title, NOTES)}
    if of_seeds := over_stage1_seeds(rows):
        title = f"{study.title}, stage-1 seeds"
        tables["stage1_seeds"] = (stage1_seed_table(of_seeds), title, STAGE1_SEED_NOTES)
    for stem, (table, title, notes) in tables.items():
        for format, suffix in SUFFIXES.items():
            assert (folder / f"{stem}{suffix}").read_text() == render(table, format, title, notes) + "\n"
