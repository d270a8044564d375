"""Twenty configurations that would waste a job: each is refused in one line before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from app_helpers import TINY_DIGITS

from ecoformer.config.keys import check_limits, keys_of
from ecoformer.config.schema import Config, EvalConfig
from ecoformer.errors import InputError

BAD = [
    ("checkpoint.every_steps=-1", "checkpoint.every_steps=-1 must be at least 0"),
    ("checkpoint.keep_top_k=-2", "checkpoint.keep_top_k=-2 must be at least 0"),
    ("checkpoint.keep_topk=2", "did you mean checkpoint.keep_top_k?"),
    ("train.max_skipped_batches=-1", "train.max_skipped_batches=-1 must be at least 0"),
    ("train.max_skipped_batches=few", "train.max_skipped_batches=few must be a whole number"),
    ("train.eval_batch_size=0", "train.eval_batch_size=0 must be at least 1"),
    ("train.max_steps=0", "train.max_steps=0 must be at least 1"),
    ("train.ema_decay=1.0", "train.ema_decay=1.0 must be at least 0 and below 1"),
    ("train.amp=fp8", "train.amp=fp8 does not exist"),
    ("+model.kwargs.in_chans=1", "model.kwargs.in_chans=1: write model.in_chans=1, which is a key of its own"),
    ("+model.kwargs.pretrained=true", "write init.pretrained=True, which is a key of its own"),
    ("+model.kwargs.checkpoint_path=a.pth", "write init.checkpoint=a.pth, which is a key of its own"),
    ("+model.kwargs.device=meta", "write device=meta, which is a key of its own"),
    ("+model.kwargs.num_classes=0", "model.kwargs.num_classes=0: the data have their own: leave it out"),
    ("+model.kwargs.features_only=true", "model.kwargs.features_only=True: a run trains a classifier: leave it out"),
    ("+model.kwargs.name=x", "model.name=pvt_v2_b0 cannot be built with the arguments given"),
    ("model.name=pvt_v2_b0.in21k", "did you mean pvt_v2_b0.in1k?"),
    ("model.name=timm/pvt_v2_b0", "did you mean pvt_v2_b0.in1k?"),
    ("model.name=local-dir:no/such", "config.json, which says what the model is, cannot be read"),
    ("data.root=some/folder", "data.root=some/folder: data=digits come with scikit-learn, no folder is read"),
    ("train.parallel=fsdp3", "train.parallel=fsdp3 does not exist; did you mean fsdp"),
    ("optim.lr=nan", "optim.lr=nan must be finite and above 0"),
    ("optim.lr=inf", "optim.lr=inf must be finite and above 0"),
    ("optim.clip_grad=0", "optim.clip_grad=0.0 must be above 0"),
    ("optim.betas=[0.9]", "optim.betas=[0.9] must be a list of two numbers"),
    ("schedule.warmup_epochs=-1", "schedule.warmup_epochs=-1 must be at least 0"),
    ("seed=-1", "seed=-1 must be between 0"),
    ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
    ("data.max_train_samples=4", "train.batch_size"),
    ("resume=auto overwrite=true", "resume and overwrite=true contradict"),
    ("init.checkpoint=no/such/best.pt", "no/such/best.pt does not exist"),
    ("resume=no/such/last.pt", "no/such/last.pt does not exist"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[change for change, _ in BAD])
def test_fault_bad_configuration(change: str, message: str, refused: Callable[..., str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    line = [*TINY_DIGITS, *change.split(), f"output_dir={run_dir}"]
    assert message in refused("train", "experiment=digits_msa", *line)
    assert not run_dir.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("schema", [Config, EvalConfig])
def test_every_number_is_finite(schema: type, bad: float) -> None:
    tried = 0
    for name, known in keys_of(schema).items():
        if float in (*known.types, known.item):
            settings = schema()
            *groups, last = name.split(".")
            value = bad if known.item is None else [0.9, bad, 0.9]
            setattr(functools.reduce(getattr, groups, settings), last, value)
            with pytest.raises(InputError) as error:
                check_limits(settings)
            assert str(error.value).startswith(f"{name}={value} must be finite")
            tried += 1
    assert tried > (30 if schema is Config else 2)
