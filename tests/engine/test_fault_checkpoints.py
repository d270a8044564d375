"""Damaged, foreign and malicious checkpoints, failing disks: the run goes on from a good file, or says why not."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_trainer
from test_checkpoint import Exploit
from test_resume import assert_same, assert_same_run

from ecoformer.errors import InputError
from ecoformer.model.checkpoint import UnreadableCheckpoint, load_checkpoint, save_checkpoint

STEPS = {"checkpoint": {"every_steps": 4}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, and one stopped after its first epoch: last.pt is from step 6, previous.pt from step 4."""
    folder = tmp_path_factory.mktemp("runs")
    make_trainer(folder / "whole", **STEPS).fit()
    make_trainer(folder / "half", **STEPS).fit(stop_after=1)
    return folder


@pytest.fixture
def half(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "half", tmp_path / "half"))


def truncated(path: Path, trap: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bit_flipped(path: Path, trap: Path) -> None:
    data = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["model"]["stem.weight"]
    data[data.find(weights.numpy().tobytes()) + 5] ^= 16
    path.write_bytes(bytes(data))


def empty(path: Path, trap: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path, trap: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, path)


def malicious(path: Path, trap: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "metrics": Exploit(trap)}, path)


def missing(path: Path, trap: Path) -> None:
    path.unlink()  # killed between the two renames of a save


DAMAGE = [truncated, bit_flipped, empty, foreign, malicious, missing]


@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_last_falls_back_to_the_one_before(
    damage: Callable[[Path, Path], None], half: Path, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    previous = (half / "previous.pt").read_bytes()
    damage(half / "last.pt", half / "sprung")
    with caplog.at_level(logging.WARNING):
        make_trainer(half, **STEPS).fit(resume=half / "last.pt", stop_after=1)
    (message,) = caplog.messages
    assert str(half / "last.pt") in message and f"going on from the one before, {half / 'previous.pt'}" in message
    # The damaged file gave way to a good one; it never took the place of previous.pt.
    assert (half / "previous.pt").read_bytes() == previous
    assert load_checkpoint(half / "last.pt")["step"] == 6
    make_trainer(half, **STEPS).fit(resume=half / "last.pt")
    assert_same_run(runs / "whole", half)
    assert not (half / "sprung").exists()


def test_fault_both_checkpoints_damaged(half: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        truncated(half / name, half)
    with pytest.raises(InputError, match=r"last\.pt is truncated.*previous\.pt is truncated.*nothing is left"):
        make_trainer(half, **STEPS).fit(resume=half / "last.pt")


def test_fault_a_newer_version_is_refused_rather_than_passed_over(half: Path) -> None:
    torch.save({**load_checkpoint(half / "last.pt"), "version": 99}, half / "last.pt")
    with pytest.raises(InputError, match="format version 99"):
        make_trainer(half, **STEPS).fit(resume=half / "last.pt")


def test_fault_any_flipped_bit_is_seen_or_harmless(tmp_path: Path) -> None:
    """Anywhere in the file, headers and directory included: refused in one line, or exactly what was saved."""
    path = tmp_path / "last.pt"
    common = {"kind": "weights", "config": {"name": "x"}, "epoch": 1, "step": 6, "metrics": None}
    save_checkpoint(path, {**common, "model": {"w": torch.arange(40.0), "b": torch.ones(3, dtype=torch.long)}})
    whole, expected = path.read_bytes(), load_checkpoint(path)
    generator, refused = random.Random(6), 0
    for _ in range(400):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(data))
        try:
            found = load_checkpoint(path)
        except UnreadableCheckpoint as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert_same(found, expected)
    assert refused > 100


class TestFailingDisk:
    """Write errors in the middle of a run: it stops with one line, and goes on from what was saved before."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
        """failing(call, number, after): os.CALL raises that errno from its call number `after` on."""

        def arm(call: str, number: int, after: int) -> None:
            original, calls = getattr(os, call), iter(range(10_000))

            def fails(*args: Any, **kwargs: Any) -> Any:
                if next(calls) >= after:
                    raise OSError(number, os.strerror(number))
                return original(*args, **kwargs)

            monkeypatch.setattr(os, call, fails)

        yield arm

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
    def test_fault_write_errors(
        self, call: str, number: int, failing: Callable[[str, int, int], None], runs: Path, tmp_path: Path
    ) -> None:
        failing(call, number, 12 if call == "fsync" else 6)
        with pytest.raises(InputError) as caught:
            make_trainer(tmp_path, **STEPS).fit()
        message = str(caught.value)
        assert message.startswith("cannot write ") and os.strerror(number) in message and "\n" not in message
        assert not list(tmp_path.glob("*.tmp"))

    def test_fault_a_disk_that_is_full_for_a_while(
        self, monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path
    ) -> None:
        with monkeypatch.context() as patch:
            calls = iter(range(10_000))
            original = torch.save

            def full(content: Any, file: Any) -> None:
                if next(calls) < 3:
                    return original(content, file)
                file.write(b"x" * 1000)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(torch, "save", full)
            with pytest.raises(InputError, match=r"last\.pt: No space left on device; free space"):
                make_trainer(tmp_path, **STEPS).fit()
        make_trainer(tmp_path, **STEPS).fit(resume=tmp_path / "last.pt")
        assert_same_run(runs / "whole", tmp_path)


@pytest.mark.slow
def test_fault_full_tmpfs(runs: Path, tmp_path: Path) -> None:
    """A real file system of 200 kB: the run stops when it is full; with more room it goes on from there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        with pytest.raises(InputError, match=r"cannot write .*: No space left on device; free space"):
            make_trainer(disk / "run", checkpoint={"every_steps": 1, "keep_top_k": 9}, epochs=9).fit()
        saved = load_checkpoint(disk / "run" / "last.pt")
        assert saved["step"] > 0
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        options: dict[str, Any] = {"checkpoint": {"every_steps": 1, "keep_top_k": 9}, "epochs": 9}
        make_trainer(disk / "run", **options).fit(resume=disk / "run" / "last.pt")
        make_trainer(tmp_path / "straight", **options).fit()
        assert_same_run(tmp_path / "straight", disk / "run")
    finally:
        with suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", str(disk)], check=True)


def test_fault_read_only_folder(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder turned read-only (file systems do after an error): one line, nothing touched."""
    before = {path: path.read_bytes() for path in half.iterdir() if path.is_file()}
    original = open

    def read_only(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if str(file).startswith(str(half)) and mode[0] in "wax":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(InputError, match=r"cannot write .*: Read-only file system"):
        make_trainer(half, **STEPS).fit(resume=half / "last.pt")
    assert before == {path: path.read_bytes() for path in half.iterdir() if path.is_file()}


class TestTheBestEpochs:
    def test_top_k_keeps_the_best_and_earlier_ones_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = iter([10.0, 30.0, 20.0, 30.0, 5.0])
        original = make_trainer(tmp_path / "x").__class__._validate
        monkeypatch.setattr(
            "ecoformer.engine.trainer.Trainer._validate",
            lambda trainer: {**original(trainer), "val_top1": next(scores)},
        )
        options: dict[str, Any] = {"checkpoint": {"keep_top_k": 2}, "epochs": 5}
        make_trainer(tmp_path / "run", **options).fit(stop_after=3)
        assert sorted(path.name for path in (tmp_path / "run" / "top").iterdir()) == ["epoch-2.pt", "epoch-3.pt"]
        make_trainer(tmp_path / "moved", **options).fit(resume=tmp_path / "run" / "last.pt")
        assert sorted(path.name for path in (tmp_path / "moved" / "top").iterdir()) == ["epoch-2.pt", "epoch-4.pt"]
        kept = load_checkpoint(tmp_path / "moved" / "top" / "epoch-2.pt")
        assert kept["kind"] == "weights" and kept["metrics"]["val_top1"] == 30.0
        best = load_checkpoint(tmp_path / "moved" / "best.pt")  # the best figure survives the resume
        assert best["epoch"] == 2
        assert_same(dict(best["model"]), dict(kept["model"]))

    def test_none_by_default_and_set_aside_with_a_run(self, half: Path, tmp_path: Path) -> None:
        assert not (half / "top").exists()
        make_trainer(tmp_path / "run", checkpoint={"keep_top_k": 1}, epochs=1).fit()
        make_trainer(tmp_path / "run", epochs=1).fit()
        assert (tmp_path / "run" / "earlier-1" / "top" / "epoch-1.pt").exists()
        assert not (tmp_path / "run" / "top").exists()
