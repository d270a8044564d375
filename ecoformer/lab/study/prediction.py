"""A run before anything is trained: its config is composed, its model built without weights and its energy counted."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ecoformer.config.faults import describe
from ecoformer.config.loading import CONFIGS, load_config
from ecoformer.config.overrides import as_typed
from ecoformer.config.schema import SEQUENCES, Config, register_schemas
from ecoformer.data.sequences import BYTES
from ecoformer.errors import InputError, counted
from ecoformer.lab.study.plan import Job
from ecoformer.run.checks import check_config
from ecoformer.run.start import build_model
from ecoformer.run.summary import run_energy

CLASSES = {"imagenet": 1000, "cifar100": 100}
OTHERS = 10  # the classifier of another number of classes changes the energy of the model, not of its attention


def compose_run(arguments: Sequence[str]) -> Config:
    """The typed config of `train.py ARGUMENTS`. Raises InputError as train.py does."""
    register_schemas()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = load_config(Config, compose("train", as_typed(arguments, Config)))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(describe(error, "train") or str(error)) from error
    check_config(config)
    return config


def predict_energy(config: Config) -> dict[str, Any]:
    """The ledger's figures of the run's model, as in its summary.json later on. Raises InputError as train.py does."""
    data, sequences = config.data, {}
    if data.name in SEQUENCES:  # however many ids there are: an embedding is read, not multiplied
        sequences = {"vocab_size": BYTES + 1, "seq_len": data.seq_len or data.img_size**2}
    built = build_model(config, CLASSES.get(data.name, OTHERS), with_weights=False, sequences=sequences)
    return run_energy(config, built.model) | {"seq_len": sequences.get("seq_len")}


def predictions(jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | InputError]]:
    """Each run and its `predict_energy`, or why train.py would refuse it."""
    known: dict[tuple[str, ...], dict[str, Any] | InputError] = {}
    for job in jobs:
        # Neither seeds nor what training starts from change the energy.
        key = tuple(a for a in job.arguments if not a.startswith(("seed=", "output_dir=", "init.checkpoint=")))
        if key not in known:
            try:
                known[key] = predict_energy(compose_run(job.arguments))
            except InputError as error:
                known[key] = error
        yield job, known[key]


def require_possible(found: Iterable[tuple[Job, dict[str, Any] | InputError]]) -> None:
    """Raises InputError for `predictions` that are refusals: a study of days should not end at its last row."""
    refused = [(job, error) for job, error in found if isinstance(error, InputError)]
    if refused:
        what = f"{counted(len(refused), 'run')} of the study cannot be done ({', '.join(job.id for job, _ in refused)})"
        raise InputError(f"{what}, the first for this: {refused[0][1]}")
