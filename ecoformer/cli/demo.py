"""The whole way on data that needs no download: train, convert, fit, fine-tune, compare.

    python scripts/demo.py [--out DIR] [key=value ...]

PVTv2-B0 on scikit-learn's digits (1,797 scans): softmax attention (MSA), then EcoFormer from its weights, and timm's
stock attention beside them. Each step is a command that you can run yourself; further key=value go to all three.
Leaves table.json, report.md and plots in DIR.
"""

import argparse
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from ecoformer.run.process import command_line, environment

KINDS = ("stock", "msa", "ecoformer")  # the order of the table
TRAINED = ("msa", "ecoformer", "stock")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder for everything it leaves")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all three runs")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    runs = {kind: options.out / kind for kind in KINDS}
    commands = {}
    for kind in TRAINED:
        arguments = ["train.py", f"experiment=digits_{kind}", f"output_dir={runs[kind]}", "overwrite=true"]
        if kind == "ecoformer":
            arguments.append(f"init.checkpoint={runs['msa'] / 'best.pt'}")
        arguments += options.overrides
        commands[kind] = shlex.join(["python", *arguments])
        print(f"\n$ {commands[kind]}", flush=True)
        done = subprocess.run([*command_line("train"), *arguments[1:]], env=environment())
        if done.returncode:
            return done.returncode
    rows = compare(options.out, runs, commands)
    print(f"\n{options.out}/report.md shows the table and the plots; {time.perf_counter() - started:.0f} s in all.")
    return 0 if rows else 1


def compare(out: Path, runs: dict[str, Path], commands: dict[str, str]) -> list[dict[str, Any]]:
    """Measure speed in turns, print the table, write table.json, report.md and the plots; return the rows."""
    # Imported late: --help should not wait for torch.
    import torch

    from ecoformer.config.schema import EvalConfig
    from ecoformer.files import write_json, write_text
    from ecoformer.files.table import render
    from ecoformer.lab.speed.throughput import interleaved_throughput
    from ecoformer.report.code_maps import plot_code_maps
    from ecoformer.report.curves import plot_training_curves
    from ecoformer.report.runs import read_summary
    from ecoformer.report.tables import comparison_table
    from ecoformer.run.build import build_evaluation

    cpu = torch.device("cpu")
    evaluations = {
        kind: build_evaluation(EvalConfig(checkpoint=str(path / "best.pt"), progress=False), cpu)
        for kind, path in runs.items()
    }
    models = {kind: evaluation.model.eval() for kind, evaluation in evaluations.items()}
    images, _ = next(iter(evaluations["msa"].data.val_loader))
    images = images[:128]
    speed = interleaved_throughput(models, images)
    rows = []
    for kind, path in runs.items():
        rates = speed[kind]
        measured = {"images_per_second": rates.median, "images_per_second_range": [rates.low, rates.high]}
        rows.append(read_summary(path) | measured | {"command": commands[kind]})
    write_json(out / "table.json", rows)
    plot_training_curves({kind: runs[kind] for kind in KINDS}, out / "training_curves.png")
    plot_code_maps(
        models["msa"],
        models["ecoformer"],
        images[0],
        out / "code_maps.png",
        "Where one token (red cross) looks: weights of its row, mean over heads, one map a block",
    )
    write_text(
        out / "report.md",
        report(rows, evaluations["msa"].data.num_val, f"batch {len(images)}, {torch.get_num_threads()} CPU threads"),
    )
    table = comparison_table(rows).turned()
    print(render(table, "table", f"{title(rows[0])}; energy: paper convention, 45 nm FP32"))
    return rows


def title(row: dict[str, Any]) -> str:
    """What the rows have in common."""
    return f"{row['model']} on {row['dataset']}, {row['img_size']} px"


def report(rows: list[dict[str, Any]], num_val: int, measured: str) -> str:
    """report.md: the table, what it means, the plots, the commands."""
    from ecoformer.files.table import markdown
    from ecoformer.report.tables import comparison_table

    row = rows[0]
    commands = "\n".join(row["command"] for row in sorted(rows, key=lambda row: TRAINED.index(row["attention"])))
    return f"""# {title(row)}

{markdown(comparison_table(rows))}

- Energy is modelled, not measured: {row["energy_convention"]} convention, profile {row["energy_profile"]}, one image.
  "Attention only" is the core between the projections. A negative saving costs more.
- The published saving of EcoFormer is against MSA. Stock PVTv2 already attends to a subsampled map; beside it, the
  saving is the column "saves vs stock".
- images/s: eval mode, {measured}, the three models in turns, median of 5 rounds.
- One seed ({row["seed"]}), {num_val} validation images: one image is {100 / num_val:.2f} points. Top-1 is that of the
  best epoch on those same images.

![Training curves](training_curves.png)

EcoFormer starts from the trained MSA model, so its curve is the fine-tuning alone.

![Hash fits](ecoformer/hash_fits.png)

Every fit of EcoFormer's hash functions, block by block. The published form drops the keys, so it cannot tell its error
against the attention that it replaces; `attention=ecoformer_tuned` can.

![Code maps](code_maps.png)

Top: softmax attention of the MSA model. Bottom: the weights that EcoFormer's codes give the same image. Each map has
its own colour range, written above it.

```
{commands}
```
"""
