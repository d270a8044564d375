"""A process that forks tiny training runs which kill themselves: each costs no second import of torch.

It reads one JSON list a line from stdin, of functions here and their arguments, runs them side by side and answers
with the list of their exit codes (minus the signal for a killed one).
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from fakes import FakeData, FakeHash, FakeLoader, make_model, make_trainer

from ecoformer.config.schema import AugmentConfig, DataConfig, HashUpdateConfig, OptimConfig, TrainConfig
from ecoformer.data import build_data
from ecoformer.engine import distributed, loggers
from ecoformer.engine.run_files import can_resume
from ecoformer.errors import InputError, Interrupted
from ecoformer.files.run_names import LAST
from ecoformer.model import checkpoint


class Moments:
    """The moments of a run, by name in the order in which they pass; it is killed at number `kill_at`."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.names = kill_at, []

    def passes(self, name: str) -> None:
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def watch(self, owner: Any, function: str, before: str | None, after: str | None = None) -> None:
        original = getattr(owner, function)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                self.passes(before)
            result = original(*args, **kwargs)
            if after is not None:
                self.passes(after)
            return result

        setattr(owner, function, watched)

    def halve_writes(self) -> None:
        """Checkpoints and metrics lines go to the disk in two halves, with a moment in between."""

        def save(content: Any, file: Any) -> None:
            whole = io.BytesIO()
            original_save(content, whole)
            data = whole.getvalue()
            file.write(data[: len(data) // 2])
            file.flush()
            self.passes("save, half written")
            file.write(data[len(data) // 2 :])

        def write(logger: Any, text: str) -> None:
            original_write(logger, text[: len(text) // 2])
            self.passes("metrics, half a line")
            original_write(logger, text[len(text) // 2 :])

        original_save, original_write = torch.save, loggers._FileLogger._write
        checkpoint.torch.save = save  # type: ignore[assignment]
        loggers._FileLogger._write = write  # type: ignore[method-assign]


def resume_of(run_dir: Path) -> Path | None:
    return run_dir / LAST if can_resume(run_dir) else None


def train(run_dir: str, kill_at: int | None = None) -> None:
    """A run with hash fits and saves within its epochs, continued where there is something to continue."""
    folder = Path(run_dir)
    hash_update = HashUpdateConfig(at_epochs=[0], every_steps=5, num_images=8)
    trainer = make_trainer(folder, log_every=1, hash_update=hash_update, checkpoint={"every_steps": 4, "keep_top_k": 2})
    moments = Moments(kill_at)
    moments.watch(trainer.model, "forward", "training, before a forward pass")
    moments.watch(trainer.state.optimizer, "step", "training, before the update", "training, after the update")
    moments.watch(FakeHash, "fit_hash", "hash fit, before", "hash fit, after")
    moments.watch(os, "fsync", "save, before it is on disk")
    moments.watch(os, "replace", "save, before a rename", "save, after a rename")
    moments.halve_writes()
    trainer.fit(resume=resume_of(folder))
    (folder / "moments.json").write_text(json.dumps(moments.names))


def train_on_files(run_dir: str, root: str, stop: bool) -> None:
    """From image files with a loader worker; SIGTERM goes to the whole process group, as a scheduler sends it."""
    os.setpgrp()
    config = DataConfig(name="folder", root=root, img_size=16, in_memory=False, num_workers=1)
    augment, settings = AugmentConfig(scale=[0.5, 1.0]), TrainConfig(batch_size=6, progress=False)
    data = build_data(config, augment, settings, seed=3, device="cpu")
    trainer = make_trainer(Path(run_dir), data=data, batch_size=6)
    if stop:
        send_before_step(trainer, 5, lambda: os.killpg(0, signal.SIGTERM))
    trainer.fit(resume=resume_of(Path(run_dir)))


def train_rank(run_dir: str, rank: int, port: int | None, fault: str | None = None, skip: int = 0) -> None:
    """One of two ranks; rank 1 has the fault: "nan" in its images, "term" or "kill" to its process.

    `port=None`: torchrun has said which rank this is, and where the others are.
    """
    if port is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    distributed.init_distributed("cpu")
    data = FakeData(num_train=48, batch_size=4, rank=rank, world_size=2)
    own_fault = fault if rank == 1 else None
    if own_fault == "nan":
        data.train_loader.__class__ = PoisonedLoader
    options = {"batch_size": 4, "optim": OptimConfig(name="momentum", lr=0.1), "checkpoint": {"every_steps": 4}}
    trainer = make_trainer(Path(run_dir), data, make_model(), max_skipped_batches=skip, log_every=1, **options)
    if own_fault in ("term", "kill"):
        signum = signal.SIGTERM if own_fault == "term" else signal.SIGKILL
        send_before_step(trainer, 9, lambda: os.kill(os.getpid(), signum))
    trainer.fit(resume=resume_of(Path(run_dir)))
    state = {**trainer.model.state_dict(), "ema": trainer.state.ema.module.head.weight}  # type: ignore[union-attr]
    torch.save(state, Path(run_dir) / f"rank{rank}.pt")
    distributed.close_distributed()


class PoisonedLoader(FakeLoader):
    """Its fourth batch of the first epoch holds a NaN."""

    def __iter__(self):
        for number, (images, labels) in enumerate(super().__iter__(), start=self.first_batch):
            if (self.epoch, number) == (0, 3):
                images = images.clone()
                images[0, 0, 0, 0] = torch.nan
            yield images, labels


def send_before_step(trainer: Any, step: int, send: Any) -> None:
    original = trainer.callbacks[0].on_step_start

    def on_step_start(trainer: Any, current: int) -> None:
        if current == step:
            send()
        original(trainer, current)

    trainer.callbacks[0].on_step_start = on_step_start


def run_forked(function: str, arguments: dict[str, Any]) -> int:
    """The process number of a fork that calls the function and ends."""
    process = os.fork()
    if process:
        return process
    code = 0
    try:
        random.seed(0)
        globals()[function](**arguments)
    except Interrupted as error:
        code = error.exit_code
    except InputError as error:
        Path(arguments["run_dir"], f"error{arguments.get('rank', '')}.txt").write_text(str(error))
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        processes = [run_forked(function, arguments) for function, arguments in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
