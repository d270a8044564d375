"""`ecoformer study`: how a table is named, how many runs go side by side, and how long what is left takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_helpers import STUDY

from ecoformer.cli import study as command_line
from ecoformer.lab.study.plan import StudyConfig, jobs
from ecoformer.lab.study.remaining import what_is_left


def test_what_is_left_goes_by_the_epochs_on_record(study: StudyConfig, tmp_path: Path) -> None:
    planned = jobs(study, tmp_path)
    assert what_is_left(planned, 2) == "7 runs to do", "nobody knows how long yet"
    first, second = planned[0].folder, planned[1].folder
    first.mkdir(parents=True)
    (first / "metrics.csv").write_text("epoch,seconds\n0,10.0\n1,20.0\n")
    # One of three epochs of the first, one of each other and one for the run without training, 15 s each.
    assert what_is_left(planned, 1) == "7 runs to do, 7 epochs, about 105.0 s"
    assert what_is_left(planned, 2) == "7 runs to do, 7 epochs, about 52.5 s"
    assert what_is_left(planned[:1], 8) == "1 run to do, 1 epoch, about 15.0 s", "no more at a time than there are"
    second.mkdir(parents=True)
    (second / "metrics.csv").write_text("epoch,seconds\n0,30.0\n")
    assert what_is_left(planned[:2], 1) == "2 runs to do, 2 epochs, about 45.0 s", "each at its own pace"
    (first / "summary.json").write_text("{}")
    (second / "metrics.csv").write_bytes(b"\xff\xfe")
    assert what_is_left(planned, 1) == "6 runs to do, 6 epochs, about 90.0 s", "a damaged record counts for nothing"
    (second / "summary.json").write_text("{}")
    assert what_is_left(planned[:2], 1) == "0 runs to do"


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str, cores: int = 3) -> tuple[str, int]:
    """The last job's command and how many go side by side, for a command line on a machine of so many cores."""
    found: list[Any] = []

    def run_jobs(planned: list[Any], trainer: Any, launch: str, show: Any, parallel: int) -> list[Any]:
        found.extend((planned[-1].command(launch), parallel))
        return planned

    monkeypatch.setattr("ecoformer.lab.study.runner.run_jobs", run_jobs)
    monkeypatch.setattr("ecoformer.run.process.available_cores", lambda: cores)
    assert command_line.main(list(arguments)) == 2, "no row is finished"
    return found[0], found[1]


def test_a_table_is_named_first_or_as_an_option_and_may_be_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(STUDY)
    expected = asked(monkeypatch, "--table", "mine.yaml", "device=cpu", "optim.lr=1")
    assert "output_dir=outputs/study/mine/runs/net" in expected[0] and "optim.lr=1" in expected[0]
    assert asked(monkeypatch, "mine.yaml", "device=cpu", "optim.lr=1") == expected
    assert asked(monkeypatch, "device=cpu", "--table", "mine.yaml", "optim.lr=1") == expected
    assert "data=cifar10" in asked(monkeypatch, "cifar10_long", "--only", "vit/msa/seed0", "device=cpu")[0]


def test_on_a_cpu_as_many_runs_as_cores_go_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(STUDY)
    command, parallel = asked(monkeypatch, str(own), "device=cpu", "--out", str(tmp_path / "out"))
    assert parallel == 3 and " threads=1 data.num_workers=0 " in command
    command, parallel = asked(monkeypatch, str(own), "device=cpu", "--jobs", "1", "--out", str(tmp_path / "out"))
    assert parallel == 1 and "threads=" not in command
    for given, parallel, threads in (([], 7, 2), (["--jobs", "3"], 3, 5), (["--only", "net/stage1-msa"], 1, 0)):
        command, found = asked(monkeypatch, str(own), "device=cpu", "--out", str(tmp_path / "out"), *given, cores=16)
        assert found == parallel and (f" threads={threads} " in command or not threads), "no core is idle"
    command, parallel = asked(monkeypatch, str(own), "device=cpu", "threads=2", "--out", str(tmp_path / "out"))
    assert parallel == 3 and command.index("threads=1") < command.index("threads=2"), "the last one holds"
    launched = ["--launch", "torchrun --nproc-per-node 2", "--out", str(tmp_path / "out")]
    command, parallel = asked(monkeypatch, str(own), "device=cpu", *launched)
    assert parallel == 1 and "threads=" not in command


def test_a_table_for_a_gpu_is_planned_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(STUDY)
    assert command_line.main([str(own), "--dry-run", "--only", "net/stage1-msa", "device=cuda"]) == 0
    found = capsys.readouterr().out
    assert "device=cuda" in found and "threads=" not in found and found.splitlines()[-1].startswith("1 run of 7, 1 run")


def test_a_run_that_will_be_refused_is_told_before_the_first_one_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = tmp_path / "mine.yaml", tmp_path / "out"
    own.write_text(STUDY.replace(", attention.clamp=true", ""))
    arguments = [str(own), "device=cpu", "--out", str(out)]
    assert command_line.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: 2 runs of the study cannot be done (net/ecoformer-kernel/seed0, ")
    assert "num_anchors=25 > 16 tokens" in line and line.count("\n") == 1 and not list(out.rglob("*"))
    assert command_line.main([*arguments, "--dry-run"]) == 2
    told = capsys.readouterr()
    assert told.err == line and "net/uniform/seed0: to do, " in told.out, "the others are planned as ever"
    assert "net/ecoformer-kernel/seed0: to do, refused: stage 2" in told.out
