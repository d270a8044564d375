"""The search: its space in Hydra's language, energy before training, going on after an interruption."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoformer.cli import search as search_command
from ecoformer.errors import InputError
from ecoformer.lab.study import search as module
from ecoformer.lab.study.search import Search, front, parse_space

ROOT = Path(__file__).resolve().parents[2]
SPACE = ["attention=msa", "train.epochs=1", "seed=range(0,4)"]


def test_a_space_in_the_language_of_the_command_line() -> None:
    space = parse_space(["data=digits", "a.b=4,8", "c=range(1,4)", "d=interval(0,1)", "e=tag(log,interval(1e-4,1))"])
    assert space.choices == {"a.b": ["4", "8"], "c": ["1", "2", "3"]}
    assert space.intervals == {"d": (0.0, 1.0, False), "e": (1e-4, 1.0, True)}
    assert space.fixed == ("data=digits",)


def test_a_group_is_searched_by_the_names_that_match() -> None:
    space = parse_space(["attention=glob(msa*)", "data.root=a=b", "name=1e3,x"])
    assert space.choices == {"attention": ["msa", "msa_shared_qk", "msa_shift"], "name": ["'1e3'", "x"]}
    assert space.fixed == ("data.root='a=b'",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention=glob(nothing*)"], r"attention=glob\(nothing\*\) matches no option of attention"),
        (["data=digits"], "nothing to search"),
        (["a=interval(1,0)"], r"a: interval\(1,0\) must rise"),
        (["a=tag(log,interval(0,1))"], "from above 0"),
        (
            ["train.epochs=interval(1,5)"],
            r"train\.epochs takes whole numbers: list them, or train\.epochs=range\(1,5\)",
        ),
        (["attention.num_bits=tag(log,interval(4,32))"], r"attention\.num_bits takes whole numbers"),
        (["a b c"], "a b c"),
        (["a=range(2,10,0)"], r"a=range\(2,10,0\): steps of 0 lead from 2 to no 10"),
        (["a=range(0,10,-1)"], "steps of -1 lead from 0 to no 10"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_space(overrides)
    assert "\n" not in str(error.value)


@pytest.fixture
def energies(monkeypatch: pytest.MonkeyPatch) -> None:
    def energy(overrides: list[str]) -> float:
        seed = int(overrides[-1].removeprefix("seed="))
        if seed == 3:
            raise InputError("no such thing")
        return 1e6 * (seed + 1) if seed != 1 else 9e6

    monkeypatch.setattr(module, "_energy", energy)


def started(out: Path) -> list[str]:
    return [Path(line).name for line in (out / "started.txt").read_text().split()]


@pytest.mark.usefixtures("energies")
def test_points_are_trained_once_and_the_front_is_of_those_that_no_other_beats(
    tmp_path: Path, trainer: list[str]
) -> None:
    pytest.importorskip("optuna")
    lines: list[str] = []
    space = parse_space(SPACE)
    search = Search(space, tmp_path, trainer, "python", 0, lines.append)
    search.run(5)
    assert sum("µJ a sample" in line or "cannot be built" in line for line in lines) == 5
    failed = search.run(24)
    # Four different points, one of which cannot be built; drawn again, they are not run again.
    assert len(started(tmp_path)) == len(set(started(tmp_path))) == 3
    assert failed == sum("cannot be built: no such thing" in line for line in lines) > 0
    # The pretended top-1 is 50 + seed: seed 1 costs more than seed 2 and is worse.
    points = {line.split("  ")[-1] for line in front(tmp_path)}
    assert points == {"seed=0", "seed=2"}
    assert front(tmp_path)[0].split()[:2] == ["50.00", "%"]


@pytest.mark.usefixtures("energies")
def test_an_interrupted_point_goes_on_first(
    tmp_path: Path, trainer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    space = parse_space(["attention=msa", "train.epochs=1", "seed=1,2"])
    search = Search(space, tmp_path, trainer, "python", 0, lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run_jobs", interrupted)
        search.run(1)
    assert search.run(1) == 0
    assert started(tmp_path) == ["trial-0000"]
    assert len(front(tmp_path)) == 1


@pytest.mark.usefixtures("energies")
def test_a_folder_holds_one_search(tmp_path: Path, trainer: list[str]) -> None:
    pytest.importorskip("optuna")
    for values in ("1,2", "1,2,0"):
        space = parse_space(["attention=msa", "train.epochs=1", f"seed={values}"])
        search = Search(space, tmp_path, trainer, "python", 0, lambda line: None)
        if values == "1,2":
            search.run(1)
    with pytest.raises(InputError, match="search over other keys or values: give another --out"):
        search.run(2)
    with open(tmp_path / "search.journal", "a") as journal:
        journal.write('{"op_code": 5, "wor\n')
    with pytest.raises(InputError, match=r"search\.journal cannot be read .* remove the line that was cut short"):
        search.run(2)


def test_a_preview_counts_real_models_and_trains_nothing(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    lines: list[str] = []
    space = parse_space(
        [
            "model=pvt_v2_b0",
            "data=digits",
            "data.img_size=64",
            "attention=ecoformer",
            "attention.top_k=2",
            "attention.num_anchors=2,4096",
        ]
    )
    Search(space, tmp_path, [], "python", 0, lines.append).preview(6)
    assert len(lines) == 6
    by_anchors = {anchors: [line for line in lines if f"num_anchors={anchors}" in line] for anchors in (2, 4096)}
    assert all(by_anchors.values()) and len(by_anchors[2]) + len(by_anchors[4096]) == 6
    assert all("µJ a sample" in line for line in by_anchors[2])
    assert all("num_anchors=4096: cannot be built" in line for line in by_anchors[4096])


def test_without_optuna_it_names_the_remedy(monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else real(name))
    assert "ecoformer[sweep]" in one_line(search_command.main, "--out", "x", "seed=0,1")


def test_impossible_arguments(one_line: Callable[..., str]) -> None:
    refused = one_line(search_command.main, "--out", "x", "--trials", 0, "seed=0,1")
    assert "--trials: '0' must be a whole number of at least 1" in refused
