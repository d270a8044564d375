"""Two processes: equal hash functions and weights, exact evaluation, the large batch of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import FakeData, make_model, make_trainer

from ecoformer.config import OptimConfig
from ecoformer.engine import load_checkpoint
from ecoformer.engine.distributed import init_distributed
from ecoformer.errors import InputError

OPTIM = {"name": "momentum", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
CHILD = """
import json
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import fakes
from ecoformer.config import OptimConfig
from ecoformer.engine import distributed
torch.set_num_threads(1)
assert distributed.init_distributed("cpu") == torch.device("cpu")
rank, run_dir = distributed.rank(), Path(sys.argv[2])
data = fakes.FakeData(num_train=48, batch_size=4, rank=rank, world_size=2)
if rank == 1:
    def refused(*args, **kwargs):
        raise AssertionError("only rank 0 fits")
    data.calibration_images = refused
model = fakes.make_model(dropout=0.0, batch_norm=False)
with torch.no_grad():
    model.head.weight.mul_(1 + rank)  # ranks that start differently must agree all the same
optim = OptimConfig(**json.loads(sys.argv[3]))
trainer = fakes.make_trainer(run_dir, data, model, batch_size=4, optim=optim, grad_accum=2)
summary = trainer.fit()
result = {"model": model.state_dict(), "ema": trainer.ema.module.state_dict(), "summary": summary}
torch.save(result, run_dir / f"rank{rank}.pt")
distributed.close_distributed()
"""


def run_two_processes(run_dir: Path) -> list[dict]:
    run_dir.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = str(Path(__file__).parent)
    processes = []
    for rank in range(2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", CHILD, here, str(run_dir), json.dumps(OPTIM)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
    return [torch.load(run_dir / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    run_dir = tmp_path_factory.mktemp("ddp") / "run"
    return run_dir, run_two_processes(run_dir)


def test_ranks_agree_bit_for_bit(two_processes: tuple[Path, list[dict]]) -> None:
    _, (first, second) = two_processes
    for part in ("model", "ema"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), f"{part} {key}"
    assert bool(second["model"]["attn.fitted"])
    for key in ("top1", "top5", "loss", "epochs", "best_epoch"):
        assert first["summary"][key] == second["summary"][key]


def test_one_process_with_the_global_batch_does_the_same(
    two_processes: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    _, (first, _) = two_processes
    data = FakeData(num_train=48, batch_size=16)
    trainer = make_trainer(
        tmp_path, data, make_model(dropout=0.0, batch_norm=False), batch_size=16, optim=OptimConfig(**OPTIM)
    )
    summary = trainer.fit()
    assert trainer.step == 6
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(first["model"][key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert first["summary"]["top1"] == summary["top1"] and first["summary"]["loss"] == pytest.approx(summary["loss"])


def test_rank_0_alone_writes_and_keeps_all_random_states(two_processes: tuple[Path, list[dict]]) -> None:
    run_dir, _ = two_processes
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1"]
    states = load_checkpoint(run_dir / "last.pt")["training"]["rng"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])


@pytest.mark.parametrize("device", ["gpu", "cpu:x"])
def test_device_names(device: str) -> None:
    with pytest.raises(InputError, match=f"device={device} does not exist: use auto, cpu, cuda or cuda:N"):
        init_distributed(device)


def test_one_gpu_for_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="device=cuda:0 is one GPU for all processes: use device=cuda"):
        init_distributed("cuda:0")
    with pytest.raises(InputError, match="device=meta is not supported"):
        init_distributed("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu() -> None:
    with pytest.raises(InputError, match="device=cuda, but torch sees no GPU"):
        init_distributed("cuda")
    assert init_distributed("auto") == torch.device("cpu")
