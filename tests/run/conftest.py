"""train.py and eval.py as functions of their command lines, and tiny images on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_helpers import TASKS, TINY_DIGITS, TINY_HASH, make_folders, run_task
from hydra._internal.hydra import Hydra

from ecoformer.cli import app as cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """command("train", *overrides): run the script as the command line would, and return the exit code.

    In a folder of its own: a run without output_dir takes its name from the second, which tests side by side share.
    """
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    # Hydra composes everything a first time only to look for hydra.mode, which no test sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda hydra, config_name, overrides: None)

    def run(script: str, *overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", sys.argv)  # what Hydra reads is put there
        try:
            cli.run(TASKS[script], script, overrides)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.fixture
def refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused("train", *overrides): the one line of a run that must be refused with exit code 2."""

    def run(script: str, *overrides: str) -> str:
        capsys.readouterr()
        code = command(script, *overrides)
        errors = capsys.readouterr().err
        assert code == 2, f"exit code {code}: {errors}"
        assert errors.count("\n") == 1 and errors.startswith("error: "), errors
        return errors.removeprefix("error: ").strip()

    return run


@pytest.fixture
def train(command: Callable[..., int]) -> Callable[..., dict[str, Any]]:
    """train(folder, *overrides): run train.py to the end and return summary.json."""

    def run(folder: Path, *overrides: str) -> dict[str, Any]:
        assert command("train", *overrides, f"output_dir={folder}") == 0
        return json.loads((folder / "summary.json").read_text())

    return run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 72 px images."""
    return make_folders(tmp_path_factory.mktemp("folders"), ["ant", "bee", "cat"], 72, {"train": 6, "val": 3})


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of short texts, in one table."""
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    rows = [f"{'good' if i % 2 else 'bad'}\t{'so ' * (i % 7 + 9)}{'fine' if i % 2 else 'dull'}" for i in range(60)]
    path.write_text("\n".join(["label\ttext", *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """cifar(10) or cifar(100): 32 px images in that many class folders."""
    roots = {
        count: make_folders(
            tmp_path_factory.mktemp(f"cifar{count}"),
            [f"class{i:02d}" for i in range(count)],
            32,
            {"train": 2, "test": 1},
        )
        for count in (10, 100)
    }
    return roots.__getitem__


@pytest.fixture(scope="session")
def digits_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """digits_runs(kind): the folder of a finished tiny run, made once. Tests must leave it as it is."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("runs") / kind
            hashes = TINY_HASH if kind == "ecoformer" else []
            run_task("train", f"experiment=digits_{kind}", *TINY_DIGITS, *hashes, f"output_dir={made[kind]}")
        return made[kind]

    return get
