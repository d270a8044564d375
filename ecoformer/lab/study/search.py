"""Optuna's search for the front of accuracy against energy: points are drawn, counted by the ledger, then trained.

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019. The search keeps its state in
one journal of JSON lines, so that the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from ecoformer.config.keys import keys_of
from ecoformer.config.loading import CONFIGS
from ecoformer.config.overrides import as_typed, require_ends
from ecoformer.config.schema import Config
from ecoformer.errors import InputError, first_line, is_whole, one_line
from ecoformer.files import finite
from ecoformer.files.table import energy_text
from ecoformer.lab.study.plan import Job
from ecoformer.lab.study.prediction import compose_run, predict_energy
from ecoformer.lab.study.runner import run_jobs
from ecoformer.nn.specs import SPECS
from ecoformer.report.runs import read_summary

if TYPE_CHECKING:
    import optuna

JOURNAL, RUNS = "search.journal", "runs"
OVERRIDES, ENERGY = "overrides", "energy_pj"
DIRECTIONS: Any = ("maximize", "minimize")  # of accuracy and energy
Show = Callable[[str], None]


@dataclass(frozen=True)
class Space:
    """What is searched and what is given, in the language of train.py's command line.

    `choices` are `key=a,b,c`, `key=range(...)` and `group=glob(...)`, `intervals` are `key=interval(low,high)`, on a
    logarithmic scale as `key=tag(log,interval(low,high))`; all else goes to every run as it is.
    """

    choices: dict[str, list[str]]
    intervals: dict[str, tuple[float, float, bool]]
    fixed: tuple[str, ...]

    def draw(self, trial: optuna.Trial) -> list[str]:
        """All overrides of one point."""
        drawn = [f"{key}={trial.suggest_categorical(key, values)}" for key, values in self.choices.items()]
        for key, (low, high, log) in self.intervals.items():
            drawn.append(f"{key}={trial.suggest_float(key, low, high, log=log)!r}")
        return [*self.fixed, *drawn]


def parse_space(overrides: Sequence[str]) -> Space:
    """Raises InputError: not Hydra's grammar, an empty interval, or nothing to search."""
    choices: dict[str, list[str]] = {}
    intervals: dict[str, tuple[float, float, bool]] = {}
    fixed: list[str] = []
    require_ends(overrides, intervals=True)
    loader = ConfigLoaderImpl(create_config_search_path(str(CONFIGS)))  # glob() asks it for the options of a group
    try:
        parsed = OverridesParser.create(loader).parse_overrides(as_typed(overrides, Config, sweeps=True))
    except HydraException as error:
        raise InputError(first_line(error)) from error
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_interval_sweep():
            intervals[key] = _interval(override, key)
        else:
            choices[key] = list(override.sweep_string_iterator())
            if not choices[key]:
                raise InputError(f"{override.input_line} matches no option of {key}: ask --help what there is")
    if not choices and not intervals:
        raise InputError("nothing to search: give at least one key several values, e.g. attention.num_bits=4,8,16")
    return Space(choices, intervals, tuple(fixed))


@dataclass(frozen=True)
class Search:
    """A search in a folder: points are drawn, counted, trained by `trainer`, and remembered.

    Args:
        launch: what stands before train.py, "python" or e.g. "torchrun --nproc-per-node 8".
        seed: of the drawing of points.
        show: takes one line for the user.
    """

    space: Space
    out: Path
    trainer: Sequence[str]
    launch: str
    seed: int
    show: Show

    def run(self, trials: int) -> int:
        """Go on until `trials` points are done, and return how many of them failed.

        A point that was interrupted goes on first. One that cannot be built fails at once, with its reason; one that
        was drawn before is not trained again. Raises InputError if the folder holds the search of another space.
        """
        study = open_study(self.out, self.seed)
        searched = finite(asdict(self.space))  # as the journal gives it back
        if study.user_attrs.setdefault("space", searched) != searched:
            raise InputError(f"{self.out} holds a search over other keys or values: give another --out")
        study.set_user_attr("space", searched)
        for frozen in study.get_trials(deepcopy=False):
            if not frozen.state.is_finished() and OVERRIDES in frozen.user_attrs:
                self._train(study, frozen.number, frozen.user_attrs[OVERRIDES], frozen.user_attrs[ENERGY])
        while (done := sum(frozen.state.is_finished() for frozen in study.get_trials(deepcopy=False))) < trials:
            trial = study.ask()
            counted = self._counted(trial, f"[{done + 1}/{trials}]")
            if counted is None:
                study.tell(trial, state=_states().FAIL)
                continue
            for key, value in zip((OVERRIDES, ENERGY), counted, strict=True):
                trial.set_user_attr(key, value)
            self._train(study, trial.number, *counted)
        return sum(frozen.state == _states().FAIL for frozen in study.get_trials(deepcopy=False))

    def preview(self, trials: int) -> None:
        """The first points that it draws before it knows anything, with their energy; nothing is trained."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(self.seed))
        for number in range(trials):
            self._counted(study.ask(), f"[{number + 1}/{trials}]")

    def _counted(self, trial: optuna.Trial, head: str) -> tuple[list[str], float] | None:
        """The overrides of a point and its energy, which are shown; None where it cannot be built."""
        overrides, head = self.space.draw(trial), f"{head} {_settings(trial)}"
        try:
            energy = _energy(overrides)
        except InputError as error:
            self.show(f"{head}: cannot be built: {error}")
            return None
        self.show(f"{head}: {energy_text(energy)} a sample")
        return overrides, energy

    def _train(self, study: optuna.Study, number: int, overrides: list[str], energy: float) -> None:
        # Equal points share a folder, and a finished run is not run again.
        first = min(t.number for t in study.get_trials(deepcopy=False) if t.user_attrs.get(OVERRIDES) == overrides)
        folder = self.out / RUNS / f"trial-{first:04d}"
        job = Job(folder.name, "search", None, 0, (*overrides, f"output_dir={folder}", "resume=auto"), folder)
        if run_jobs([job], self.trainer, self.launch, self.show):
            study.tell(number, state=_states().FAIL)
        else:
            study.tell(number, values=[read_summary(folder)["last_top1"], energy])


def front(out: Path) -> list[str]:
    """The points that no other one beats in both accuracy and energy, cheapest first, one line each."""
    best = sorted(open_study(out, 0).best_trials, key=lambda trial: trial.values[1])
    return [f"{trial.values[0]:6.2f} %  {energy_text(trial.values[1]):>10}  {_settings(trial)}" for trial in best]


def _energy(overrides: list[str]) -> float:
    found = predict_energy(compose_run([*overrides, "output_dir=unused"]))[ENERGY]
    assert isinstance(found, float)
    return found


def open_study(out: Path, seed: int) -> optuna.Study:
    """Optuna's study in the folder's journal; a new one if there is none. Raises InputError for a damaged one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        study = optuna.create_study(study_name="search", directions=DIRECTIONS, storage=storage, load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{out / JOURNAL} cannot be read ({one_line(error)}): remove the line that was cut short, or name "
            "another --out"
        ) from error
    # A search that goes on must not draw its first points again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
    return study


def _settings(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.params.items())


def _states() -> type[optuna.trial.TrialState]:
    import optuna

    return optuna.trial.TrialState


def _interval(override: Override, key: str) -> tuple[float, float, bool]:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep) and sweep.start is not None and sweep.end is not None
    low, high, log = float(sweep.start), float(sweep.end), "log" in sweep.tags
    if _is_whole(key):
        raise InputError(
            f"{override.input_line}: {key} takes whole numbers: list them, or {key}=range({low:g},{high:g})"
        )
    if not low < high or (log and low <= 0):
        raise InputError(f"{key}: interval({low:g},{high:g}) must rise" + (" from above 0" if log else ""))
    return low, high, log


def _is_whole(key: str) -> bool:
    """Whether a key, or an option of any attention kind, takes whole numbers alone."""
    known = keys_of(Config).get(key)
    options = [option for spec in SPECS.values() for option in fields(spec) if f"attention.{option.name}" == key]
    return (known is not None and int in known.types) or any(is_whole(option.default) for option in options)
