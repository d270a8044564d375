"""A study of many distillations: what is missing of it is made, one row each, in a table that grows."""

import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ecoformer.energy import load_profile
from ecoformer.engine.distributed import device_of
from ecoformer.errors import InputError, counted
from ecoformer.files import json_text, read_json, write_text, writing
from ecoformer.files.table import render
from ecoformer.lab.closeness.distill import measure_distilled, spec_of
from ecoformer.lab.closeness.distill_report import plot_errors, plot_front, plot_study, study_table
from ecoformer.lab.closeness.source import load_source
from ecoformer.run.lock import alone
from ecoformer.run.saved import SavedRun, read_run

# What tells a row from all others.
KEYS = ("checkpoint", "seed", "num_images", "layers", "attention", "spec")
# Earlier names of keys, which rows have too.
EARLIER = {
    "seed": "fit_seed",
    "num_bits": "features",
    "top1_before": "top1_source",
    "error_per_block": "error_per_layer",
    "uniform_per_block": "uniform_per_layer",
}


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    device_of(args.device, "--device ")  # also where no row is missing
    profile = load_profile(args.profile)
    profile.require_counted("paper")  # before anything is fitted
    table = args.out / "table.json"
    rows = read_rows(table)
    if any(set(KEYS) - row.keys() for row in rows):
        raise InputError(f"{table} has rows of an earlier version: give another folder as --out")
    require_apart(args.checkpoints, rows, table)
    attentions = [*args.attention, *(f"distilled_hash:num_bits={bits}" for bits in args.num_bits)] or ["distilled"]
    specs = [
        spec_of(text, relaxation=args.relaxation, fit_steps=steps, fit_values=args.fit_values, joint_steps=joint)
        for joint, steps, text in itertools.product(args.joint_steps, args.steps, attentions)
    ]
    for checkpoint in args.checkpoints:
        name = checkpoint.parent.name
        settings = [
            {"checkpoint": name, "seed": seed, "num_images": images, "layers": args.layers, **spec_keys(spec)}
            for images, spec, seed in itertools.product(args.num_images, specs, args.seeds)
        ]
        done = {key_of(row) for row in rows}
        missing = [setting for setting in settings if key_of(setting) not in done]
        if not missing:
            continue
        kept = [kept_file(args.keep, name, setting) for setting in missing if args.keep is not None]
        if (lost := next((path for path in kept if path.exists() or kept.count(path) > 1), None)) is not None:
            raise InputError(
                f"--keep {args.keep}: {lost.name} would be written over: give settings that differ in more than "
                "codes, features, projection and values a folder each"
            )
        source = load_source(
            checkpoint=checkpoint, root=args.data, max_val=args.max_val, out=args.out, device=args.device
        )
        alike = {"checkpoint": name, "epochs": source.epoch, "num_val": source.data.num_val}
        for setting in missing:
            if key_of(setting) in map(key_of, rows):  # made by another command meanwhile
                continue
            spec = spec_of(setting["attention"], **setting["spec"])
            model, figures = measure_distilled(
                source,
                spec,
                num_images=setting["num_images"],
                num_held_out=args.held_out,
                seed=setting["seed"],
                profile=profile,
                controls=args.controls and not any("controls" in row for row in rows if alike.items() <= row.items()),
                layers=setting["layers"],
            )
            row = table_row(setting, figures)
            rows = add(row, table)  # after every row: a study may be cut short
            if rows[-1] is not row:
                continue
            if (setting["seed"], setting["num_images"]) == (args.seeds[0], args.num_images[0]):
                plot_errors(figures, args.out / f"{stem_of(name, spec)}.png")
            if args.keep is not None:
                metrics = {key: row[key] for key in ("top1_before", "top1_after")}
                source.save(kept_file(args.keep, name, setting), model, spec, args.layers, metrics)
    if rows:
        report(rows, args.out, args.beside)
    print(f"{counted(len(rows), 'row')} in {table}")
    return 0


def read_rows(table: Path) -> list[dict[str, Any]]:
    return read_json(table, "rows of a study") if table.exists() else []


def add(row: dict[str, Any], table: Path) -> list[dict[str, Any]]:
    """Write a row below those of the table, to which another command may have added its own; return them all."""
    with writing(table):
        table.parent.mkdir(parents=True, exist_ok=True)
    with alone(table.parent):
        rows = read_rows(table)
        if key_of(row) not in map(key_of, rows):
            rows.append(row)
            write_text(table, json.dumps(rows, indent=1) + "\n")
    return rows


def require_apart(checkpoints: list[Path], rows: list[dict[str, Any]], table: Path) -> None:
    """Raise InputError where two models would go by one name, that of their folder."""
    held = {row["checkpoint"]: dict(row) for row in rows}
    for checkpoint in checkpoints:
        name = checkpoint.parent.name
        if name in held or [other.parent.name for other in checkpoints].count(name) > 1:
            mine, theirs = model_keys(read_run(checkpoint)), held.setdefault(name, {})
            if any(theirs.setdefault(key, value) != value for key, value in mine.items()):
                raise InputError(
                    f"{checkpoint} is not what {name} is in {table}: rows go by the name of a checkpoint's folder, so "
                    "give another folder as --out, or rename this one"
                )


def model_keys(run: SavedRun) -> dict[str, Any]:
    """What a row says of the model that it is about, by the row's keys."""
    config = run.config
    told = {"model": config.model.name, "model_kwargs": config.model.kwargs, "training_seed": config.seed}
    told |= {"dataset": config.data.name, "source": config.attention["name"], "epochs": run.content["epoch"]}
    return dict(json.loads(json_text(told)))  # as a table gives it back


def report(rows: list[dict[str, Any]], out: Path, beside: Path | None) -> None:
    plot_study(rows, out / "study.png")
    told = study_table([row for row in rows if "kl" in row])  # earlier versions did not measure it
    write_text(out / "table.md", render(told, "md") + "\n")
    print(render(told, "table"))
    if beside is not None:
        plot_front(rows, read_json(beside), out / "front.png")


def stem_of(name: str, spec: Any) -> str:
    """The name of a setting's files: of its checkpoint, and its codes in a few words."""
    projected = {"ternary": "_ternary", "shift": "_powers"}.get(getattr(spec, "projection", "real"), "")
    shifted = "_shifted" if getattr(spec, "values", "real") == "shift" else ""
    return f"{name}_{getattr(spec, 'num_features', '')}{getattr(spec, 'codes', spec.name)}{projected}{shifted}"


def kept_file(folder: Path, name: str, setting: dict[str, Any]) -> Path:
    return folder / f"{stem_of(name, spec_of(setting['attention'], **setting['spec']))}_seed{setting['seed']}.pt"


def spec_keys(spec: Any) -> dict[str, Any]:
    """What a row says of the spec that made it."""
    fit = ("fit_steps", "fit_values", "joint_steps", "relaxation")
    return {"attention": spec.name, "spec": asdict(spec), **{key: getattr(spec, key, None) for key in fit}}


def key_of(row: dict[str, Any]) -> str:
    """Equal for rows that would be made alike: options that came later had their defaults."""
    spec = spec_keys(spec_of(row["attention"], **row["spec"]))["spec"]
    return json.dumps([(row | {"spec": spec})[key] for key in KEYS], sort_keys=True)


def table_row(setting: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """A row of table.json. Lists go block by block; energies are picojoules of one image, paper convention."""
    blocks = figures["blocks"]
    row = setting | {
        **{
            key: figures[key]
            for key in ("dataset", "model", "model_kwargs", "source", "codes", "levels", "projection", "values")
        },
        "features": figures["num_bits"],
        "training_seed": figures["training_seed"],
        "fit_seed": setting["seed"],
        "epochs": figures["source_epochs"],
        "finetuned": False,
        "top1_source": figures["top1_before"],
        **{key: figures[key] for key in ("top1_after", "kl", "agreement", "num_val")},
        "energy_pj": figures["energy_pj"]["after"],
        **{f"{name}_energy_pj": figures["energy_pj"][name] for name in ("ecoformer", "stock", "msa")},
        "energy_audited_pj": figures["energy_audited_pj"],
        "attention_energy_pj": figures["attention_energy_pj"],
        "blocks": [block["block"] for block in blocks],
        "error_per_layer": [block["error"] for block in blocks],
        "uniform_per_layer": [block["error_uniform"] for block in blocks],
        "random_per_block": [block["error_random"] for block in blocks],
        **{key: figures[key] for key in ("joint_fit", "seconds", "threads")},
    }
    row |= {earlier: row[name] for earlier, name in EARLIER.items()}
    return row | ({"controls": figures["controls"]} if figures["controls"] else {})
