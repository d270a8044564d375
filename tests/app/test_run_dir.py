"""The run directory of a launch that is started again: by torchrun, by SLURM, by submitit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_helpers import TINY_DIGITS, TINY_HASH, compose_config

from ecoformer.config.schema import Config
from ecoformer.errors import InputError
from ecoformer.run import directory as run_dir
from ecoformer.run.checks import check_config
from ecoformer.run.directory import RunDir, choose_run_dir, open_run_dir

Runs = Callable[[str], Path]


def config_for(folder: Path, **changes: Any) -> Config:
    config = compose_config("experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH, f"output_dir={folder}")
    for key, value in changes.items():
        setattr(config, key, value)
    check_config(config)
    return config


def start(folder: Path, **changes: Any) -> RunDir:
    """What train.py does with the folder before it trains."""
    config = config_for(folder, **changes)
    chosen = choose_run_dir(config)
    open_run_dir(chosen, config)
    return chosen


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """under_torchrun(n): from here on this process has another agent for each n."""

    def switch(agent: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setattr(run_dir.os, "getppid", lambda: agent)

    return switch


def test_a_restarted_worker_continues_its_own_run(
    digits_runs: Runs, under_torchrun: Callable[[int], None], tmp_path: Path
) -> None:
    under_torchrun(1)
    first = start(tmp_path)
    assert first.resume is None and not first.restarted
    again = start(tmp_path)  # killed before its first checkpoint
    assert again.resume is None and again.restarted and "starting anew" in again.notes[0]
    shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
    assert start(tmp_path).resume == tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"was written with attention\.num_bits=16, now it is 8"):
        choose_run_dir(config_for(tmp_path, attention={**config_for(tmp_path).attention, "num_bits": 8}))


def test_another_launch_is_refused_even_when_torchrun_tries_again(
    digits_runs: Runs, under_torchrun: Callable[[int], None], tmp_path: Path
) -> None:
    under_torchrun(1)
    start(tmp_path)
    shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
    under_torchrun(2)
    for _ in range(2):  # torchrun --max-restarts starts a refused process again
        with pytest.raises(InputError, match="already holds a run"):
            start(tmp_path)


def test_overwrite_sets_aside_once_per_launch(
    digits_runs: Runs, under_torchrun: Callable[[int], None], tmp_path: Path
) -> None:
    under_torchrun(1)
    for name in ("last.pt", "best.pt", "config.yaml"):
        shutil.copy(digits_runs("ecoformer") / name, tmp_path)
    assert start(tmp_path, overwrite=True).resume is None
    shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
    assert start(tmp_path, overwrite=True).resume == tmp_path / "last.pt"
    assert [folder.name for folder in tmp_path.glob("earlier-*")] == ["earlier-1"]


def test_resume_from_a_file_goes_on_from_the_own_checkpoint_after_a_restart(
    digits_runs: Runs, under_torchrun: Callable[[int], None], tmp_path: Path
) -> None:
    under_torchrun(1)
    source = str(digits_runs("ecoformer") / "last.pt")
    assert start(tmp_path, resume=source).resume == Path(source)
    assert start(tmp_path, resume=source).resume == Path(source)
    shutil.copy(source, tmp_path)
    assert start(tmp_path, resume=source).resume == tmp_path / "last.pt"


def test_a_requeued_slurm_job_continues_a_second_run_in_the_allocation_does_not(
    digits_runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    start(tmp_path)
    shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        start(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert start(tmp_path).resume == tmp_path / "last.pt"
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(InputError, match="already holds a run"):
        start(tmp_path)


def test_a_job_of_ours_continues(digits_runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ECOFORMER_JOB", "local 5")
    start(tmp_path)
    shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
    assert start(tmp_path).resume == tmp_path / "last.pt"


def test_a_damaged_launch_file_is_named(tmp_path: Path) -> None:
    start(tmp_path)
    assert json.loads((tmp_path / "launch.json").read_text()) == {"marks": []}
    (tmp_path / "launch.json").write_text("{")
    with pytest.raises(InputError, match=r"launch\.json cannot be read .*: remove it"):
        start(tmp_path)
