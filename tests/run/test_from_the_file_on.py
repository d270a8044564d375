"""What a run wrote, in a process that knows nothing of the run: evaluated, exported, compiled, for timm, as features.

Each kind is trained for one step, and one fresh process reads its best.pt with the commands and calls that the README
names. The logits must be those of the model that was read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import use_checkpoint
from app_helpers import FIT, OPTIONS, QUICK, ROOT, TINY_PVT, run_task
from fresh import Fresh

from ecoformer.kinds import BUILDERS, SPECS
from ecoformer.run.start import model_of_run, read_run

STEP = [TINY_PVT, *QUICK, "train.max_steps=1", "data.max_train_samples=8", "data.max_val_samples=8"]
LOW_RANK = "low_rank"


def has_state(kind: str) -> bool:
    """Whether a layer of the kind holds more than its projections."""
    needed = {"num_tokens": 4} if kind == "linformer" else {}
    module = BUILDERS[SPECS[kind]](16, 1, SPECS[kind](**needed))
    return bool(list(module.buffers())) or bool(module.new_parts)


KINDS = [kind for kind in SPECS if has_state(kind)]
FAST = ("ecoformer", "distilled", LOW_RANK)  # a process takes ten seconds
CASES = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in [*KINDS, LOW_RANK]]


@pytest.fixture(scope="module")
def used(
    fresh: Callable[..., Fresh], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """used(kind): the folder of a run of one step, and what a fresh process made of its best.pt."""
    folder = tmp_path_factory.mktemp("runs")

    def get(kind: str) -> tuple[Path, dict[str, Any]]:
        run = folder / kind
        settings = ["compress=low_rank"] if kind == LOW_RANK else [f"attention={kind}", *OPTIONS.get(kind, []), *FIT]
        run_task("train", "experiment=digits_msa", *settings, *STEP, f"output_dir={run}")
        images, result = torch.randn(2, 3, 32, 32), run / "used.pt"
        torch.save(images, run / "images.pt")
        done = fresh(use_checkpoint.main, run, cwd=ROOT)
        assert done.wait() == 0, done.stderr
        return run, torch.load(result)

    return get


@pytest.mark.parametrize("kind", CASES)
def test_a_fresh_process_computes_the_same(kind: str, used: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    run, found = used(kind)
    model, images = model_of_run(read_run(run / "best.pt")).eval(), torch.load(run / "images.pt")
    with torch.no_grad():
        logits = model(images)
        maps: Any = model.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
    for way in ("eager", "torch_export", "hub"):
        torch.testing.assert_close(found[way], logits, rtol=0, atol=1e-5, msg=way)
    torch.testing.assert_close(found["compiled"], logits, rtol=0, atol=1e-5)
    if "onnx" in found:
        torch.testing.assert_close(found["onnx"], logits, rtol=0, atol=1e-4)
    assert len(found["features"]) == 4
    for own, right in zip(found["features"], maps, strict=True):
        torch.testing.assert_close(own, right, rtol=0, atol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads((run / "eval.json").read_text())["top1"] == summary["top1"]


def test_the_kinds_with_state_are_these() -> None:
    assert {"ecoformer", "ecoformer_tuned", "distilled_hash", "random_hash", "performer"} <= set(KINDS)
    assert "msa" not in KINDS and "uniform" not in KINDS
