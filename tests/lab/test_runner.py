"""Running a study: what is finished is skipped, what fails stops only what builds on it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ecoformer.errors import InputError, Interrupted
from ecoformer.lab.study.plan import RowConfig, StudyConfig, jobs
from ecoformer.lab.study.reports import report
from ecoformer.lab.study.rows import collect, of_one_model, over_seeds, over_stage1_seeds
from ecoformer.lab.study.runner import run_jobs
from ecoformer.run.lock import Owner
from ecoformer.run.lock import started as started_at
from ecoformer.run.provenance import commit


def started(folder: Path) -> list[str]:
    return [Path(line).relative_to(folder / "runs").as_posix() for line in (folder / "started.txt").read_text().split()]


def test_a_study_runs_skips_what_is_finished_and_goes_on_after_a_failure(
    study: StudyConfig, trainer: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    planned = jobs(study, out)
    shown: list[str] = []
    failed = run_jobs(planned, trainer, "python", shown.append)
    assert [job.id for job in failed] == ["net/uniform/seed0"]
    assert any("failed with exit code 2: error: uniform attention fell over" in line for line in shown)
    assert started(out) == [job.id for job in planned]

    (out / "runs" / "net" / "uniform" / "mended").touch()
    (out / "started.txt").unlink()
    assert run_jobs(planned, trainer, "python", shown.append) == []
    assert started(out) == ["net/uniform/seed0"], "only what was missing ran again"
    assert all(job.is_finished for job in planned)
    record = json.loads((planned[0].folder / "job.json").read_text())
    assert record["command"] == planned[0].command() and record["exit_code"] == 0


def test_what_was_made_with_other_settings_is_told(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    out, shown = tmp_path / "out", []
    run_jobs(jobs(study, out, ["optim.lr=1", "data.root=a"]), trainer, "python", lambda line: None)
    run_jobs(jobs(study, out, ["optim.lr=2", "data.root=b"]), trainer, "python", shown.append)
    assert shown[0] == "[1/7] net/stage1-msa: finished before, with optim.lr=1 instead of 2"


def test_a_run_of_another_study_is_left_alone(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    planned, shown = jobs(study, tmp_path / "out"), []
    folder = next(job for job in planned if job.id == "net/msa/seed1").folder
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        owner = Owner(Owner.here().host, other.pid, started_at(other.pid))
        (folder / "study.lock").write_text(json.dumps(asdict(owner)))
        failed = run_jobs(planned, trainer, "python", shown.append)
        other.kill()
    assert [job.id for job in failed] == ["net/msa/seed1", "net/uniform/seed0"]
    assert any(f"not run: {folder} is in use by process {other.pid}" in line for line in shown)
    assert [path.name for path in folder.iterdir()] == ["study.lock"]


@pytest.mark.parametrize("launch", ["", "'", "no-such-program -x"])
def test_what_launches_nothing_is_refused(study: StudyConfig, trainer: list[str], tmp_path: Path, launch: str) -> None:
    with pytest.raises(InputError, match=r"--launch .*: (give one|correct its quotes)"):
        run_jobs(jobs(study, tmp_path / "out"), trainer, launch, lambda line: None)
    assert not (tmp_path / "out").exists()


def test_sigterm_reaches_the_run_in_hand(study: StudyConfig, tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "def end(*_): os.write(1, b'saved \\xff\\n'); sys.exit(143)\n"  # no UTF-8, as of a driver
        "signal.signal(signal.SIGTERM, end)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    planned = jobs(study, tmp_path / "out")
    with pytest.raises(Interrupted):
        run_jobs(planned, [str(script)], "python", lambda line: None)
    assert (planned[0].folder / "log.txt").read_text() == "saved \ufffd\n"
    assert json.loads((planned[0].folder / "job.json").read_text())["exit_code"] == 143


def test_a_report_does_without_the_runs_that_rows_were_made_of(
    study: StudyConfig, trainer: list[str], tmp_path: Path
) -> None:
    planned = jobs(study, tmp_path / "out")
    run_jobs(planned, trainer, "python", lambda line: None)
    shutil.rmtree(planned[0].folder)
    assert [row["epochs_stage1"] for row in collect(study, planned)] == [3] * 5
    summary = planned[1].folder / "summary.json"
    summary.write_text(json.dumps({"top1": 1, "energy_pj": 1, "attention_energy_pj": 1, "images_per_second": 1}))
    with pytest.raises(InputError, match=r"summary\.json lacks model, .*: remove it, and the run is done again"):
        collect(study, planned)


def test_runs_that_build_on_a_failed_one_are_not_started(
    study: StudyConfig, trainer: list[str], tmp_path: Path
) -> None:
    study.backbones["net"].stage1["msa"] = ["attention=uniform", "train.epochs=3"]
    planned = jobs(study, tmp_path / "out")
    shown: list[str] = []
    assert run_jobs(planned, trainer, "python", shown.append) == planned
    assert started(tmp_path / "out") == ["net/stage1-msa"]
    assert sum("skipped, net/stage1-msa failed" in line for line in shown) == len(planned) - 1


def test_rows_carry_both_epochs_seed_command_and_published_figures(
    study: StudyConfig, trainer: list[str], tmp_path: Path
) -> None:
    planned = jobs(study, tmp_path / "out")
    run_jobs(planned, trainer, "python", lambda line: None)
    rows = collect(study, planned)
    assert [(row["label"], row["seed"], row["epochs_stage1"], row["epochs_stage2"]) for row in rows] == [
        ("msa", 0, 3, 1),
        ("msa", 1, 3, 1),
        ("ecoformer, kernel", 0, 3, 1),
        ("ecoformer, kernel", 1, 3, 1),
        ("ecoformer, kernel, no training", 0, 3, 0),
    ]
    assert rows[0]["top1"] == 50.0, "the last epoch, not the best of several on the same images"
    assert rows[0]["steps_stage2"] == 7
    contract = {"model", "attention", "seed", "epochs_stage1", "epochs_stage2", "top1", "energy_pj"}
    contract |= {"attention_energy_pj", "images_per_second", "command", "commit"}
    assert contract <= rows[0].keys()

    merged = {row["label"]: row for row in over_seeds(rows)}
    hashed = merged["ecoformer, kernel"]
    assert hashed["top1"] == 50.5 and round(hashed["top1_sd"], 6) == 0.707107 and hashed["seeds"] == [0, 1]
    assert hashed["vs_msa"] == 0.0 and hashed["vs_uniform"] is None and hashed["published_top1"] == 70.44
    assert merged["ecoformer, kernel, no training"]["vs_msa"] is None, "no MSA row went without training"


def test_rows_from_scratch_stand_beside_converted_ones(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    study.backbones["net"].rows.append(RowConfig("msa", source="scratch", seeds=[0, 1]))
    planned = jobs(study, tmp_path / "out")
    run_jobs(planned, trainer, "python", lambda line: None)
    steps = [{"model": "pvt_v2_b0", "attention": "msa", "milliseconds": 8.5, "peak_mib": 30.0}]
    (tmp_path / "out" / "steps.json").write_text(json.dumps(steps))
    report(study, planned, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["init"], row["training_seed"], row["epochs_stage2"]) for row in rows[:3]] == [
        ("scratch", 0, 0),
        ("scratch", 1, 0),
        ("converted", 0, 1),
    ]
    assert [rows[0][key] for key in ("task", "accuracy", "step_ms", "peak_mib")] == ["net", 50.0, 8.5, 30.0]
    assert rows[-1]["attention"] == "ecoformer" and rows[-1]["step_ms"] is None
    merged = {row["label"]: row for row in over_seeds(rows)}
    assert merged["msa, from scratch"]["vs_msa"] == 0.0 and merged["ecoformer, kernel"]["vs_msa"] == 0.0


def row(label: str, stage1_seed: int, seed: int, top1: float) -> dict[str, Any]:
    return {
        "backbone": "net",
        "attention": label,
        "label": label,
        "name": "",
        "init": "converted",
        "stage1_seed": stage1_seed,
        "seed": seed,
        "epochs_stage1": 3,
        "epochs_stage2": 1,
        "steps_stage2": 7,
        "top1": top1,
        "images_per_second": 1.0,
    }


def test_over_stage1_seeds_each_trained_model_counts_once_and_is_compared_with_its_own_control() -> None:
    rows = [
        row("msa", 0, 0, 60.0),
        row("msa", 0, 1, 62.0),
        row("msa", 5, 5, 71.0),
        row("ecoformer", 0, 0, 60.0),
        row("ecoformer", 5, 5, 68.0),
        row("none", 0, 0, 10.0),
    ]
    msa, hashed = over_stage1_seeds(rows)
    assert (msa["label"], msa["top1"], msa["stage1_seeds"]) == ("msa", 66.0, [0, 5]), "61 and 71, not all three runs"
    assert (hashed["top1"], hashed["vs_msa"]) == (64.0, -2.0)
    assert round(hashed["top1_sd"], 4) == 5.6569 and round(hashed["vs_msa_sd"], 4) == 1.4142, "-1 and -3"
    assert hashed["vs_stock"] is None and hashed["vs_uniform"] is None


def test_rows_of_other_seeds_stand_in_the_table_only_from_scratch() -> None:
    rows = [row("msa", 0, 0, 60.0), row("msa", 1, 1, 62.0), row("uniform", 1, 1, 50.0)]
    assert of_one_model(rows) == rows[:1]
    for each in rows:
        each["init"] = "scratch"
    assert of_one_model(rows) == [rows[0], rows[2]]


def test_a_control_trained_longer_is_no_control() -> None:
    scratch = {"init": "scratch", "epochs_stage2": 0, "steps_stage2": 0}
    longer, short = row("msa", 0, 0, 80.0) | scratch, row("ecoformer", 0, 0, 60.0) | scratch | {"epochs_stage1": 1}
    assert over_seeds([longer, short])[1]["vs_msa"] is None
    assert over_seeds([longer, short | {"epochs_stage1": 3}])[1]["vs_msa"] == -20.0


def test_rows_at_several_rates_are_set_beside_the_control_at_their_own() -> None:
    slow, fast, kernel = "optim.lr=2e-4", "optim.lr=2e-3", "attention.numerator=kernel"
    rows = [
        row(kind, 0, 0, top1) | {"name": name, "label": f"{kind}, {name}", "overrides": overrides}
        for kind, name, overrides, top1 in (
            *(("msa", "slow", [slow], 60.0), ("msa", "fast", [fast], 50.0), ("msa", "x", [], 10.0)),
            # Named like controls at another rate, or like none.
            *(("ecoformer", "slow", [fast], 48.0), ("ecoformer", "own", [slow], 59.0)),
            *(("ecoformer", "kernel slow", [kernel, fast], 47.0), ("ecoformer", "kernel", [kernel], 9.0)),
        )
    ]
    assert [found["vs_msa"] for found in over_seeds(rows)] == [0.0, 0.0, 0.0, -2.0, -1.0, -3.0, -1.0]


def test_the_report_keeps_trained_models_apart(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    study.backbones["net"].rows[0].stage1_seeds = [4]
    planned = jobs(study, tmp_path / "out")
    run_jobs(planned, trainer, "python", lambda line: None)
    printed = report(study, planned, tmp_path / "out")
    assert "stage-1 seeds" in printed
    assert "| net | msa | msa | 3+1 | +7 | 2 | 50.50 ± 0.71 |" in (tmp_path / "out" / "table.md").read_text()
    # 50.5, the mean of seeds 0 and 1, and 54.
    seeds = (tmp_path / "out" / "stage1_seeds.md").read_text()
    assert "| net | msa | msa | 3+1 | +7 | 2 | 52.25 ± 2.47 | +0.00 ± 0.00 |  |  |" in seeds


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"


def test_runs_side_by_side_wait_for_the_one_they_start_from(
    study: StudyConfig, trainer: list[str], tmp_path: Path
) -> None:
    planned = jobs(study, tmp_path / "out")
    shown: list[str] = []
    failed = run_jobs(planned, trainer, "python", shown.append, parallel=4)
    assert [job.id for job in failed] == ["net/uniform/seed0"]
    order = started(tmp_path / "out")
    assert order[0] == "net/stage1-msa" and sorted(order) == sorted(job.id for job in planned)
