"""The table of results/distilled_hash: many distillations, one row each, kept in OUT/table.json and resumed from it.

    python scripts/distill_study.py --checkpoints RUN/best.pt ... --data ROOT --num-bits 8 16 32 --seeds 0 1 2 --out OUT

A row that table.json already holds is not made again. Rows have dataset, model, source (msa or stock), num_bits, seed,
finetuned, top1_before, top1_after, energy_pj, ecoformer_energy_pj, error_per_block, uniform_per_block, and the
controls. Errors are relative L2 of the attention output, on held-out images. Pictures are drawn anew at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from ecoformer.cli.arguments import Parser, run_script
from ecoformer.cli.distill import add_fit_options

# What tells a row from all others: where it comes from, and the settings of DistilledHashSpec.
WHERE = ("checkpoint", "seed", "num_images", "layers")
SPEC = ("num_bits", "fit_steps", "fit_values", "joint_steps", "relaxation")
OLDER = {"joint_steps": 0, "relaxation": "straight_through", "layers": None}  # rows from before a key was there


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoints", nargs="+", type=Path, required=True, metavar="FILE", help="stock or MSA runs")
    p.add_argument("--data", metavar="ROOT", help="data.root, if it is not where the runs had it")
    p.add_argument("--num-bits", nargs="+", type=int, default=[16])
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--steps", nargs="+", type=int, default=[1000], help="of the fit of each layer")
    p.add_argument("--joint-steps", nargs="+", type=int, default=[0], help="then, of a fit of all layers together")
    p.add_argument("--num-images", nargs="+", type=int, default=[512], help="training images of the fit")
    add_fit_options(p)
    p.add_argument("--controls", action="store_true", help="measure the controls too, for the first seed of each model")
    p.add_argument("--keep", type=Path, metavar="FOLDER", help="write the distilled models there")
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    return p


def main(argv: list[str] | None = None) -> int:
    return run_script(run, parser(), argv)


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for torch.
    import torch

    from ecoformer.energy import load_profile
    from ecoformer.files import write_text
    from ecoformer.kinds.distilled import DistilledHashSpec
    from ecoformer.lab.closeness.distill import measure
    from ecoformer.lab.closeness.distill_report import plot_errors, plot_study
    from ecoformer.lab.closeness.source import load_source

    torch.set_num_threads(args.threads)
    profile = load_profile(args.profile)
    table = args.out / "table.json"
    rows: list[dict[str, Any]] = json.loads(table.read_text()) if table.exists() else []
    done = {key_of(OLDER | row) for row in rows}
    before: dict[str, float] = {}
    for checkpoint in args.checkpoints:
        name = checkpoint.parent.name
        settings = [
            {
                "checkpoint": name,
                "num_bits": bits,
                "seed": seed,
                "fit_steps": steps,
                "num_images": images,
                "fit_values": args.fit_values,
                "joint_steps": joint,
                "relaxation": args.relaxation,
                "layers": args.layers,
            }
            for joint, steps, images, bits, seed in itertools.product(
                args.joint_steps, args.steps, args.num_images, args.num_bits, args.seeds
            )
        ]
        missing = [setting for setting in settings if key_of(setting) not in done]
        if not missing:
            continue
        source = load_source(checkpoint=checkpoint, root=args.data, max_val=args.max_val)
        known = [row for row in rows if (row["checkpoint"], row["epochs"]) == (name, source.epoch)]
        for setting in missing:
            same = [row for row in known if row["num_val"] == source.data.num_val]
            spec = DistilledHashSpec(**{key: setting[key] for key in SPEC})
            model, figures = measure(
                source,
                spec,
                num_images=setting["num_images"],
                num_held_out=args.held_out,
                seed=setting["seed"],
                profile=profile,
                top1_before=before.get(name, same[0]["top1_before"] if same else None),
                controls=args.controls and not any("controls" in row for row in same),
                layers=setting["layers"],
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
            before[name] = figures["top1_before"]
            row = table_row(setting, figures)
            rows.append(row)
            known.append(row)
            write_text(table, json.dumps(rows, indent=1) + "\n")  # after every row: a study may be cut short
            stem = f"{name}_{setting['num_bits']}bits"
            if (setting["seed"], setting["fit_steps"]) == (args.seeds[0], args.steps[0]):
                plot_errors(figures, args.out / f"{stem}.png")
            if args.keep is not None:
                metrics = {key: row[key] for key in ("top1_before", "top1_after")}
                source.save(args.keep / f"{stem}_seed{setting['seed']}.pt", model, spec, args.layers, metrics)
    if rows:
        plot_study(rows, args.out / "study.png")
    print(f"{len(rows)} rows in {table}")
    return 0


def key_of(row: dict[str, Any]) -> str:
    """Equal for rows that would be made alike."""
    return json.dumps([row[key] for key in (*WHERE, *SPEC)])


def table_row(setting: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """A row of table.json. Lists go block by block; energies are picojoules of one image, paper convention."""
    blocks = figures["blocks"]
    row = setting | {
        **{key: figures[key] for key in ("dataset", "model", "model_kwargs", "source")},
        "epochs": figures["source_epochs"],
        "finetuned": False,
        **{key: figures[key] for key in ("top1_before", "top1_after", "num_val")},
        "energy_pj": figures["energy_pj"]["after"],
        **{f"{name}_energy_pj": figures["energy_pj"][name] for name in ("ecoformer", "stock", "msa")},
        "energy_audited_pj": figures["energy_audited_pj"],
        "blocks": [block["block"] for block in blocks],
        "error_per_block": [block["error"] for block in blocks],
        "uniform_per_block": [block["error_uniform"] for block in blocks],
        "random_per_block": [block["error_random"] for block in blocks],
        **{key: figures[key] for key in ("joint_fit", "seconds", "threads")},
    }
    return row | ({"controls": figures["controls"]} if figures["controls"] else {})


if __name__ == "__main__":
    sys.exit(main())
