"""Killed, stopped and failing runs end in the state of the undisturbed run. docs/reliability.md lists what is tried."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import assert_same, assert_same_run, metrics

from ecoformer.model.checkpoint import load_checkpoint

Fork = Callable[..., list[int]]
HERE = Path(__file__).parent
MOMENTS = {"training": 4, "save": 3, "hash fit": 2, "metrics": 1}  # how many of each kind are tried


@pytest.fixture(scope="module")
def fork() -> Iterator[Fork]:
    """fork((function, arguments), ...): the exit codes of fault_child's functions, run side by side."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / "fault_child.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None

    def run(*calls: tuple[str, dict[str, Any]]) -> list[int]:
        child.stdin.write(json.dumps(calls) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    yield run
    child.stdin.close()
    child.wait()


@pytest.fixture(scope="module")
def undisturbed(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert fork(("train", {"run_dir": str(run_dir)})) == [0]
    return run_dir


def chosen_moments(names: list[str]) -> list[int]:
    """Ten moments of the run, drawn once and for all."""
    generator = random.Random(2022)
    chosen = []
    for kind, count in MOMENTS.items():
        chosen += generator.sample([n for n, name in enumerate(names) if name.startswith(kind)], count)
    return chosen


@pytest.mark.parametrize("number", range(sum(MOMENTS.values())))
def test_fault_kill_9_at_a_random_moment(number: int, fork: Fork, undisturbed: Path, tmp_path: Path) -> None:
    names = json.loads((undisturbed / "moments.json").read_text())
    moment = chosen_moments(names)[number]
    run_dir = tmp_path / "killed"
    where = f"moment {moment} of {len(names)}: {names[moment]}"
    assert fork(("train", {"run_dir": str(run_dir), "kill_at": moment})) == [-signal.SIGKILL], where
    assert fork(("train", {"run_dir": str(run_dir)})) == [0], where
    assert_same_run(undisturbed, run_dir)
    assert sorted(path.name for path in (run_dir / "top").iterdir()) == ["epoch-1.pt", "epoch-2.pt"]
    assert not list(run_dir.rglob("*.tmp")) and not list(run_dir.glob("earlier-*"))


def test_fault_sigterm_to_the_whole_process_group(fork: Fork, tmp_path: Path) -> None:
    """Loader workers get it too; the step is finished and saved all the same."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in "abc":
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(256, size=(20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{n}.png")

    def run(name: str, stop: bool) -> list[int]:
        arguments = {"run_dir": str(tmp_path / name), "root": str(tmp_path / "data"), "stop": stop}
        return fork(("train_on_files", arguments))

    assert run("straight", False) == [0]
    assert run("stopped", True) == [143]
    assert load_checkpoint(tmp_path / "stopped" / "last.pt")["step"] == 6
    assert run("stopped", False) == [0]
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


class TestTwoRanks:
    @pytest.fixture(scope="class")
    def ranks(self, fork: Fork) -> Callable[..., list[int]]:
        def run(run_dir: Path, **options: Any) -> list[int]:
            run_dir.mkdir(exist_ok=True)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                common = {"run_dir": str(run_dir), "port": free.getsockname()[1], **options}
            return fork(*(("train_rank", {**common, "rank": rank}) for rank in range(2)))

        return run

    @pytest.fixture(scope="class")
    def straight(self, ranks: Callable[..., list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
        run_dir = tmp_path_factory.mktemp("ranks") / "straight"
        assert ranks(run_dir) == [0, 0]
        return run_dir

    def test_fault_nan_on_one_rank_is_skipped_on_both(
        self, ranks: Callable[..., list[int]], straight: Path, tmp_path: Path
    ) -> None:
        assert ranks(tmp_path, fault="nan", skip=1) == [0, 0]
        first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
        batch_norm = ("norm.running_mean", "norm.running_var")  # each rank's own until the next forward pass
        for key, value in first.items():
            assert value.isfinite().all() and second[key].isfinite().all(), key
            assert key in batch_norm or torch.equal(value, second[key]), key
        skipped = [record for record in metrics(tmp_path) if record["event"] == "skipped_batch"]
        assert [(r["step"], r["ranks"], r["reason"], r["skipped"]) for r in skipped] == [(3, [1], "loss", 1)]

    def test_fault_nan_on_one_rank_stops_both(self, ranks: Callable[..., list[int]], tmp_path: Path) -> None:
        assert ranks(tmp_path, fault="nan") == [2, 2]
        for rank in range(2):
            message = (tmp_path / f"error{rank}.txt").read_text()
            assert "loss is nan at step 3 of epoch 1 on rank 1, learning rate" in message

    def test_fault_sigterm_to_one_rank_stops_both_at_the_same_step(
        self, ranks: Callable[..., list[int]], straight: Path, tmp_path: Path
    ) -> None:
        assert ranks(tmp_path, fault="term") == [143, 143]
        saved = load_checkpoint(tmp_path / "last.pt")
        assert saved["step"] == 10 and saved["training"]["position"]["steps"] == 4
        assert ranks(tmp_path) == [0, 0]
        assert_same_run(straight, tmp_path)

    def test_fault_killed_rank(self, ranks: Callable[..., list[int]], straight: Path, tmp_path: Path) -> None:
        codes = ranks(tmp_path, fault="kill")
        assert codes[1] == -signal.SIGKILL and codes[0] != 0
        assert load_checkpoint(tmp_path / "last.pt")["step"] == 8
        assert ranks(tmp_path) == [0, 0]
        assert_same_run(straight, tmp_path)
        finished = [[torch.load(d / f"rank{r}.pt", weights_only=True) for r in range(2)] for d in (straight, tmp_path)]
        assert_same(*finished)
