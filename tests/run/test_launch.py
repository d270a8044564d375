"""torchrun inside, multirun outside: command lines, jobs of a scheduler, signals, and two real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_helpers import CONFIGS, ROOT, TINY_DIGITS, TINY_HASH
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from ecoformer.config.schema import register_schemas
from ecoformer.errors import Interrupted
from ecoformer.run import launch
from ecoformer.run.launch import Place, quoted, supervise, through_launcher, torchrun_command

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra: pip install 'ecoformer[slurm]'")
LINE = ["experiment=digits_msa", *TINY_DIGITS]
Seen = dict[str, Any]


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What would have been run; it ends with code 0 unless told otherwise."""
    seen: Seen = {"ends": (0, None), "commands": []}

    def run(command: list[str], environment: dict[str, str]) -> tuple[int, int | None]:
        seen["commands"].append(command[3:])
        seen["environment"] = environment
        return seen["ends"]

    monkeypatch.setattr(launch, "supervise", run)
    return seen


def in_slurm_job(monkeypatch: pytest.MonkeyPatch, *overrides: str, node: int = 0) -> Any:
    """The composed config of a job, as Hydra's launcher would hand it to train.py on that node."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    environment = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "42", "SLURM_NODEID": str(node)}
    for key, value in (environment | {"SLURM_JOB_NUM_NODES": "2", "SUBMITIT_FOLDER": "logs"}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(SlurmJobEnvironment, "hostnames", ["node7", "node8"])
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        line = ["hydra/launcher=slurm", "hydra.mode=MULTIRUN", *LINE, "output_dir=runs/x", *overrides]
        cfg = compose("train", line, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_one_node_and_many() -> None:
    one = torchrun_command(Place(), 8, 3, ["train.py", "seed=1"])
    assert one[1:5] == ["-m", "torch.distributed.run", "--nproc-per-node=8", "--max-restarts=3"]
    assert one[5:] == ["--standalone", "train.py", "seed=1"]
    nodes = [torchrun_command(Place("slurm 42", node, 2, "node7"), 8, 0, ["train.py"]) for node in range(2)]
    assert "--nnodes=2" in nodes[0] and "--rdzv-id=slurm-42" in nodes[0] and "--rdzv-conf=is_host=1" in nodes[0]
    assert {"--node-rank=1", "--rdzv-conf=is_host=0"} <= set(nodes[1])
    endpoint = next(part for part in nodes[0] if part.startswith("--rdzv-endpoint=node7:"))
    assert endpoint in nodes[1] and 20000 <= int(endpoint.rpartition(":")[2]) < 32000


@pytest.mark.parametrize("text", ["plain", "with space", "it's", "a=b,c", "C:\\dir\\'x", "ends in \\"])
def test_quoted_values_are_read_back(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"output_dir={quoted(text)}"])
    assert override.value() == text


def test_train_starts_torchrun_itself(command: Callable[..., int], torchrun: Seen, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    figures = {"top1": 12.5, "energy_pj": 1.0, "attention_energy_pj": 0.5, "images_per_second": 3.0}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(figures))
    assert command("train", *LINE, "launch.nproc_per_node=2", f"output_dir={tmp_path / 'run'}") == 0
    (line,) = torchrun["commands"]
    assert line[:3] == ["--nproc-per-node=2", "--max-restarts=3", "--standalone"]
    assert line[3:] == ["-m", "ecoformer", "train", *LINE, f"output_dir='{tmp_path / 'run'}'"]
    assert torchrun["environment"]["HYDRA_FULL_ERROR"] == "0" and "ECOFORMER_JOB" not in torchrun["environment"]
    (tmp_path / "own.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    own = ["--config-name", "own", "--config-dir", str(tmp_path)]
    assert command("train", *own, *LINE, "launch.nproc_per_node=2", "output_dir=other") == 0
    assert torchrun["commands"][-1][3:] == ["-m", "ecoformer", "train", *own, *LINE, "output_dir='other'"]


def test_each_job_of_a_sweep_is_its_own_torchrun(
    command: Callable[..., int], torchrun: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-m", *LINE, "seed=3,4", "launch.nproc_per_node=2", "launch.max_restarts=0", f"output_dir={tmp_path}"]
    assert command("train", *line) == 0
    for job, seed in enumerate((3, 4)):
        assert torchrun["commands"][job][1] == "--max-restarts=0"
        assert torchrun["commands"][job][-2:] == [f"seed={seed}", f"output_dir='{tmp_path / str(job)}'"]
    torchrun["ends"] = (1, None)
    assert command("train", *line) == 2
    assert "torchrun ended with code 1: its processes say why, above" in capsys.readouterr().err


def test_home_is_found_by_sweeps_launchers_and_torchrun(
    command: Callable[..., int], torchrun: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("train", "-m", *LINE, "seed=3", "launch.nproc_per_node=2", "output_dir=~/x") == 0
    assert torchrun["commands"][0][-1] == f"output_dir='{tmp_path / 'x' / '0'}'" and not Path("~").exists()
    assert f"hydra.sweep.dir='{tmp_path / 'x'}'" in submitted("hydra/launcher=local", *LINE, "output_dir='~/x'")
    figures = {"top1": 12.5, "energy_pj": 1.0, "attention_energy_pj": 0.5, "images_per_second": 3.0}
    (tmp_path / "x" / "summary.json").write_text(json.dumps(figures))
    assert launch.run_torchrun(in_slurm_job(monkeypatch, "output_dir='~/x'")) == 12.5


def test_the_jobs_of_a_sweep_are_one_group_of_wandb(
    command: Callable[..., int], torchrun: Seen, tmp_path: Path
) -> None:
    line = [*LINE, "logger=wandb", "launch.nproc_per_node=2", f"output_dir={tmp_path / 'sweeps' / 'bits'}"]
    assert command("train", "-m", "seed=3,4", *line) == 0
    assert command("train", "-m", "seed=5", "logger.wandb.group=mine", *line) == 0
    assert command("train", *line) == 0
    groups = [[part for part in started if part.startswith("logger.wandb.group")] for started in torchrun["commands"]]
    default = ["logger.wandb.group='sweeps/bits'"]
    assert groups == [default, default, ["logger.wandb.group='mine'"], []]


def test_a_slurm_job_runs_torchrun_over_its_gpus(monkeypatch: pytest.MonkeyPatch, torchrun: Seen) -> None:
    cfg = in_slurm_job(monkeypatch, "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4", node=1)
    assert launch.starts_torchrun(cfg)
    launch.run_torchrun(cfg)
    (line,) = torchrun["commands"]
    assert {"--nproc-per-node=4", "--nnodes=2", "--node-rank=1", "--rdzv-id=slurm-42"} <= set(line)
    assert line[-1] == "output_dir='runs/x'" and not any(part.startswith("hydra") for part in line)
    assert torchrun["environment"]["ECOFORMER_JOB"] == "slurm 42"


@pytest.mark.parametrize("node", [0, 1])
def test_a_job_told_to_save_is_handed_to_submitit(monkeypatch: pytest.MonkeyPatch, torchrun: Seen, node: int) -> None:
    cfg = in_slurm_job(monkeypatch, node=node)
    torchrun["ends"] = (1, signal.SIGUSR2)
    queued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: queued.append(signum))
    try:
        if node == 0:
            with pytest.raises(Interrupted, match="stopped by SIGUSR2: go on with resume=auto"):
                launch.run_torchrun(cfg)
        else:
            assert launch.run_torchrun(cfg) is None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert queued == [signal.SIGUSR2]


@pytest.mark.parametrize(("signum", "passed_on"), [(signal.SIGINT, 2), (signal.SIGTERM, 15), (signal.SIGUSR2, 15)])
def test_signals_are_passed_on_and_waited_for(signum: signal.Signals, passed_on: int) -> None:
    child = (
        "import os, signal, sys, time\n"
        "for s in (2, 15): signal.signal(s, lambda number, frame: (time.sleep(0.1), os._exit(number + 40)))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"  # of which torchrun would die, were it not ignored
        "os.kill(os.getppid(), int(sys.argv[1]))\n"
        "time.sleep(30)"
    )
    assert supervise([sys.executable, "-c", child, str(int(signum))], dict(os.environ)) == (passed_on + 40, signum)
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_signal_while_torchrun_is_started_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = start(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)
        return child

    monkeypatch.setattr("ecoformer.run.launch.subprocess.Popen", started)
    told = []
    send = start.send_signal
    monkeypatch.setattr(start, "send_signal", lambda child, signum: told.append(signum) or send(child, signum))
    assert supervise(["sleep", "30"], dict(os.environ)) == (-signal.SIGTERM, signal.SIGTERM)
    assert told == [signal.SIGTERM]


def submitted(*overrides: str) -> list[str]:
    register_schemas()
    return through_launcher(list(overrides), "train")


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_single_runs_and_sweeps_are_submitted(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoformer.run.launch.shutil.which", lambda name: name)
    line = [f"hydra/launcher={launcher}", *LINE, "output_dir=runs/a b"]
    single = ["--multirun", *line, "hydra.sweep.dir='runs/a b'", "hydra.sweep.subdir=."]
    assert submitted(*line) == single
    assert submitted("-m", *line, "seed=0,1") == ["-m", *line, "seed=0,1", "hydra.sweep.dir='runs/a b'"]
    assert submitted("--cfg", "job", *line) == ["--cfg", "job", *line]
    assert submitted(*LINE) == LINE
    assert submitted("-cn", "own", "hydra/launcher=local", "output_dir=x")[:3] == ["--multirun", "-cn", "own"]


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("", ["hydra/launcher=slurm needs output_dir=DIR", "all nodes share"]),
        ("output_dir=x seed=0,1", ["seed=0,1 is a sweep: add -m"]),
        ("output_dir=x train.batch_size=0", ["train.batch_size=0 must be at least 1"]),
        ("output_dir=x", ["there is no srun here", "use hydra/launcher=local"]),
        ("output_dir=x train.epoch=3", ["unknown key train.epoch;"]),
    ],
)
def test_refused_before_a_job_is_queued(
    line: str, fragments: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecoformer.run.launch.shutil.which", lambda name: None)
    message = refused("train", "hydra/launcher=slurm", *LINE, *line.split())
    assert all(fragment in message for fragment in fragments), message


def test_launch_settings_that_nothing_would_heed(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "launch.max_restarts=1 without launch.nproc_per_node" in refused("train", *LINE, "launch.max_restarts=1")
    assert "launch.nproc_per_node=0 must be" in refused("train", *LINE, "launch.nproc_per_node=0")
    assert "launch.max_restarts=-1 must be" in refused("train", *LINE, "launch.max_restarts=-1")
    assert "add output_dir=DIR" in refused("train", *LINE, "launch.nproc_per_node=2")
    assert "starts training jobs" in refused("eval", "hydra/launcher=slurm", "checkpoint=x.pt")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "under torchrun: leave it out" in refused("train", *LINE, "launch.nproc_per_node=2")
    assert "start it without" in refused("train", *LINE, "hydra/launcher=slurm", "output_dir=x")
    assert "-m under torchrun" in refused("train", "-m", *LINE, "seed=0,1")


def test_without_the_plugin(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    Plugins.instance()  # looks for them
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, "submitit_slurm.yaml")
    monkeypatch.delitem(known, "joblib.yaml", raising=False)
    for choice, package in (
        ("launcher=joblib", "'ecoformer[sweep]'"),
        ("sweeper=nevergrad", "hydra-nevergrad-sweeper"),
    ):
        message = refused("train", "-m", f"hydra/{choice}", *LINE, "seed=0,1")
        assert message == f"hydra/{choice} needs its plugin: pip install {package}"
    assert "hydra/launcher=jobli does not exist; " in refused("train", "-m", "hydra/launcher=jobli", *LINE)
    message = refused("train", "hydra/launcher=slurm", *LINE, "output_dir=x")
    assert message == "hydra/launcher=slurm and local need submitit: pip install 'ecoformer[slurm]'"


@pytest.mark.slow
def test_jobs_of_two_processes_through_submitits_local_executor(tmp_path: Path) -> None:
    """Two jobs of a sweep; the first is told to save and comes back, both end as one process would have ended."""
    line = ["experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH, "train.epochs=6", "train.batch_size=4"]
    options = ["hydra/launcher=local", "launch.nproc_per_node=2", f"output_dir={tmp_path}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *line, *options, "seed=0,1"]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def tell_to_save() -> None:
        while not (tmp_path / "0" / "last.pt").exists():
            time.sleep(0.02)
        launched = json.loads((tmp_path / "0" / "launch.json").read_text())["marks"]
        (agent,) = (int(mark.split()[3]) for mark in launched if mark.startswith("torchrun"))
        task = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(task, signal.SIGUSR2)

    threading.Thread(target=tell_to_save, daemon=True).start()
    _, errors = parent.communicate(timeout=900)
    assert parent.returncode == 0, errors
    for job in range(2):
        summary = json.loads((tmp_path / str(job) / "summary.json").read_text())
        assert (summary["epochs"], summary["seed"]) == (6, job)
    logs = "".join(path.read_text() for path in (tmp_path / ".submitit").glob("*/*_log.*"))
    assert "Requeued job" in logs


@pytest.mark.slow
def test_two_nodes_are_one_run(tmp_path: Path) -> None:
    """Two torchrun agents with one process each meet on 127.0.0.1 and leave one run directory."""
    line = ["experiment=digits_ecoformer", *TINY_DIGITS, *TINY_HASH, f"output_dir={tmp_path}"]
    agents = [
        subprocess.Popen(
            torchrun_command(Place(f"test {os.getpid()}", node, 2, "127.0.0.1"), 1, 0, [str(ROOT / "train.py"), *line]),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    for agent in agents:
        _, errors = agent.communicate(timeout=900)
        assert agent.returncode == 0, errors
    marks = json.loads((tmp_path / "launch.json").read_text())["marks"]
    assert len({mark.split()[3] for mark in marks if mark.startswith("torchrun")}) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["epochs"] == 1 and not list(tmp_path.glob("earlier-*"))
