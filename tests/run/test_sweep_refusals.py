"""Sweeps (`train -m`) that cannot run: one line, exit code 2, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("range(0,1,0)", "steps of 0 lead from 0 to no 1"),
        ("range(0,inf)", "steps of 1 lead from 0 to no inf"),
        ("interval(0,1)", "a sweep goes through values: list them, or draw"),
    ],
)
def test_a_sweep_without_an_end_is_one_line(command: Callable[..., int], capsys, values: str, message: str) -> None:
    assert command("train", "-m", "experiment=digits_msa", f"optim.weight_decay={values}", "output_dir=sweep") == 2
    error = capsys.readouterr().err
    assert f"optim.weight_decay={values}: {message}" in error and error.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_refused_sweep_leaves_nothing(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["experiment=digits_msa", "train.epochs=-1,-2", "output_dir=sweep"]
    assert command("train", "-m", *line) == 2
    assert "2 of the sweep's jobs failed" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("output_dir=taken", "taken: a file stands where a folder is to be: name another place"),
        ("output_dir=taken/x", "taken/x: a file stands where a folder is to be"),
        (f"output_dir=sweep hydra.sweep.subdir={'n' * 300}", "n: name too long: shorten it"),
    ],
)
def test_a_sweep_whose_folder_cannot_be_made_is_one_line(command, capsys, line: str, message: str) -> None:
    Path("taken").write_text("mine")
    assert command("train", "-m", "experiment=digits_msa", "seed=0,1", *line.split()) == 2
    assert message in capsys.readouterr().err
    assert Path("taken").read_text() == "mine"


def test_a_sweep_without_jobs_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "-m", "experiment=digits_msa", "attention=glob(nothing*)", "output_dir=sweep") == 2
    assert capsys.readouterr().err.startswith("error: the sweep has no job, for a glob() in it matches nothing")
    assert list(Path.cwd().iterdir()) == []
