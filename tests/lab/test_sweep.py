"""Gathering runs of any state; tables, plots and the command lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from study_helpers import write_run

from ecoformer.cli import study as study_command
from ecoformer.cli import sweep
from ecoformer.files.table import energy_unit
from ecoformer.lab.study.plan import StudyConfig, jobs
from ecoformer.lab.study.plots import front, plot_hash_quality
from ecoformer.lab.study.reports import report, sweep_report
from ecoformer.lab.study.runner import run_jobs
from ecoformer.report.runs import find_runs, read_epochs, read_records

ROOT = Path(__file__).resolve().parents[2]


def test_a_sweep_is_gathered_with_the_settings_that_differ_and_its_unfinished_runs(tmp_path: Path) -> None:
    common = {"seed": 0, "output_dir": "differs", "attention": {"name": "ecoformer"}}
    for bits, top1 in ((8, 60.0), (16, 70.0)):
        settings = common | {"attention": {"name": "ecoformer", "num_bits": bits}, "output_dir": f"{bits}"}
        write_run(tmp_path / f"{bits}", settings, top1, energy_pj=bits * 1e8)
    write_run(tmp_path / "unfinished", common)
    write_run(tmp_path / "8" / "earlier-1", common, 10.0)
    failed = write_run(tmp_path / "failed", common)
    (failed / "job.json").write_text('{"exit_code": 2}')
    (failed / "log.txt").write_text("epoch\nerror: no such thing\n\n")
    broken = write_run(tmp_path / "broken", common)
    (broken / "summary.json").write_text('{"top1": 3')

    text = sweep_report(tmp_path, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(row["run"], row["settings"]) for row in found["rows"]] == [
        ("16", {"attention.num_bits": 16}),
        ("8", {"attention.num_bits": 8}),
    ]
    assert sorted(found["unfinished"]) == [
        "broken: unreadable summary.json, 1 epoch done",
        "failed: failed, 1 epoch done: error: no such thing",
        "unfinished: unfinished, 1 epoch done",
    ]
    assert "2 of 5 runs finished" in text and "attention.num_bits" in text
    assert {"sweep.md", "sweep.csv", "sweep.tex", "front.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_runs_whose_files_say_too_little_neither_stop_a_sweep_nor_swell_it(tmp_path: Path) -> None:
    """A run whose config is gone differs in no setting; a summary without a run's figures is none."""
    for name in ("whole", "bare", "hollow"):
        write_run(tmp_path / name, {"seed": 0, "train": {"epochs": 3}, "attention": {"name": "msa"}}, 50.0)
    (tmp_path / "bare" / "config.yaml").unlink()
    (tmp_path / "hollow" / "summary.json").write_text('{"top1": 3.0}')
    text = sweep_report(tmp_path, tmp_path)
    assert "2 of 3 runs finished" in text and "hollow: unreadable summary.json" in text
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [(row["run"], row["settings"]) for row in rows] == [("bare", {}), ("whole", {})]


def test_defaults_of_different_kinds_are_no_settings_of_a_sweep(tmp_path: Path) -> None:
    kinds: list[dict[str, object]] = [
        {"name": "ecoformer", "num_bits": 16, "num_anchors": 25},
        {"name": "distilled_hash", "num_bits": 16, "fit_lr": 0.03},
        {"name": "distilled_hash", "num_bits": 8, "fit_lr": 0.03},
        {"name": "msa"},
    ]
    for number, attention in enumerate(kinds):
        write_run(tmp_path / f"{number}", {"seed": 0, "attention": attention}, 50.0 + number)
    sweep_report(tmp_path, tmp_path)
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert list(rows[0]["settings"]) == ["attention.name", "attention.num_bits"]
    assert rows[2]["label"] == "name=distilled_hash, num_bits=8"


def test_a_run_is_labelled_by_its_settings_where_these_are_few_and_else_by_its_folder(tmp_path: Path) -> None:
    for number, compress in enumerate(["none", "low_rank"]):
        settings = {"attention": {"name": "msa"}, "compress": {"name": compress}, "optim": {"name": f"sgd{number}"}}
        write_run(tmp_path / "few" / f"{number}", settings, 50.0)
        write_run(tmp_path / "many" / f"{number}", {f"key_{key}": number for key in range(20)}, 50.0)
    labels = {}
    for folder in ("few", "many"):
        sweep_report(tmp_path / folder, tmp_path / folder)
        rows = json.loads((tmp_path / folder / "sweep.json").read_text())["rows"]
        labels[folder] = [row["label"] for row in rows]
    assert labels["few"] == [
        "compress.name=none, optim.name=sgd0",
        "compress.name=low_rank, optim.name=sgd1",
    ]
    assert labels["many"] == ["0", "1"]


def test_a_sweep_without_a_finished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"seed": 0})
    assert "1 run, none finished" in sweep_report(tmp_path, tmp_path)


@pytest.mark.parametrize(("make", "message"), [(False, "is no folder"), (True, "holds no run")])
def test_a_folder_without_runs_is_one_line_and_exit_code_2(
    tmp_path: Path, one_line: Callable[..., str], make: bool, message: str
) -> None:
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    assert message in one_line(sweep.main, folder)


def test_the_front_holds_what_no_other_point_beats() -> None:
    assert front([(1, 5), (2, 4), (3, 9), (3, 9), (2, 7)]) == [0, 4, 2, 3]


@pytest.mark.parametrize(("energies", "unit"), [([2e9, 3e5], "mJ"), ([5e8], "µJ"), ([0.5], "pJ"), ([], "pJ")])
def test_energies_are_shown_in_the_unit_of_the_largest(energies: list[float], unit: str) -> None:
    assert energy_unit(energies)[1] == unit


def test_a_study_is_reported_in_every_format(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = jobs(study, out)
    run_jobs(planned, trainer, "python", lambda line: None)
    text = report(study, planned, out)
    assert "50.50 ± 0.71" in text and "70.44" in text
    assert json.loads((out / "table.json").read_text())[0]["backbone"] == "net"
    written = {path.name for path in out.iterdir()}
    assert {"table.md", "table.csv", "table.tex", "net_energy.png", "net_curves.png"} <= written
    assert "net_hash_quality.png" not in written, "there were no hash fits to draw"


def test_measured_speeds_take_the_place_of_the_runs_own(study: StudyConfig, trainer: list[str], tmp_path: Path) -> None:
    planned = jobs(study, tmp_path / "out")
    run_jobs(planned[:2], trainer, "python", lambda line: None)
    rates = {"net": {"rates": {"msa": {"median": 777.0}}}}
    (tmp_path / "out" / "speed.json").write_text(json.dumps(rates))
    assert "777" in report(study, planned, tmp_path / "out")


def test_hash_quality_is_drawn_where_fits_know_their_error(tmp_path: Path) -> None:
    fit = {"epoch": 0, "attention_error": 0.3, "random_error": 0.9, "uniform_error": 0.8}
    out = tmp_path / "quality.png"
    assert not plot_hash_quality({"a": [{"epoch": 0, "attention_error": None}]}, out) and not out.exists()
    assert plot_hash_quality({"a": [fit, {**fit, "epoch": 1}]}, out) and out.exists()


def test_records_cut_short_by_a_kill_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "run", {"seed": 0})
    (found,) = find_runs(tmp_path)
    assert found.state == "unfinished, 1 epoch done"
    assert len(read_records(found.path, "epoch")) == 1  # read again, noted once
    assert caplog.text.count("metrics.jsonl: its last line was cut short") == 1


def test_numbers_that_were_not_finite_are_none_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"seed": 0})
    (run / "metrics.jsonl").write_text('{"event": "epoch", "loss": NaN}\n{"event": "epoch", "loss": null}\n')
    assert [record["loss"] for record in read_records(run, "epoch")] == [None, None]
    (run / "metrics.csv").write_text("epoch,train_loss,val_top1\n0,,50.0\n")
    assert math.isnan(read_epochs(run)[0]["train_loss"])
    (run / "metrics.csv").write_text("epoch,train_loss,val_top1\n0,1.0,50.0\n1,0.9,4")
    assert [row["val_top1"] for row in read_epochs(run)] == [50.0], "4 is the start of a number"
    (run / "metrics.jsonl").write_text('{"event": "epoch"}\n[]\n')
    assert "line 2 is not a metrics record" in find_runs(tmp_path)[0].state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "cifar10", "--report"], "holds no finished row of CIFAR-10"),
        (["--table", "cifar10", "--only", "none"], "--only 'none' matches no run"),
        (["--table", "nonsense"], "'nonsense' is no table: give cifar10, "),
        (["--table", "cifar10", "--dry-run", "--only", "vit/msa/seed0", "train.lr=1"], "train.lr"),
    ],
)
def test_reproduce_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert study_command.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_a_dry_run_predicts_the_energy_of_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--table", "cifar10", "--dry-run", "--only", "vit/msa/seed*", "--out", str(tmp_path)]
    assert study_command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[-1].startswith("4 runs of "), "stage 1 and three seeds, with a command each"
    assert "µJ an image" in lines[0] and "µJ in attention" in lines[0] and "python train.py data=cifar10" in lines[1]
    arguments = ["--table", "language", "--dry-run", "--only", "listops/stage1-uniform", "--out", str(tmp_path)]
    assert study_command.main(arguments) == 0
    assert "µJ a sample, " in capsys.readouterr().out


def test_where_every_run_fails_the_reason_is_not_a_missing_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ecoformer.lab.study.runner.run_jobs", lambda jobs, *rest: list(jobs))
    assert study_command.main(["--table", "cifar10", "--only", "vit/msa/seed0", "--out", str(tmp_path)]) == 2
    assert "no row of cifar10 is finished: the runs that failed are listed above" in capsys.readouterr().err
