"""A process that has only a run's folder: what it makes of RUN/best.pt and RUN/images.pt goes to RUN/used.pt."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch

import ecoformer.models  # noqa: F401  registers the architecture
from ecoformer.cli import export, hub
from ecoformer.cli.eval import main as evaluate
from ecoformer.run.export import reopen
from ecoformer.run.start import model_of_run, read_run


@torch.no_grad()
def main(run: Path) -> None:
    torch.set_num_threads(1)
    images = torch.load(run / "images.pt")
    best = run / "best.pt"
    model = model_of_run(read_run(run)).eval()  # the folder stands for its best.pt
    found: dict[str, Any] = {"eager": model(images)}
    found["compiled"] = torch.compile(model, fullgraph=True, backend="eager")(images)
    formats = ["torch_export"]
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        formats.append("onnx")
    for kind in formats:
        assert export.main([str(best), f"--format={kind}", f"--out={run / kind}"]) == 0
        found[kind] = reopen(run / kind, kind)(images)
    assert hub.main([str(best), f"--out={run / 'hub'}"]) == 0
    folder = f"local-dir:{run / 'hub'}"
    found["hub"] = timm.create_model(folder, pretrained=True).eval()(images)
    found["features"] = timm.create_model(folder, pretrained=True, features_only=True).eval()(images)
    torch.save(found, run / "used.pt")
    evaluate([f"checkpoint={run}", "device=cpu", f"out={run / 'eval.json'}"])
