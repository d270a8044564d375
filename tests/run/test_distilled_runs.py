"""Distilled hashes in the normal recipe: fit, fine-tuning with and without a teacher, resume, evaluation."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from app_helpers import TINY_DIGITS

from ecoformer.data import build_data
from ecoformer.engine import hash_update
from ecoformer.run.parts import logit_teacher
from ecoformer.run.start import model_of_run, read_run

DISTILLED = ["attention=distilled_hash", "attention.fit_steps=3", "callbacks.hash_update.num_images=4"]


@pytest.fixture
def arguments(digits_runs):
    msa = digits_runs("msa") / "best.pt"
    return ["experiment=digits_msa", *TINY_DIGITS, *DISTILLED, f"init.checkpoint={msa}"]


def test_a_run_fits_once_and_resumes_exactly(arguments, train, tmp_path, capsys):
    arguments = [
        *arguments,
        "callbacks.hash_update.every=1",
        "schedule=constant",
        "schedule.warmup_epochs=0",
        "train.progress=true",
    ]
    whole = train(tmp_path / "whole", *arguments, "train.epochs=2")
    printed = " ".join(capsys.readouterr().out.split())
    assert "no hash fit before epoch 2 or later: it is fitted once, to the attention that it replaces" in printed
    events = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    fits = [event for event in events if event["event"] == "hash_fit"]
    assert [fit["epoch"] for fit in fits] == [0, 0, 0]
    assert all(fit["attention_error"] > 0 and fit["uniform_error"] > 0 for fit in fits)
    assert whole["attention"] == "distilled_hash" and whole["energy_pj"] > 0
    train(tmp_path / "parts", *arguments, "train.epochs=1")
    torch.manual_seed(5)  # nothing may depend on what a new process happens to draw
    resumed = train(tmp_path / "parts", *arguments, "train.epochs=2", "resume=auto")
    assert (resumed["top1"], resumed["loss"]) == (whole["top1"], whole["loss"])
    once, twice = (read_run(tmp_path / name / "last.pt").content["model"] for name in ("whole", "parts"))
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)


def test_a_joint_fit_is_told_recorded_and_part_of_the_dry_run(arguments, train, command, tmp_path, capsys):
    joint = [*arguments, "attention.joint_steps=3", "attention.joint_lr=1e-3"]
    assert command("train", *joint, f"output_dir={tmp_path / 'dry'}", "dry_run=true") == 0
    train(tmp_path / "run", *joint, "train.epochs=0", "train.progress=true")
    assert "joint fit: 3 steps, 4 images" in " ".join(capsys.readouterr().out.split())
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (record,) = [event for event in events if event["event"] == "joint_fit"]
    assert record["divergence_after"] <= record["divergence_before"]
    assert record["steps"] == 3 and record["num_images"] == 4


def test_a_signal_ends_a_fit(arguments, command, monkeypatch, tmp_path, capsys):
    done = []

    def interrupted(*unused):
        def step(number, steps):
            done.append(number)
            signal.raise_signal(signal.SIGINT)

        return step

    monkeypatch.setattr(hash_update, "paced", interrupted)
    run = tmp_path / "run"
    assert command("train", *arguments, "attention.joint_steps=30", f"output_dir={run}") == 130
    assert done == [1]
    told = capsys.readouterr().err
    assert "nothing is saved yet; start again with the same command" in told and told.count("\n") == 1
    assert not (run / "last.pt").exists()


def test_too_few_images_for_the_fit_are_refused_before_anything_is_written(arguments, refused, tmp_path):
    many = "callbacks.hash_update.num_images=100000"
    message = refused("train", *arguments, many, f"output_dir={tmp_path / 'run'}")
    assert "100000 calibration images > " in message and "lower callbacks.hash_update.num_images" in message
    assert not (tmp_path / "run").exists()


def test_a_resume_does_not_change_where_a_run_came_from(arguments, train, digits_runs, tmp_path):
    arguments = [*arguments, "schedule=constant", "schedule.warmup_epochs=0"]
    first = train(tmp_path / "run", *arguments, "train.epochs=1")
    others = [a for a in arguments if not a.startswith("init.")] + ["init.pretrained=true"]
    again = train(tmp_path / "run", *others, "train.epochs=2", "resume=auto")
    assert first["init"] == again["init"] == str(digits_runs("msa") / "best.pt")
    assert read_run(tmp_path / "run" / "last.pt").config.init.checkpoint == first["init"]


def test_fine_tuning_with_a_teacher_and_frozen_codes(arguments, train, command, tmp_path, digits_runs):
    msa = digits_runs("msa") / "best.pt"
    train(tmp_path / "fitted", *arguments, "train.epochs=0")
    frozen = ["train.freeze=['*.codes.*','*.log_*']", f"distill.checkpoint={msa}", "distill.temperature=2"]
    start = f"init.checkpoint={tmp_path / 'fitted' / 'best.pt'}"
    options = [a for a in arguments if not a.startswith("init.")]
    train(tmp_path / "tuned", *options, start, *frozen, "callbacks.hash_update.enabled=false")
    before, after = (read_run(tmp_path / name / "best.pt").content["model"] for name in ("fitted", "tuned"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.endswith("to_v.weight") for key in moved)
    assert not any(".codes." in key or ".log_" in key for key in moved)
    out = tmp_path / "figures.json"
    assert command("eval", f"checkpoint={tmp_path / 'tuned' / 'best.pt'}", f"out={out}", "progress=false") == 0
    assert json.loads(out.read_text())["attention"] == "distilled_hash"
    assert model_of_run(read_run(tmp_path / "tuned" / "best.pt")).eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_a_teacher_sees_what_it_was_trained_on(digits_runs):
    run = read_run(digits_runs("msa") / "best.pt")
    config = replace(run.config, distill=replace(run.config.distill, checkpoint=str(run.path)))

    def opened(data):
        return build_data(data, config.augment, replace(config.train, progress=False), seed=0, device="cpu")

    own = opened(config.data)
    alike = logit_teacher(config, own).model
    images = next(iter(own.val_loader))[0]
    config.data = replace(config.data, mean=[0.9] * 3, std=[0.05] * 3)
    other = opened(config.data)
    again = logit_teacher(config, other).model
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(next(iter(other.val_loader))[0]), alike.eval()(images), atol=1e-4, rtol=0
        )


def test_a_teacher_that_takes_no_such_images_is_refused(arguments, train, refused, tmp_path):
    options = [option for option in TINY_DIGITS if "model.kwargs" not in option]
    vit = ["experiment=digits_msa", *options, "model.name=vit_tiny_patch16_224", "model.patch_stride=null"]
    train(tmp_path / "vit", *vit, "+model.kwargs.depth=1", "data.img_size=32", "train.max_steps=1")
    line = [*arguments, f"distill.checkpoint={tmp_path / 'vit'}", f"output_dir={tmp_path / 'run'}"]
    assert f"distill.checkpoint={tmp_path / 'vit' / 'best.pt'}: " in refused("train", *line, "data.img_size=48")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.freeze=[nothing]", "train.freeze: 'nothing' matches no parameter; there are"),
        ("train.freeze=['*']", "leaves nothing to train: use train.epochs=0 or freeze less"),
        ("distill.weight=0", "distill.weight=0.0 must be above 0 and at most 1"),
        ("distill.temperature=-1", "distill.temperature=-1.0 must be above 0"),
        ("distill.checkpoint=none.pt", "checkpoint none.pt does not exist"),
    ],
)
def test_settings_that_cannot_work_are_refused(override, message, arguments, refused, tmp_path):
    assert message in refused("train", *arguments, override, f"output_dir={tmp_path / 'run'}")
