"""Two processes: equal hash functions and weights, exact evaluation, the large batch of one process."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeData, make_model, make_trainer
from fresh import Fresh, two_ranks

from ecoformer.config.schema import OptimConfig, TrainConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.distributed import init_distributed
from ecoformer.engine.parallel import is_sharded
from ecoformer.engine.trainer import Trainer
from ecoformer.errors import InputError
from ecoformer.model.checkpoint import load_checkpoint

OPTIM = {"name": "momentum", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
Ranks = dict[str, list[dict]]


def train_rank(run_dir: Path) -> None:
    """One of two ranks, with DDP, then with FSDP and a resume."""
    assert distributed.init_distributed("cpu") == torch.device("cpu")
    rank = distributed.rank()
    data = FakeData(num_train=48, batch_size=4, rank=rank, world_size=2, num_val=17)  # 2 batches and 1
    if rank == 1:

        def refused(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("only rank 0 fits")

        data.calibration_images = refused

    def make(kind: str) -> Trainer:
        model = make_model(dropout=0.0, batch_norm=False)
        with torch.no_grad():
            model.head.weight.mul_(1 + rank)  # ranks that start differently must agree all the same
        options = {"batch_size": 4, "optim": OptimConfig(**OPTIM), "grad_accum": 2, "parallel": kind}
        return make_trainer(run_dir / kind, data, model, **options)

    def save(trainer: Trainer, summary: dict[str, Any]) -> None:
        result = {"model": trainer.model.state_dict(), "ema": trainer.state.ema.module.state_dict(), "summary": summary}
        torch.save(parallel.whole(result), trainer.state.run_dir / f"rank{rank}.pt")

    trainer = make("ddp")
    save(trainer, trainer.fit())
    make("fsdp").fit(stop_after=1)
    if rank == 0:
        shutil.copy(run_dir / "fsdp" / "last.pt", run_dir / "after_one_epoch.pt")
    trainer = make("fsdp")
    assert type(trainer.model.head.weight).__name__ == "DTensor" and trainer.skeleton.head.weight.is_meta
    save(trainer, trainer.fit(resume=run_dir / "fsdp" / "last.pt"))
    distributed.close_distributed()


def run_two_processes(run_dir: Path, fresh: Callable[..., Fresh]) -> Ranks:
    """What the two ranks were left with, for train.parallel=ddp and fsdp."""
    run_dir.mkdir()
    ranks = [fresh(train_rank, run_dir, **environment) for environment in two_ranks()]
    for rank in ranks:
        assert rank.wait() == 0, rank.stderr
    return {
        kind: [torch.load(run_dir / kind / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        for kind in ("ddp", "fsdp")
    }


@pytest.fixture(scope="module")
def two_processes(fresh: Callable[..., Fresh], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranks]:
    run_dir = tmp_path_factory.mktemp("ddp") / "run"
    return run_dir, run_two_processes(run_dir, fresh)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_agree_bit_for_bit(two_processes: tuple[Path, Ranks], kind: str) -> None:
    first, second = two_processes[1][kind]
    for part in ("model", "ema"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), f"{part} {key}"
    assert bool(second["model"]["attn.fitted"])
    for key in ("top1", "top5", "loss", "epochs", "best_epoch"):
        assert first["summary"][key] == second["summary"][key]


def one_process(folder: Path, resume: Path | None = None) -> tuple[Trainer, dict]:
    """The same run with one process: 16 images at once instead of two ranks with 2 x 4; hashes fitted twice."""
    data = FakeData(num_train=48, batch_size=16, num_val=17)
    model = make_model(dropout=0.0, batch_norm=False)
    trainer = make_trainer(folder, data, model, batch_size=16, optim=OptimConfig(**OPTIM))
    return trainer, trainer.fit(resume=resume)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_with_the_global_batch_does_the_same(
    two_processes: tuple[Path, Ranks], tmp_path: Path, kind: str
) -> None:
    first, _ = two_processes[1][kind]
    trainer, summary = one_process(tmp_path)
    assert trainer.step == 6 and trainer.state.ema is not None
    for part, module in (("model", trainer.model), ("ema", trainer.state.ema.module)):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(first[part][key], value, rtol=1e-4, atol=1e-5, msg=f"{part} {key}")
    assert first["summary"]["top1"] == summary["top1"] and first["summary"]["loss"] == pytest.approx(summary["loss"])


def test_a_sharded_run_goes_on_in_one_process(two_processes: tuple[Path, Ranks], tmp_path: Path) -> None:
    """Its checkpoints hold whole tensors; so does what it wrote itself after resuming from one."""
    run_dir, ranks = two_processes
    trainer, _ = one_process(tmp_path, resume=run_dir / "after_one_epoch.pt")
    saved = load_checkpoint(run_dir / "fsdp" / "last.pt")
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(saved["model"][key], value, rtol=1e-4, atol=1e-5, msg=key)
        assert torch.equal(saved["model"][key], ranks["fsdp"][0]["model"][key])
    assert load_checkpoint(run_dir / "ddp" / "last.pt")["training"]["optimizer"]["state"].keys() == (
        saved["training"]["optimizer"]["state"].keys()
    )


def refused_rank(run_dir: Path) -> None:
    """One of two ranks, of which the first finds its fit impossible."""
    distributed.init_distributed("cpu")
    data = FakeData(num_train=48, batch_size=4, rank=distributed.rank(), world_size=2)

    def refused(*args: Any, **kwargs: Any) -> None:
        raise InputError("too few images for a fit")

    data.calibration_images = refused
    with pytest.raises(InputError, match="too few images for a fit"):
        make_trainer(run_dir, data, make_model(batch_norm=False), batch_size=4).fit()
    distributed.close_distributed()


def test_a_fit_that_is_refused_ends_every_rank(fresh: Callable[..., Fresh], tmp_path: Path) -> None:
    """The others waited for the one that fits."""
    ranks = [fresh(refused_rank, tmp_path, **environment) for environment in two_ranks()]
    for rank in ranks:
        assert rank.wait() == 0, rank.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": "fsdp"}, "shares the weights among processes: start several with torchrun"),
        ({"parallel": "fsdp", "amp": "fp16"}, "does not scale losses: use train.amp=bf16 or off"),
        ({"parallel": "fsdp", "compile": True}, "does not go with train.compile=true"),
        ({"parallel": "fsdp", "channels_last": True}, "does not go with train.channels_last=true"),
        ({"parallel": "fsdp"}, "running means of batch norm"),
    ],
)
def test_what_cannot_be_sharded(settings: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "start several" not in message:
        monkeypatch.setattr("ecoformer.engine.parallel.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        is_sharded(TrainConfig(**settings), make_model(batch_norm="batch norm" in message))


def test_rank_0_alone_writes_and_keeps_all_random_states(two_processes: tuple[Path, Ranks]) -> None:
    run_dir = two_processes[0] / "ddp"
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


def test_ranks_wait_for_the_main_one_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = torch.distributed.HashStore(), []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            store.set("main_0", "here")

    monkeypatch.setattr(distributed, "_store", store)
    monkeypatch.setattr(distributed, "_waits", itertools.count())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed.time, "sleep", look)
    distributed.wait_for_main()
    assert len(looks) == 3
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    distributed.wait_for_main()
    assert store.get("main_1") == b"here" and len(looks) == 3
