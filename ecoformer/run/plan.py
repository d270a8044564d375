"""The launch plan: what a run is about to do, in numbers. A dry run adds what it costs, measured by run.probe."""

import statistics
from dataclasses import asdict
from typing import Any

import torch

from ecoformer.config.schema import Config
from ecoformer.data import DataModule
from ecoformer.engine import distributed
from ecoformer.engine.hash_update import fit_steps, schedule_line
from ecoformer.engine.optim import scaled_lr
from ecoformer.errors import counted
from ecoformer.files import user_path, write_json
from ecoformer.files.table import energy_text
from ecoformer.fit.hashes import hash_layers
from ecoformer.model.layers import attention_layers, token_counts
from ecoformer.model.low_rank import low_rank_layers
from ecoformer.nn.inputs import input_size
from ecoformer.run import summary
from ecoformer.run.build import Run
from ecoformer.run.probe import Probe, probe_run
from ecoformer.run.summary import Rows, run_energy


def dry_run(run: Run, notes: list[str]) -> None:
    """Print the plan, measured unless `dry_run_probe=false`; every process calls it. Writes `dry_run_out` alone."""
    config = run.config
    figures = plan_figures(run, probe_run(run) if config.dry_run_probe else None)
    summary.show(launch_plan(run, figures), notes=notes)
    if config.dry_run_out is not None and distributed.is_main():
        write_json(user_path(config.dry_run_out), figures)


def plan_figures(run: Run, probe: Probe | None = None) -> dict[str, Any]:
    """The plan as plain containers, ready for JSON; with a probe also memory, checkpoint size and expected time."""
    config, data, trainer = run.config, run.data, run.trainer
    train, steps = config.train, trainer.steps_per_epoch * config.train.epochs
    energy = run_energy(config, run.trainer.skeleton)
    layers = hash_layers(run.trainer.skeleton)
    update = config.callbacks.hash_update
    fits = fit_steps(update, trainer.steps_per_epoch, train.epochs) if layers else []
    figures: dict[str, Any] = {
        "name": config.name,
        "model": config.model.name,
        "attention": config.attention,
        "compress": config.compress.name,
        "weights_from": "the resumed run" if run.folder.resume else run.built.origin,
        "dataset": data.name,
        "img_size": data.img_size,
        "images": {"train": data.num_train, "val": data.num_val},
        "images_per_class": class_counts(data),
        "num_classes": data.num_classes,
        "processes": distributed.world_size(),
        "global_batch": trainer.global_batch,
        "learning_rate": scaled_lr(config.optim, trainer.global_batch),
        "epochs": train.epochs,
        "steps_per_epoch": trainer.steps_per_epoch,
        "steps": steps,
        "hash_fits": {"number": len(fits), "layers": len(layers), "images": update.num_images},
        **{key: energy[key] for key in ("params", "energy_pj", "energy_convention", "energy_profile")},
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "amp": train.amp,
        "output_dir": str(run.folder.path),
    }
    if probe is not None:
        figures |= _measured(run, probe, num_fits=sum(step >= trainer.step for step in fits))
    return figures


def class_counts(data: DataModule) -> dict[str, dict[str, int]]:
    """Images of every class, by split; without a split whose labels are known only as its images are read."""
    counts = {}
    for split, source in (("train", data.train_source), ("val", data.val_loader)):
        targets = getattr(source, "targets", None)
        if targets is not None:
            numbers = torch.bincount(torch.as_tensor(targets), minlength=data.num_classes).tolist()
            counts[split] = dict(zip(data.class_names, numbers, strict=True))
    return counts


def _measured(run: Run, probe: Probe, num_fits: int) -> dict[str, Any]:
    trainer, train = run.trainer, run.config.train
    model_bytes = probe.parameter_bytes + probe.buffer_bytes
    ema_bytes = model_bytes if train.ema_decay > 0 else 0
    epochs = train.epochs - probe.start_epoch
    val_batches = len(run.data.val_loader)
    evaluations = -(-epochs // train.val_interval)
    if train.val_interval_steps:
        evaluations += epochs * trainer.steps_per_epoch // train.val_interval_steps
    seconds = {
        "training": epochs * trainer.steps_per_epoch * probe.step_seconds,
        "validation": evaluations * val_batches * probe.val_batch_seconds,
        "hash_fits": num_fits * (probe.fit_seconds or 0.0),
    }
    return {
        "memory_bytes": {
            "parameters": model_bytes,
            "gradients": probe.gradient_bytes,
            "optimizer": probe.optimizer_bytes,
            "ema": ema_bytes,
            "activations": probe.activation_bytes,
            "peak_on_gpu": probe.peak_bytes,
        },
        "checkpoint_bytes": {"last.pt": probe.last_bytes, "best.pt": probe.best_bytes},
        "probe": asdict(probe),
        "expected_seconds": {**seconds, "total": sum(seconds.values())},
    }


def launch_plan(run: Run, figures: dict[str, Any]) -> Rows:
    """The plan in words, from `plan_figures`."""
    config, trainer = run.config, run.trainer
    batch, train = figures["global_batch"], config.train
    root = "sqrt " if config.optim.lr_base_scale == "sqrt" else ""
    base = config.optim.lr_base_batch
    scaling = f" ({config.optim.lr:g} x {root}{batch} / {base})" if base else ""
    images, one = figures["images"], "an image" if run.data.vocab_size is None else "a sample"
    rows = [
        ("model", f"{figures['model']}, {config.attention['name']} attention{_options(config)}"),
        ("weights from", figures["weights_from"]),
        *_compression(run),
        (
            "data",
            f"{figures['dataset']}, {images['train']} train / {images['val']} val {run.data.samples}, "
            f"{figures['num_classes']} classes",
        ),
        ("per class", _per_class(figures["images_per_class"], run.data.samples)),
        (run.data.samples, f"{_size(run)}, {'in memory' if run.data.in_memory else 'decoded from files'}"),
        ("tokens", _tokens(run)),
        (
            "global batch",
            f"{batch} = {train.batch_size} x {train.grad_accum} accumulated "
            f"x {counted(figures['processes'], 'process')}",
        ),
        (
            "learning rate",
            f"{figures['learning_rate']:.3g}{scaling}, {config.schedule.name}, "
            f"warm-up {counted(config.schedule.warmup_epochs, 'epoch')}",
        ),
        ("steps", f"{figures['steps_per_epoch']} x {counted(train.epochs, 'epoch')} = {figures['steps']}"),
        ("hash fits", _hash_fits(run, figures)),
        ("parameters", f"{figures['params']:,}"),
        ("energy", f"{energy_text(figures['energy_pj'])} {one}, {figures['energy_convention']} convention, "
                   f"{figures['energy_profile']}"),
        ("device", f"{trainer.device}, {figures['threads']} CPU threads, amp {train.amp}"),
        ("output_dir", figures["output_dir"]),
    ]  # fmt: skip
    return [*rows, *_cost_rows(run, figures)] if "probe" in figures else rows


def _cost_rows(run: Run, figures: dict[str, Any]) -> Rows:
    memory, files, probe = figures["memory_bytes"], figures["checkpoint_bytes"], figures["probe"]
    seconds = figures["expected_seconds"]
    parts = [f"{name} {mib(memory[name])}" for name in ("parameters", "gradients", "optimizer", "ema") if memory[name]]
    held = sum(memory[name] for name in ("parameters", "gradients", "optimizer", "ema", "activations"))
    activations = f"activations {mib(memory['activations'])} for a batch of {run.config.train.batch_size}"
    peak = "" if memory["peak_on_gpu"] is None else f"; GPU peak of the probe {mib(memory['peak_on_gpu'])}"
    rate = figures["global_batch"] / probe["step_seconds"]
    return [
        ("memory", f"{mib(held)} a process: {', '.join(parts)}, {activations}{peak}"),
        ("checkpoints", ", ".join(f"{name} {mib(size)}" for name, size in files.items())),
        (
            "probe",
            f"step 1 {probe['first_step_seconds']:.2f} s, step 2 {probe['step_seconds']:.2f} s, of which "
            f"{probe['data_seconds']:.2f} s waiting for data ({rate:.1f} {run.data.samples}/s); validation batch "
            f"{probe['val_batch_seconds']:.2f} s",
        ),
        (
            "expected time",
            f"{duration(seconds['total'])}: training {duration(seconds['training'])}, validation "
            f"{duration(seconds['validation'])}, hash fits {duration(seconds['hash_fits'])}",
        ),
    ]


def _size(run: Run) -> str:
    data = run.data
    return f"{data.img_size} px" if data.vocab_size is None else f"{data.seq_len} tokens, {data.vocab_size} ids"


def _per_class(counts: dict[str, dict[str, int]], samples: str) -> str:
    if not counts:
        return "not known before the images are read"
    parts = [
        f"{split} {min(numbers)} / {statistics.median(numbers):g} / {max(numbers)}"
        for split, numbers in ((split, list(found.values())) for split, found in counts.items())
    ]
    return f"{', '.join(parts)} {samples} (min / median / max)"


def _hash_fits(run: Run, figures: dict[str, Any]) -> str:
    fits = figures["hash_fits"]
    if not fits["layers"]:
        return "none: no hash functions"
    update, epochs = run.config.callbacks.hash_update, run.config.train.epochs
    when = schedule_line(update, run.trainer.steps_per_epoch, epochs, run.data.samples)
    seconds = figures.get("probe", {}).get("fit_seconds")
    cost = "" if seconds is None else f"; {duration(seconds)} each, {duration(seconds * fits['number'])} in all"
    return f"{counted(fits['layers'], 'layer')}, {when}{cost}"


def _tokens(run: Run) -> str:
    counts = token_counts(run.trainer.skeleton, input_size(run.trainer.skeleton, run.data.img_size))
    stages: dict[int, list[str]] = {}
    for layer in attention_layers(run.trainer.skeleton):
        stages.setdefault(layer.stage, []).append(f"{counts[layer.name]}")
    if not stages:
        return "no attention layer that we know"
    return "; ".join(
        f"stage {stage}: {counted(len(tokens), 'layer')} of {', '.join(dict.fromkeys(tokens))}"
        for stage, tokens in stages.items()
    )


def _compression(run: Run) -> Rows:
    if run.built.compression is not None:
        return [("compression", run.built.compression.summary)]
    held = len(low_rank_layers(run.built.model))
    return [("compression", f"{held} low-rank layers as in the checkpoint")] if held else []


def _options(config: Config) -> str:
    options = [f"{key}={value}" for key, value in config.attention.items() if key != "name" and value is not None]
    return f" ({', '.join(options)})" if options else ""


def mib(size: int) -> str:
    """Bytes as MiB, from 10 GiB on as GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
