"""What the tests of studies share: a small study, a train.py that only pretends, and run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STUDY = """
title: Small
overrides: [data=digits]
backbones:
  net:
    title: a net
    overrides: [model=pvt_v2_b0]
    stage1: {msa: [train.epochs=3]}
    stage2: [train.epochs=1]
    rows:
      - {attention: msa, seeds: [0, 1]}
      - {attention: uniform}
      - {attention: ecoformer, name: kernel, overrides: [attention.numerator=kernel, attention.clamp=true],
         seeds: [0, 1], published: {top1: 70.44, energy_pj: 2.5e9}}
      - {attention: ecoformer, name: kernel, overrides: [attention.clamp=true], finetune: false}
"""

PRETENDED_TRAIN = """
import json, pathlib, sys
settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(settings["output_dir"])
with open(folder.parents[len(folder.parts) - 1 - folder.parts.index("runs")] / "started.txt", "a") as file:
    file.write(str(folder) + "\\n")
if settings.get("attention") == "uniform" and not (folder.parents[0] / "mended").exists():
    print("error: uniform attention fell over", file=sys.stderr)
    sys.exit(2)
epochs = int(settings["train.epochs"])
print(f"epoch {epochs}/{epochs}  loss 1.000  top-1 50.00 %")
(folder / "summary.json").write_text(json.dumps({
    "model": "pvt_v2_b0", "attention": settings["attention"], "attention_options": {}, "dataset": "digits",
    "duration_s": 1.0, "top1": 60.0 + int(settings["seed"]),
    "last_top1": 50.0 + int(settings["seed"]), "epochs": epochs, "params": 10, "energy_pj": 4e6,
    "attention_energy_pj": 1e6, "energy_convention": "paper", "images_per_second": 100.0,
}))
(folder / "metrics.jsonl").write_text(json.dumps({"event": "epoch", "step": 7 * epochs}) + "\\n")
(folder / "metrics.csv").write_text("epoch,train_loss,val_top1\\n0,1.0,50.0\\n")
"""


def write_run(folder: Path, settings: dict[str, Any], top1: float | None = None, **figures: Any) -> Path:
    """A run directory as train.py leaves it; unfinished without `top1`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(settings))
    (folder / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 0}\n{"event": "epo')
    if top1 is not None:
        known = {"top1": top1, "energy_pj": 2e9, "attention_energy_pj": 1e8, "images_per_second": 100.0}
        (folder / "summary.json").write_text(json.dumps(known | figures))
    return folder
