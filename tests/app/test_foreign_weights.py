"""train.py from a published checkpoint, and eval.py on an imported one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from app_helpers import QUICK, ROOT, make_folders

GOLDEN = ROOT / "tests" / "weights" / "golden" / "official_pvt_tiny_ecoformer.npz"
TINY = "+model.kwargs={embed_dims:[16,32,40,64],depths:[1,2,1,1],mlp_ratios:[2,2,2,2]}"
HASH = [
    "attention.num_bits=8",
    "attention.num_anchors=8",
    "attention.top_k=4",
    "attention.fit_steps=2",
    "callbacks.hash_update.num_images=4",
]


def test_training_goes_on_from_published_weights(train, tmp_path: Path):
    small = [*QUICK, "train.max_steps=1", "data.max_train_samples=16", "data.max_val_samples=8", "data.img_size=64"]
    figures = train(
        tmp_path / "run",
        *["experiment=digits_ecoformer", "model=timm", "model.name=pvt_v2_b0", "model.patch_stride=null", TINY],
        *[*HASH, *small, f"init.checkpoint={GOLDEN}"],
    )
    assert figures["epochs"] == 1


def test_an_imported_file_is_evaluated(command, tmp_path: Path):
    script = importlib.import_module("ecoformer.cli.import_weights")
    names = [f"class{index}" for index in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    arguments = [str(GOLDEN), "--model=pvt_v2_b0_ecoformer", f"--out={tmp_path / 'imported.pt'}"]
    assert script.main([*arguments, f"--classes={tmp_path / 'names.txt'}"]) == 0
    root = make_folders(tmp_path / "data", names, 64, {"val": 1})
    out = tmp_path / "figures.json"
    code = command("eval", f"checkpoint={tmp_path / 'imported.pt'}", f"data.root={root}", "device=cpu", f"out={out}")
    assert code == 0
    assert json.loads(out.read_text())["num_images"] == 10
