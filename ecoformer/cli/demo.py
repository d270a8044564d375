"""What this project is about, in some two minutes, on data that need no download.

    python scripts/demo.py [--out DIR] [key=value ...]

A small ViT learns a question that only attention answers: of the digits in a picture, which one does a single ink write
again and again? Its softmax attention (MSA) is then replaced in seconds, without training: by distilled codes, by
EcoFormer, and by two controls that attend to nothing. EcoFormer is also trained for a moment. Beside it stands what the
same attention costs PVTv2-B0 on larger images. Further key=value go to both trainings.
Leaves table.json, energy.json, demo.png, report.md and report.html in DIR, and the two runs.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoformer.cli.arguments import Parser, out_folder, script
from ecoformer.errors import InputError, counted

# Kinds that the trained model is converted to, with their options; and what is counted beside it.
KINDS: dict[str, dict[str, Any]] = {"distilled": {}, "ecoformer": {}, "uniform": {}, "none": {}}
BACKBONE, COUNTED, SIZES = "pvt_v2_b0", ("stock", "msa", "ecoformer", "distilled"), (224, 512, 1024)
# What it sets itself for both trainings.
OWN = ("experiment", "output_dir", "overwrite", "resume", "attention", "init")


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("--out", type=out_folder, default="outputs/demo", help="folder for everything it leaves")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings for both trainings")


def run(options: argparse.Namespace) -> int:
    for override in options.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in OWN or key.startswith("init."):
            raise InputError(f"{override}: the demo sets {key} itself: leave it out, or train with ecoformer train")
    started, out = time.perf_counter(), options.out
    checkpoint = out / "msa" / "best.pt"
    softmax = train("msa", out, options.overrides)
    # Imported late: --help should not wait for torch, nor should a setting that is refused.
    from ecoformer.cli.report import main as html_report
    from ecoformer.energy import load_profile
    from ecoformer.files import write_json, write_text
    from ecoformer.files.table import render
    from ecoformer.lab import demo
    from ecoformer.lab.closeness.source import load_source
    from ecoformer.lab.energy.cases import cases

    print("\nconverting, without training", flush=True)
    source = load_source(checkpoint=checkpoint, only_msa=True)
    rows, models = demo.convert_all(source, KINDS, softmax)
    rows = [softmax, *rows, train("ecoformer", out, [f"init.checkpoint={checkpoint}", *options.overrides])]
    convention, profile = softmax["energy_convention"], load_profile(softmax["energy_profile"])
    sizes = [case.row(convention, profile) for case in cases([BACKBONE], COUNTED, SIZES)]
    write_json(out / "table.json", rows)
    write_json(out / "energy.json", sizes)
    demo.draw(models, source.held_out(1)[0], rows, sizes, out / "demo.png")
    write_text(out / "report.md", demo.report(rows, sizes, source.data.num_val))
    print(render(demo.accuracy_table(rows), "table", f"\n{demo.TITLE}"))
    print(render(demo.size_table(sizes), "table", f"\n{BACKBONE} on larger images"))
    print(f"\n{time.perf_counter() - started:.0f} s; all of it is in", flush=True)
    return html_report([str(out)])


def train(kind: str, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run one experiment here, as train.py would; a setting that it refuses ends the process with code 2."""
    from ecoformer.cli.train import main as train_main

    arguments = [f"experiment=inks_{kind}", f"output_dir={out / kind}", "overwrite=true", *overrides]
    command = shlex.join(["python", "train.py", *arguments])
    print(f"\n$ {command}", flush=True)
    train_main(arguments)
    from ecoformer.report.runs import read_summary

    summary = read_summary(out / kind)
    epochs = counted(summary["epochs"], "epoch")
    how = f"trained, {epochs}" if kind == "msa" else f"converted, then {epochs}"
    return summary | {"how": how, "seconds": summary["duration_s"], "command": command}
