"""The committed tables are what the committed runs say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ecoformer.lab.study.plan import jobs, load_study
from ecoformer.lab.study.reports import write_tables

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ("cifar10", "cifar10_long", "imagenette", "imagenette_long", "language", "listops_long")
MEASURED = ("speed.json", "steps.json")  # what a report reads beside the runs


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_s_tables_follow_from_its_runs(name: str, tmp_path: Path) -> None:
    folder = ROOT / "results" / name
    for file in MEASURED:
        if (folder / file).exists():
            shutil.copy(folder / file, tmp_path)
    study = load_study(ROOT / "configs" / "study" / f"{name}.yaml")
    write_tables(study, jobs(study, folder), tmp_path)
    written = [path for path in tmp_path.iterdir() if path.name not in MEASURED]
    assert len(written) in (4, 7), "table.json, .md, .csv and .tex, and the last three of stage-1 seeds"
    for path in written:
        assert path.read_text() == (folder / path.name).read_text(), path.name
