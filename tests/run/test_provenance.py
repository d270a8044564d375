"""provenance.json and console.log say where a run comes from: every start of it, nothing secret, no terminal codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from ecoformer.errors import InputError, Interrupted
from ecoformer.files.run_names import LAST
from ecoformer.run import provenance
from ecoformer.run.directory import RunDir
from ecoformer.run.provenance import Tee, origin, recorded

CPU = torch.device("cpu")


def starts(folder: Path) -> list[dict]:
    return json.loads((folder / "provenance.json").read_text())["starts"]


def test_each_start_of_a_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "name=a b"])
    with pytest.raises(Interrupted), recorded(RunDir(tmp_path, None, []), CPU):
        assert starts(tmp_path)[0]["ended"] is None  # what a killed run leaves
        print("one")
        print("two", file=sys.stderr)
        raise Interrupted(15, "stopped by SIGTERM in epoch 1")
    with recorded(RunDir(tmp_path, tmp_path / LAST, []), CPU):
        print("three")
    with pytest.raises(ZeroDivisionError), recorded(RunDir(tmp_path, tmp_path / LAST, []), CPU):
        print(1 / 0)
    said = capsys.readouterr()
    assert said.out == "one\nthree\n" and said.err == "two\n"
    first, second, third = starts(tmp_path)
    assert first["command"] == "python train.py 'name=a b'" and first["folder"] == str(Path.cwd())
    assert [start["outcome"] for start in (first, second, third)] == [
        *("stopped by SIGTERM in epoch 1", "finished", "failed: division by zero")
    ]
    assert first["started"] <= first["ended"] <= second["started"]
    assert [name.partition(",")[0] for names in first["hosts"].values() for name in names] == ["cpu"]
    assert first["versions"]["torch"] == torch.__version__
    log = (tmp_path / "console.log").read_text()
    lines = [line for line in log.splitlines() if not line.startswith("---")]
    assert lines[:3] == ["one", "two", "three"] and lines[3].startswith("Traceback")
    assert "hunter2" not in log + (tmp_path / "provenance.json").read_text()
    with recorded(RunDir(tmp_path, None, []), CPU):  # another run: nothing of the one before
        pass
    assert len(starts(tmp_path)) == 1 and "one" not in (tmp_path / "console.log").read_text()


def test_a_run_that_goes_on_elsewhere_takes_its_starts_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with recorded(RunDir(source, None, []), CPU):
        pass
    with recorded(RunDir(target, source / LAST, []), CPU):
        pass
    assert starts(target)[0] == starts(source)[0] and len(starts(target)) == 2
    (source / "provenance.json").write_text("[]")
    with pytest.raises(InputError, match=r"provenance\.json holds no provenance of a run: remove it"):
        recorded(RunDir(target, source / LAST, []), CPU).__enter__()


def test_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        user = ["-c", "user.name=a", "-c", "user.email=a@b"]
        line = ["git", "-C", str(tmp_path), *user, *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "folder" not in origin()["git"]
    git("init", "-q")
    (tmp_path / "model.py").write_text("a = 1")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "notes.txt").write_text("not tracked")
    found = origin()["git"]["folder"]
    assert found["commit"] == git("rev-parse", "HEAD") and found["clean"] and found["untracked"] == 1
    (tmp_path / "model.py").write_text("a = 2")
    assert not origin()["git"]["folder"]["clean"]
    # Installed below a repository that does not know the package: not that repository's commit.
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)
    assert origin()["git"]["project"] is None


def test_the_log_has_what_stays_on_a_terminal() -> None:
    terminal, log = io.StringIO(), io.StringIO()
    console = Console(file=Tee(terminal, log), force_terminal=True, width=80)  # type: ignore[arg-type]
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task("epoch 1/2", total=3)
        for _ in range(3):
            shown.update(task, advance=1, refresh=True)
        console.print("[red]epoch 1/2  loss 1.0[/red]")
        shown.refresh()
    console.print("end")
    assert "\x1b[" in terminal.getvalue()
    first, bar_at_its_end, last = log.getvalue().splitlines()
    assert (first, last) == ("epoch 1/2  loss 1.0", "end") and "100%" in bar_at_its_end and "\x1b" not in bar_at_its_end


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    """As in `ecoformer train ... | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with open(tmp_path / "console.log", "w") as log, open(write, "w") as stream:
        for line in ("one", "two"):
            print(line, file=Tee(stream, log), flush=True)
    assert (tmp_path / "console.log").read_text() == "one\ntwo\n"
