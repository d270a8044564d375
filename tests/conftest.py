"""What every test shares: no downloads, few threads, seeded randomness.

Imported in functions is what takes seconds: the process that only hands out the tests has this file too.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["MPLBACKEND"] = "Agg"

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fresh import Fresh
    from matplotlib.figure import Figure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported now stays: it is not searched for garbage, neither while it comes nor in any test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else Triton says at the exit that all it has leaks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """one_line(main, *arguments): what a command says that must refuse them, with exit code 2 and nothing else."""

    def refused(main: Callable[[list[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
        return said.err

    return refused


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are saved while a test runs, by the name of their file."""
    from matplotlib.figure import Figure

    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def savefig(figure: Figure, file: Any, **options: Any) -> None:
        figures[Path(file.name).name.removesuffix(".tmp")] = figure
        save(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fresh]]:
    """fresh(function, *arguments, cwd=folder, KEY=value): the call in a process of its own, started."""
    from fresh import Fresh

    started: list[Fresh] = []

    def start(run: Callable[..., Any], *arguments: Any, cwd: Path = Path(), **environment: str) -> Fresh:
        folder = tmp_path_factory.mktemp("process")
        started.append(Fresh(run, *arguments, folder=folder, cwd=cwd, environment=environment))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.join()
