"""What train and eval do, from a typed config to what is written and printed."""

from dataclasses import asdict, replace

from torch import Tensor

from ecoformer.config.schema import Config, EvalConfig
from ecoformer.data.imagenet import REAL, real_labels
from ecoformer.energy import load_profile
from ecoformer.engine import distributed
from ecoformer.engine.evaluation import evaluate
from ecoformer.engine.predictions import Predictions, RealLabels
from ecoformer.errors import InputError
from ecoformer.files import refuse_overwriting, require_writable, user_path, write_json
from ecoformer.files.run_names import SUMMARY
from ecoformer.report.tables import figure_rows
from ecoformer.run import summary
from ecoformer.run.build import build_evaluation, build_run, session, settle
from ecoformer.run.checks import check_config
from ecoformer.run.directory import choose_run_dir, opened
from ecoformer.run.plan import dry_run, launch_plan, plan_figures
from ecoformer.run.provenance import recorded


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
        with opened(folder, config) as opening, recorded(folder, device):
            if distributed.is_main():
                summary.write_compression(folder.path, run.built.compression)
            if config.train.progress:
                summary.show(launch_plan(run, plan_figures(run)), notes=notes + opening)
            figures = summary.whole_summary(config, run.trainer.skeleton, run.trainer.fit(folder.resume))
            if distributed.is_main():
                write_json(folder.path / SUMMARY, figures)
                summary.draw_hash_fits(folder.path, run.built.model)
            summary.show(figure_rows(figures), title=f"{config.name}: {folder.path}")
        return figures["top1"]


def evaluate_checkpoint(config: EvalConfig) -> float:
    """Top-1, top-5, loss, images/s and energy of one checkpoint or timm model, printed and, with `out`, as JSON."""
    refuse_overwriting([config.checkpoint], config.out, f"out={config.out}")
    for key in ("out", "details"):
        require_writable(value := getattr(config, key), f"{key}={value}", folder=key == "details")
    with session(config.device, threads=config.threads) as device:
        evaluation = build_evaluation(config, device)
        data, described = evaluation.data, evaluation.config
        load_profile(described.energy.profile).require_counted(described.energy.convention)
        real = RealLabels(real_labels(data.val_source)) if described.data.name == REAL else None
        if described.data.max_corrupt and (config.details is not None or real is not None):
            what = f"data.name={REAL}" if config.details is None else f"details={config.details}"
            raise InputError(f"{what} names every image: set data.max_corrupt=0")
        predictions = None if config.details is None else Predictions()

        def take(logits: Tensor, labels: Tensor) -> None:
            for taker in (real, predictions):
                if taker is not None:
                    taker.add(logits, labels)

        result = evaluate(evaluation.on_data, data.val_loader, device, evaluation.amp, on_logits=take)
        if real is not None:
            result = replace(result, **real.figures(device))
        figures = summary.whole_summary(described, evaluation.model, {**asdict(result), **evaluation.origin})
        for note in data.notes if distributed.is_main() else ():
            print(note)
        title = evaluation.origin.get("checkpoint", f"timm's weights, {described.data.img_size} px")
        summary.show(figure_rows(figures), title=f"{described.name}: {title}")
        # Afterwards, for a disk may be full.
        if config.out is not None and distributed.is_main():
            write_json(user_path(config.out), figures)
        if predictions is not None and config.details is not None:
            predictions.write(user_path(config.details), data.class_names, data.val_source.name)
        return result.top1
