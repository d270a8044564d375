"""What train and eval do, from a typed config to what is written and printed."""

from dataclasses import asdict
from pathlib import Path

from ecoformer.config.schema import Config, EvalConfig
from ecoformer.engine import distributed
from ecoformer.engine.evaluation import evaluate
from ecoformer.engine.run_files import SUMMARY
from ecoformer.files import write_json
from ecoformer.run import summary
from ecoformer.run.build import build_evaluation, build_run, session, settle
from ecoformer.run.checks import check_config
from ecoformer.run.directory import choose_run_dir, opened
from ecoformer.run.plan import dry_run, launch_plan, plan_figures


def train(config: Config) -> float | None:
    """One run, from the config to summary.json; returns top-1 for sweeps that optimise it."""
    notes = check_config(config)
    settle(config)
    with session(config.device, threads=config.threads, deterministic=bool(config.deterministic)) as device:
        folder = choose_run_dir(config)
        config.output_dir = str(folder.path)
        run = build_run(config, folder, device)
        notes += folder.notes + run.built.notes + run.trainer.notes()
        if config.dry_run:
            dry_run(run, notes)
            return None
        with opened(folder, config) as opening:
            if distributed.is_main():
                summary.write_compression(folder.path, run.built.compression)
            if config.train.progress:
                summary.show_plan(launch_plan(run, plan_figures(run)), notes + opening)
            figures = summary.whole_summary(config, run.trainer.skeleton, run.trainer.fit(folder.resume))
            if distributed.is_main():
                write_json(folder.path / SUMMARY, figures)
                summary.draw_hash_fits(folder.path, run.built.model)
        summary.show_figures(f"{config.name}: {folder.path}", figures)
        return figures["top1"]


def evaluate_checkpoint(config: EvalConfig) -> float:
    """Top-1, top-5, loss, images/s and energy of one checkpoint, printed and, with `out`, written as JSON."""
    with session(config.device, threads=config.threads) as device:
        evaluation = build_evaluation(config, device)
        run = evaluation.run
        result = evaluate(evaluation.model, evaluation.data.val_loader, device, evaluation.amp)
        origin = {"checkpoint": str(run.path), "epochs": run.content["epoch"]}
        figures = summary.whole_summary(run.config, evaluation.model, {**asdict(result), **origin})
        if config.out is not None and distributed.is_main():
            write_json(Path(config.out).expanduser(), figures)
        for note in evaluation.data.notes if distributed.is_main() else ():
            print(note)
        summary.show_figures(f"{run.config.name}: {run.path}", figures)
        return result.top1
