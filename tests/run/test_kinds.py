"""Every attention kind by its name on a command line: a config that says what the spec says, and a step of training."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from app_helpers import CONFIGS, FIT, OPTIONS, QUICK, TINY_PVT, run_task
from matplotlib.figure import Figure

from ecoformer.errors import InputError
from ecoformer.kinds import SPECS, make_spec
from ecoformer.lab.study.kinds import kinds_report
from ecoformer.run.checks import all_settings

CONTRACT = {
    *("stock", "linear_sra", "msa", "msa_shared_qk", "performer", "linformer", "relu_linear", "random_hash"),
    "msa_shift",
    *("binary_qk", "hedgehog", "uniform", "none", "ecoformer", "ecoformer_tuned", "distilled", "distilled_hash"),
}
STEP = [TINY_PVT, *QUICK, *FIT, "train.max_steps=1", "data.max_train_samples=8", "data.max_val_samples=8"]


def test_every_kind_has_a_config_and_every_config_a_kind() -> None:
    assert {"stock", *SPECS} >= CONTRACT
    assert {path.stem for path in (CONFIGS / "attention").glob("*.yaml")} == {"stock", *SPECS}


@pytest.mark.parametrize("kind", SPECS)
def test_the_config_holds_the_spec_s_options_and_defaults(kind: str) -> None:
    found = yaml.safe_load((CONFIGS / "attention" / f"{kind}.yaml").read_text())
    assert found == {"name": kind, **dataclasses.asdict(SPECS[kind]()), "layers": None, "rest": None}


def test_a_resume_knows_options_that_came_after_its_run() -> None:
    now = yaml.safe_load((CONFIGS / "attention" / "distilled.yaml").read_text())
    then = {key: value for key, value in now.items() if key not in ("values", "rest")}
    assert all_settings(then) == all_settings(now)
    assert all_settings(then) != all_settings({**now, "values": "shift"})
    assert all_settings({"name": "stock"}) == {"name": "stock", "layers": None, "rest": None}


def test_an_unknown_kind_is_answered_with_all_of_them(refused: Callable[..., str]) -> None:
    message = refused("train", "experiment=digits_msa", "attention=nonsense")
    listed = re.split("Options: |choose one of ", message)[1].split(", ")
    assert set(listed) == {"stock", *SPECS}
    with pytest.raises(InputError, match=r"attention=nonsense does not exist; choose one of stock, .*uniform"):
        make_spec("nonsense")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """run_of(kind): the folder of a run of one step, made when a test first asks for it."""
    folder = tmp_path_factory.mktemp("kinds")

    def get(kind: str) -> Path:
        if not (folder / kind).exists():
            options = [f"attention={kind}", *OPTIONS.get(kind, []), *STEP]
            run_task("train", "experiment=digits_msa", *options, f"output_dir={folder / kind}")
        return folder / kind

    return get


@pytest.mark.parametrize("kind", ["stock", *SPECS])
def test_a_step_on_digits(kind: str, run_of: Callable[[str], Path]) -> None:
    summary = json.loads((run_of(kind) / "summary.json").read_text())
    assert summary["attention"] == kind and summary["energy_pj"] > summary["attention_energy_pj"] > 0
    assert summary["uncounted"] == []


def test_the_runs_side_by_side(run_of: Callable[[str], Path], tmp_path: Path, drawn: dict[str, Figure]) -> None:
    """Baselines first, controls last, in both conventions."""
    runs = tmp_path / "runs"
    for kind in ("uniform", "relu_linear", "stock", "msa"):
        shutil.copytree(run_of(kind), runs / kind)
    text = kinds_report(runs, tmp_path)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "table.json").read_text())
    assert [row["attention"] for row in rows] == ["msa", "stock", "relu_linear", "uniform"]
    for row in rows:
        assert row["paper"]["uncounted"] == row["audited"]["uncounted"] == []
    assert "uniform (control)" in (tmp_path / "table.md").read_text() and "relu_linear" in text
    (legend,) = drawn["energy.png"].legends
    assert [text.get_text() for text in legend.texts] == [row["attention"] for row in rows]


def test_runs_that_cannot_be_compared_are_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        kinds_report(tmp_path / "none", tmp_path)
    both = tmp_path / "both"
    for name, kind in (("a", "uniform"), ("b", "uniform"), ("c", "none")):
        (both / name).mkdir(parents=True)
        for file in ("summary.json", "config.yaml", "best.pt"):
            (both / name / file).write_bytes((run_of(kind) / file).read_bytes())
    with pytest.raises(InputError, match="two runs of attention=uniform: a and b"):
        kinds_report(both, tmp_path)
    for file in (both / "b").iterdir():
        file.unlink()
    summary = json.loads((both / "c" / "summary.json").read_text())
    (both / "c" / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "compress"}))
    kinds_report(both, tmp_path)  # of a version that compressed nothing
    for key, value in (("epochs", 9), ("patch_stride", 3), ("compress", {"name": "low_rank", "rank": 4})):
        (both / "c" / "summary.json").write_text(json.dumps(summary | {key: value}))
        with pytest.raises(InputError, match=f"c has {key}=.*, a .*: compare like runs"):
            kinds_report(both, tmp_path)
