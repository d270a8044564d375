"""Evaluate a checkpoint: python eval.py checkpoint=RUN/best.pt [data.root=DIR] [out=FILE.json]; --help lists keys."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from ecoformer.cli import app
from ecoformer.config.loading import load_config
from ecoformer.config.schema import EvalConfig
from ecoformer.engine import distributed
from ecoformer.engine.evaluate import evaluate
from ecoformer.files import write_json
from ecoformer.run import summary
from ecoformer.run.build import build_evaluation, session


def evaluate_checkpoint(cfg: DictConfig) -> float:
    """Top-1, top-5, loss, images/s and energy of one checkpoint, printed and, with `out`, written as JSON."""
    config = load_config(EvalConfig, cfg)
    with session(config.device, threads=config.threads) as device:
        evaluation = build_evaluation(config, device)
        run = evaluation.run
        result = evaluate(evaluation.model, evaluation.data.val_loader, device, evaluation.amp)
        origin = {"checkpoint": str(run.path), "epochs": run.content["epoch"]}
        figures = summary.run_summary(run.config, evaluation.model, {**asdict(result), **origin})
        if config.out is not None and distributed.is_main():
            write_json(Path(config.out).expanduser(), figures)
        for note in evaluation.data.notes if distributed.is_main() else ():
            print(note)
        summary.show_figures(f"{run.config.name}: {run.path}", figures)
        return result.top1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ends the process with the exit code of `cli.app.run`."""
    app.run(evaluate_checkpoint, "eval", argv)
    return 0
