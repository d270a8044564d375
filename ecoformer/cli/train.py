"""Train a model: python train.py experiment=NAME [key=value ...]; --help lists experiments, groups and keys."""

from collections.abc import Sequence

from omegaconf import DictConfig

from ecoformer.cli import app
from ecoformer.config.loading import load_config
from ecoformer.config.schema import Config
from ecoformer.engine import distributed
from ecoformer.engine.run_files import SUMMARY
from ecoformer.files import write_json
from ecoformer.run import summary
from ecoformer.run.build import build_run, session
from ecoformer.run.checks import check_config
from ecoformer.run.directory import choose_run_dir, opened
from ecoformer.run.plan import dry_run, launch_plan, plan_figures


def train(cfg: DictConfig) -> float | None:
    """One run, from the composed config to summary.json; returns top-1 for sweeps that optimise it."""
    config = load_config(Config, cfg)
    notes = check_config(config)
    with session(config.device, threads=config.threads, deterministic=config.deterministic) as device:
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
            figures = summary.run_summary(config, run.trainer.skeleton, run.trainer.fit(folder.resume))
            if distributed.is_main():
                write_json(folder.path / SUMMARY, figures)
                summary.draw_hash_fits(folder.path, run.built.model)
        summary.show_figures(f"{config.name}: {folder.path}", figures)
        return figures["top1"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ends the process with the exit code of `cli.app.run`."""
    app.run(train, "train", argv)
    return 0
