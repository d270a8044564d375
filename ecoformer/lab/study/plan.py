"""A study as a file: backbones, what they are trained on first, and the rows that start from there.

    title: CIFAR-10
    overrides: [data=cifar10]                     # of every run; data.root comes from the command line
    backbones:
      vit:
        title: plain ViT
        overrides: [model=..., optim.lr=1e-3]
        stage1: {msa: [train.epochs=10]}          # attention -> overrides; trained with seed 0
        stage2: [train.epochs=1]                  # of every row that is fine-tuned
        rows:
          - {attention: msa, seeds: [0, 1, 2], stage1_seeds: [1, 2]}    # 3 runs from seed 0, 1 each from 1 and 2
          - {attention: ecoformer, name: kernel, overrides: [attention.numerator=kernel], finetune: false}
          - {attention: msa, source: scratch, seeds: [0, 1]}            # runs of stage 1 that are rows themselves

Every run is one train.py command with a folder of its own, so each can also be started by hand.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ecoformer.errors import InputError, first_line
from ecoformer.files.run_names import SUMMARY

SCRATCH = "scratch"


@dataclass
class RowConfig:
    """One row of the table, or one for each seed.

    `name` tells apart rows of the same attention; `source` is the stage-1 run that it starts from, "scratch" none: the
    row is a run of stage 1 itself; `finetune: false` converts, fits and evaluates without any training; `published`
    holds printed figures (top1, energy_pj).

    `seeds` are of stage 2, all from the stage-1 run of seed 0. Each of `stage1_seeds` is one run more, from a stage-1
    run of that seed, itself with the same seed: the spread of fine-tuning and that of training are told apart.
    """

    attention: str = MISSING
    name: str = ""
    source: str = "msa"
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    stage1_seeds: list[int] = field(default_factory=list)
    finetune: bool = True
    published: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The attention as tables and plots name it."""
        how = "from scratch" if self.source == SCRATCH else "" if self.finetune else "no training"
        return ", ".join(part for part in (self.attention, self.name, how) if part)

    @property
    def folder(self) -> str:
        how = SCRATCH if self.source == SCRATCH else "" if self.finetune else "converted"
        parts = [self.attention, self.name, how]
        # Hydra reads a comma in output_dir as a sweep.
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)


UNTRAINED = "train.epochs=0"


@dataclass
class BackboneConfig:
    title: str = MISSING
    overrides: list[str] = field(default_factory=list)
    stage1: dict[str, list[str]] = field(default_factory=dict)
    stage2: list[str] = field(default_factory=list)
    rows: list[RowConfig] = field(default_factory=list)


@dataclass
class StudyConfig:
    title: str = MISSING
    overrides: list[str] = field(default_factory=list)
    backbones: dict[str, BackboneConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run of a study. `needs` is the id of the run whose best.pt it starts from."""

    id: str
    backbone: str
    row: RowConfig | None  # None: a stage-1 run that is no row
    seed: int
    arguments: tuple[str, ...]  # of train.py, output_dir included
    folder: Path
    needs: str | None = None
    stage1_seed: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its summary, which it does last of all."""
        path = self.folder / SUMMARY
        return path.is_file() and path.stat().st_size > 0

    def command(self, launch: str = "python") -> str:
        """The command line, e.g. with launch="torchrun --nproc-per-node 8"."""
        return f"{launch} train.py {shlex.join(self.arguments)}"


def load_study(path: Path) -> StudyConfig:
    """Read a study file. Raises InputError: no such file, not YAML, an unknown key, a row without its stage-1 run."""
    try:
        node = OmegaConf.load(path)
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), node))
    except OSError as error:
        raise InputError(f"study {path} cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise InputError(f"study {path} is no YAML: {first_line(error)}") from error
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"study {path}: {first_line(error)}") from error
    assert isinstance(study, StudyConfig)
    if not study.backbones:
        raise InputError(f"study {path} has no backbones: give it one with rows")
    for name, backbone in study.backbones.items():
        for row in backbone.rows:
            where = f"study {path}: backbones.{name}: {row.label}"
            if row.source == SCRATCH:
                _check_scratch(row, backbone, where)
            elif row.source not in backbone.stage1:
                raise InputError(
                    f"{where} starts from {row.source}, which stage1 does not train (it has "
                    f"{', '.join(backbone.stage1) or 'nothing'}): add it there, or set source"
                )
            if not row.finetune and any(text.startswith("train.epochs=") for text in row.overrides):
                raise InputError(
                    f"{where} is not trained (finetune: false), yet sets train.epochs: leave out one of them"
                )
            if len(set(row.seeds)) < len(row.seeds):
                raise InputError(f"{where} has seeds={row.seeds}: each must be new")
            if own := [text for text in row.overrides if text.startswith(("seed=", "output_dir=", "init.checkpoint="))]:
                raise InputError(f"{where} sets {own[0]}, which the study does: leave it out")
            if 0 in row.stage1_seeds or len(set(row.stage1_seeds)) < len(row.stage1_seeds):
                raise InputError(
                    f"{where} has stage1_seeds={row.stage1_seeds}: each must be new, and 0 is where all of its seeds "
                    "start from already"
                )
        folders = [row.folder for row in backbone.rows]
        for folder in folders:
            if folders.count(folder) > 1:
                raise InputError(f"study {path}: backbones.{name} has two rows {folder!r}: give one of them a name")
    return study


def _check_scratch(row: RowConfig, backbone: BackboneConfig, where: str) -> None:
    if row.attention not in backbone.stage1:
        raise InputError(f"{where} is trained by stage1, which has {', '.join(backbone.stage1)}: add it there")
    if row.name or row.overrides or row.stage1_seeds or not row.finetune:
        raise InputError(f"{where} is a run of stage1, whose settings stand there: give it nothing but seeds")


def jobs(study: StudyConfig, out: Path, common: Sequence[str] = ()) -> list[Job]:
    """All runs of a study, each after the one it starts from. `common` are overrides of the command line."""
    return [job for name in study.backbones for job in _backbone_jobs(study, name, out, tuple(common))]


def _backbone_jobs(study: StudyConfig, name: str, out: Path, common: tuple[str, ...]) -> Iterator[Job]:
    backbone = study.backbones[name]
    shared = (*study.overrides, *backbone.overrides)

    def stage1_id(attention: str, seed: int) -> str:
        return f"{name}/stage1-{attention}" + (f"-seed{seed}" if seed else "")

    def job(
        id: str, row: RowConfig | None, seed: int, overrides: Sequence[str], needs: str | None, stage1_seed: int
    ) -> Job:
        folder = out / "runs" / id
        given = [*shared, *overrides, f"seed={seed}", *common]
        if row is not None and not row.finetune:
            given.append(UNTRAINED)  # whatever is asked of all runs
        if needs is not None:
            given.append(f"init.checkpoint={out / 'runs' / needs / 'best.pt'}")
        arguments = (*given, f"output_dir={folder}", "resume=auto")
        return Job(id, name, row, seed, arguments, folder, needs, stage1_seed)

    scratch = {row.attention: row for row in backbone.rows if row.source == SCRATCH}
    for attention, overrides in backbone.stage1.items():
        own = scratch.get(attention)
        started = [row for row in backbone.rows if row.source == attention]
        seeds = {0} if started or own is None else set()
        seeds |= {seed for row in started for seed in row.stage1_seeds} | set(() if own is None else own.seeds)
        for seed in sorted(seeds):
            yield job(
                stage1_id(attention, seed), own, seed, [f"attention={attention}", *overrides], None, stage1_seed=seed
            )
    for row in (row for row in backbone.rows if row.source != SCRATCH):
        overrides = [f"attention={row.attention}", *backbone.stage2, *row.overrides]
        runs = [(f"seed{seed}", seed, 0) for seed in row.seeds]
        runs += [(f"stage1_seed{seed}", seed, seed) for seed in row.stage1_seeds]
        for folder, seed, stage1_seed in runs:
            id = f"{name}/{row.folder}/{folder}"
            yield job(id, row, seed, overrides, stage1_id(row.source, stage1_seed), stage1_seed)
