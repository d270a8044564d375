"""Where a command writes is looked at before it works, for every command that there is."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoformer.cli.arguments import Help, out_folder
from ecoformer.cli.main import COMMANDS, main
from ecoformer.config.faults import describe
from ecoformer.errors import InputError
from ecoformer.files import require_writable
from ecoformer.lab.study import reports as sweep_reports

NO_OUT = ("train", "eval", "benchmark-hash", "check-data", "speed-section")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "permission denied: correct its permissions, or name another place"),
        (errno.ENOTDIR, "a file stands where a folder is to be: name another place"),
        (errno.EROFS, "read-only file system: name another place"),
        (errno.ENAMETOOLONG, "name too long: shorten it"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line_wherever_it_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def forbidden(*_: object) -> None:
        raise OSError(code, "no", "/data/run/best.pt")

    message = f"/data/run/best.pt: {message}"
    assert describe(OSError(code, "no", "/data/run/best.pt"), "train") == message
    monkeypatch.setattr(sweep_reports, "sweep_report", forbidden)
    assert main(["sweep", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NO_OUT])
def test_what_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, one_line: Callable[..., str]
) -> None:
    run = importlib.import_module(f"ecoformer.cli.{COMMANDS[command][0]}").main
    (tmp_path / "file").write_text("kept")

    def refused(out: Path) -> str:
        return one_line(run, f"--out={out}", "--no-such-flag")  # the flag: what passes must not run

    assert f"--out: cannot write {tmp_path / 'file' / 'below'}: Not a directory; free" in refused(
        tmp_path / "file" / "below"
    )
    kinds = [f"{tmp_path} is a folder: name a file" in refused(tmp_path)]
    kinds += [f"{tmp_path / 'file'} is a file: name a folder" in refused(tmp_path / "file")]
    assert kinds.count(True) == 1
    assert (tmp_path / "file").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train", "eval")])
def test_help_says_every_default(command: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    defaults: list[object] = []
    add = Help.add_argument
    monkeypatch.setattr(Help, "add_argument", lambda self, action: defaults.append(action.default) or add(self, action))
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for default in defaults:
        if isinstance(default, int | float | str) and not isinstance(default, bool) and default != argparse.SUPPRESS:
            assert f"default: {default}" in said


def test_looking_leaves_nothing(tmp_path: Path) -> None:
    for folder in (False, True):
        require_writable(tmp_path / "new" / "deep", "out", folder=folder)
        require_writable("/dev/stdout", "out", folder=folder)
        require_writable(None, "out", folder=folder)
        with pytest.raises(InputError, match=r"cannot write .*: File name too long; free space"):
            require_writable(tmp_path / ("a" * 300), "out", folder=folder)
    assert list(tmp_path.iterdir()) == []


def test_the_home_of_an_option_with_an_equals_sign_which_no_shell_expands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert out_folder("~/new/runs") == tmp_path / "new" / "runs"
    assert main(["sweep", "~/runs"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'runs'} is no folder")
    assert main(["sweep", "s3://bucket/runs"]) == 2
    assert "s3://bucket/runs is an address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("| true", 141, ""),
        (">/dev/full", 2, "error: cannot write what is said to its end: No space left on device; free space\n"),
        (">&-", 0, ""),
    ],
)
@pytest.mark.parametrize("command", ["", "train"])
def test_output_that_nobody_takes_ends_without_a_traceback(
    command: str, redirection: str, code: int, said: str
) -> None:
    line = f"set -o pipefail; {sys.executable} -m ecoformer {command} --help {redirection}"
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["ecoformer"])
    assert main(["distill", "--help"]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"


def test_ctrl_c_in_an_import_is_one_line_whatever_the_library_makes_of_it(tmp_path: Path) -> None:
    (tmp_path / "taking_long.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    raise SystemError\n"
    )
    program = (
        "import signal, sys; from ecoformer.cli import main; import ecoformer.cli.kinds as command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the tests may run in the background, without one
        "command.main = lambda rest: __import__('taking_long'); sys.exit(main.main(['kinds']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
