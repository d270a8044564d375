"""The command line itself: help, composed config, and defects of ours that keep their traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from app_helpers import ROOT, compose_config
from omegaconf import DictConfig, OmegaConf

from ecoformer.cli import app as cli
from ecoformer.config.keys import keys_of
from ecoformer.config.loading import unknown_key
from ecoformer.config.schema import SCHEMAS, Config
from ecoformer.errors import Interrupted
from ecoformer.run.checks import check_config


@pytest.mark.parametrize("script", ["train", "eval"])
def test_help(script: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(script, "--help") == 0
    text = capsys.readouterr().out
    assert f"ecoformer {script}" in text and max(map(len, text.splitlines())) <= 100
    named = {line.split("=")[0].strip() for line in text.splitlines()}
    keys = keys_of(SCHEMAS[script])
    assert {name for name, key in keys.items() if not is_dataclass(key.default)} <= named
    if script == "train":
        assert "digits_ecoformer" in text and "schedule.warmup_epochs=0" in text and "at least 1" in text


def test_show_prints_the_composed_settings_alone(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("train", "experiment=digits_msa", f"output_dir={tmp_path}", "--show") == 0
    assert OmegaConf.create(capsys.readouterr().out).output_dir == str(tmp_path) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", "--help"], ["train", "experiment=no"], ["train", "train.epochs=-1"], ["eval", "+seed=1"]),
        ["train", "experiment=digits_ecoformer", "attention.num_bit=3"],
        ["train", "experiment=imagenet_pvt_v2_b0_msa", "data.root=no/such/folder"],
        ["train", "experiment=digits_msa", "init.checkpoint=no/such/best.pt"],
        ["eval", "checkpoint=no/such/best.pt"],
        *([name, "--no-such-option"] for name in ("energy", "benchmark", "sequence", "export", "distill", "study")),
    ],
)
def test_help_and_refusals_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ecoformer.cli.main import main\n"
        "try:\n    sys.exit(main(sys.argv[1:]))\n"
        "finally:\n    assert not {'torch', 'timm', 'wandb'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (0 if "--help" in arguments else 1)


def test_composed_config_is_printed(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "experiment=digits_msa", "--cfg", "job") == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.name == "digits_msa" and printed.train.epochs == compose_config("experiment=digits_msa").train.epochs


def test_one_line_and_code_2_from_a_real_process() -> None:
    line = [sys.executable, str(ROOT / "train.py"), "experiment=digits_msa", "+train.epoch=3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key train.epoch; did you mean train.epochs?\n"


def run_task(task: Callable[[DictConfig], None], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=digits_msa", *overrides])
    cli.run(task, "train")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(cfg: Config) -> None:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        run_task(task, monkeypatch)


def test_a_defect_in_a_sweep_is_shown_and_the_next_job_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []

    def task(cfg: Config) -> None:
        seeds.append(cfg.seed)
        if cfg.seed == 0:
            raise ZeroDivisionError("ours")

    with pytest.raises(SystemExit, match="1"):
        run_task(task, monkeypatch, "-m", "seed=0,1", f"output_dir={tmp_path}")
    assert seeds == [0, 1]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Interrupted(2, "stopped; go on with resume=auto"), 130, "stopped; go on with resume=auto"),
        (Interrupted(15), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    ],
)
def test_signals(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(cfg: Config) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_task(task, monkeypatch)
    assert end.value.code == code
    assert capsys.readouterr().err == f"{line}\n"


def test_other_ranks_say_who_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Callable[..., int]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert command("train", "experiment=digits_msa", "train.epochs=-1") == 2
    assert capsys.readouterr().err == "[rank 3] error: train.epochs=-1 must be at least 0\n"


def test_warm_up_leaves_an_epoch() -> None:
    config = compose_config("experiment=imagenet_pvt_v2_b0_msa", "train.epochs=3")
    assert check_config(config) == ["schedule.warmup_epochs=5 does not fit train.epochs=3: warming up for 2"]
    assert config.schedule.warmup_epochs == 2
    assert check_config(config) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.epoch", "did you mean train.epochs?"),
        ("lr", "did you mean optim.lr?"),
        ("img_size", "did you mean data.img_size?"),
        ("callbacks.hash_update.evry", "did you mean callbacks.hash_update.every?"),
        ("zzz.yyy", "known: name, model"),
    ],
)
def test_unknown_key_suggestions(key: str, expected: str) -> None:
    assert expected in unknown_key(key, Config)
