"""The run directory of a launch that is started again: by torchrun, by SLURM, by submitit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from app_helpers import QUICK, TINY_DIGITS, TINY_HASH, TINY_PVT, compose_config, make_folders
from fresh import Fresh, command

from ecoformer.config.schema import Config
from ecoformer.errors import InputError
from ecoformer.run import directory as run_dir
from ecoformer.run.checks import check_config
from ecoformer.run.directory import RunDir, choose_run_dir, opened
from ecoformer.run.lock import LOCK, Owner

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
    with opened(chosen, config):
        pass
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


class TestTheLock:
    def owned_by(self, folder: Path, **changes: Any) -> None:
        (folder / LOCK).write_text(json.dumps({**asdict(Owner.here()), **changes}))

    @pytest.mark.parametrize("changes", [{"process": 2**22 + 1}, {"started": "before"}])
    def test_a_process_that_is_gone_gives_way(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        self.owned_by(tmp_path, **changes)
        config = config_for(tmp_path)
        with opened(choose_run_dir(config), config) as notes:
            assert "which ended without a word" in notes[0]
            assert json.loads((tmp_path / LOCK).read_text()) == asdict(Owner.here())
        assert not (tmp_path / LOCK).exists()

    def test_a_zombie_is_gone(self) -> None:
        child = subprocess.Popen(["true"])
        owner = Owner(Owner.here().host, child.pid, run_dir.started(child.pid))
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_gone()
        child.wait()

    def test_a_living_process_and_another_host_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent = os.getppid()
        self.owned_by(tmp_path, process=parent, started=run_dir.started(parent))
        with pytest.raises(InputError, match=rf"in use by process {parent}: wait for its end, or choose another"):
            choose_run_dir(config_for(tmp_path))
        self.owned_by(tmp_path, host="elsewhere")
        with pytest.raises(InputError, match=r"on host elsewhere: .*, if that process is gone, remove .*run\.lock"):
            choose_run_dir(config_for(tmp_path))
        choose_run_dir(config_for(tmp_path, dry_run=True))
        # The same job, queued again, may come back on another host.
        monkeypatch.setenv("ECOFORMER_JOB", "slurm 5")
        (tmp_path / "launch.json").write_text('{"marks": ["job slurm 5"]}')
        config = config_for(tmp_path)
        with opened(choose_run_dir(config), config) as notes:
            assert "on elsewhere, an earlier start of this launch" in notes[0]

    def test_a_lock_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / LOCK).write_text("")
        with pytest.raises(InputError, match=r"run\.lock cannot be read: .* remove it"):
            choose_run_dir(config_for(tmp_path))

    def test_it_is_released_after_an_error(self, tmp_path: Path) -> None:
        config = config_for(tmp_path)
        with pytest.raises(KeyboardInterrupt), opened(choose_run_dir(config), config):
            raise KeyboardInterrupt
        assert not (tmp_path / LOCK).exists()

    def test_a_run_that_ended_since_the_folder_was_looked_at_is_not_moved(
        self, digits_runs: Runs, tmp_path: Path
    ) -> None:
        config = config_for(tmp_path)
        chosen = choose_run_dir(config)
        shutil.copy(digits_runs("ecoformer") / "last.pt", tmp_path)
        with pytest.raises(InputError, match="already holds a run"), opened(chosen, config):
            pass
        assert (tmp_path / "last.pt").exists() and not (tmp_path / LOCK).exists()


def test_the_same_command_twice_at_once(fresh: Callable[..., Fresh], tmp_path: Path) -> None:
    """The second is refused, the first ends as if it had been alone."""
    folder = tmp_path / "run"
    line = ["train", "experiment=digits_stock", *TINY_DIGITS, "train.epochs=3", f"output_dir={folder}"]
    both = [fresh(command, line) for _ in range(2)]
    codes = [run.wait() for run in both]
    assert sorted(codes) == [0, 2], [run.stderr for run in both]
    refusal = both[codes.index(2)].stderr
    assert refusal.startswith("error: ") and str(folder) in refusal and refusal.count("\n") == 1
    records = [json.loads(record) for record in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if record["event"] == "epoch"] == [0, 1, 2]
    assert (folder / "summary.json").exists() and not list(folder.glob("earlier-*")) and not (folder / LOCK).exists()


def test_a_resume_with_other_classes_or_images_is_refused_and_writes_nothing(
    refused: Callable[..., str], train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    data = make_folders(tmp_path / "data", ["ant", "bee", "cat"], 32, {"train": 6, "val": 2})
    line = ["experiment=digits_stock", "data=folder", "data.img_size=32", "data.num_workers=0", TINY_PVT, *QUICK]
    line += ["train.max_steps=1", "schedule.warmup_epochs=0"]
    folder = tmp_path / "run"
    train(folder, *line, f"data.root={data}")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    other = make_folders(tmp_path / "other", ["ant", "cow", "cat"], 32, {"train": 6, "val": 2})
    again = [*line, f"output_dir={folder}", "resume=auto", "train.epochs=2"]
    # Sorted, "cat" comes second now.
    assert "class 1 was 'bee', now it is 'cat' (3 classes then, 3 now)" in refused(
        "train", *again, f"data.root={other}"
    )
    more = make_folders(tmp_path / "more", ["ant", "bee", "cat"], 32, {"train": 7, "val": 2})
    assert "num_train=18, now it is 21" in refused("train", *again, f"data.root={more}")
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
