"""Seconds and peak memory of one pass, each point in a fresh process, so that memory and caches start alike.

Processes are forked from a server that has imported torch and run nothing.
"""

import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from ecoformer.errors import InputError, handling
from ecoformer.files import read_json, write_json
from ecoformer.lab.sequence.encoder import Kind, Shape
from ecoformer.lab.speed.peak_memory import PeakMemory, refuse_more_than_available, within_memory
from ecoformer.lab.speed.throughput import forward_pass

FIGURES = ("forward_s", "forward_mib", "train_s", "train_mib")
OWN_WARM_UP_S = 1.0  # a pass that takes longer is not repeated to warm up
MIN_TURN_S = 0.2  # shorter passes are repeated for so long


@dataclass(frozen=True)
class Point:
    """One measurement to make."""

    kind: Kind
    shape: Shape
    tokens: int
    layers: int
    threads: int

    @property
    def key(self) -> str:
        return f"{self.kind.label} {self.tokens}"


def measure_point(point: Point) -> dict[str, float]:
    """FIGURES of one point at batch 1, of `layers` blocks: a forward pass without autograd, then forward and backward.

    Run it in a fresh process: memory is counted from before the model is built. Raises InputError if it does not fit.
    """
    torch.set_num_threads(point.threads)
    refuse_more_than_available()
    with within_memory(f"{point.key} tokens: needs more memory than there is"):
        _load_code(point)
        memory = PeakMemory(torch.device("cpu"))
        model = point.kind.build_fitted(point.shape, point.tokens, point.layers)
        x_BND = torch.randn(1, point.tokens, point.shape.width)
        found = {}
        for mode, run in (("forward", forward_pass(model, x_BND)), ("train", _train(model, x_BND))):
            memory.reset()
            found[f"{mode}_s"] = _seconds(run)
            found[f"{mode}_mib"] = memory.mib
    return found


def _load_code(point: Point) -> None:
    """Run a narrow block of the kind once: what libraries load and keep on first use is no cost of the encoder's."""
    narrow = Shape("narrow", 2 * point.shape.heads, point.shape.heads, 2 * point.shape.heads, 1)
    kind, tokens = point.kind, min(point.tokens, 64)
    if kind.name == "low_rank":
        kind = replace(kind, number=1)
    model, x_BND = kind.build_fitted(narrow, tokens, 1), torch.randn(1, tokens, narrow.width)
    forward_pass(model, x_BND)()
    _train(model, x_BND)()


def _train(model: torch.nn.Module, x_BND: torch.Tensor) -> Callable[[], object]:
    def run() -> None:
        model.train()
        model.zero_grad()
        out_BND = model(x_BND)
        out_BND.backward(torch.ones_like(out_BND))

    return run


def _seconds(run: Callable[[], object]) -> float:
    first = _timed(run)
    if first > OWN_WARM_UP_S:
        return first
    seconds = [_timed(run)]
    while sum(seconds) < MIN_TURN_S:
        seconds.append(_timed(run))
    return statistics.median(seconds)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _child(point: Point, pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal's Ctrl-C reaches it too: the parent speaks
    found: dict[str, float] | str
    try:
        found = measure_point(point)
    except InputError as error:
        found = str(error)
    with suppress(BrokenPipeError):  # nobody waits any more
        pipe.send(found)


def measure_apart(point: Point) -> dict[str, float] | str:
    """`measure_point` in a process of its own; the message where it was refused."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    with handling([signal.SIGINT], signal.SIG_IGN):  # also while the server imports
        forkserver.ensure_running()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(point, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        child.join()
        raise RuntimeError(f"measuring {point.key} ended with exit code {child.exitcode}") from error
    finally:
        child.kill()  # which has answered, or nobody waits for
        child.join()


class Measurements:
    """What was measured so far, in a JSON file that grows point by point: an interrupted study goes on where it was.

    Args:
        path: the file.
        settings: shape, measured blocks, threads, machine, ...; a file with other settings is refused with InputError.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.points: dict[str, list[dict[str, float]]] = {}
        self.refused: dict[str, str] = {}
        if not path.exists():
            return
        held = read_measurements(path)
        for key, value in settings.items():
            if held["settings"].get(key) != value:
                raise InputError(
                    f"{path} was measured with {key}={held['settings'].get(key)}, now it is {value}: keep it, or "
                    "choose another --out"
                )
        self.points, self.refused = held["points"], held["refused"]

    def todo(self, points: list[Point], rounds: int) -> Iterator[Point]:
        """Round by round, all points of a round that are not measured yet."""
        for number in range(1, rounds + 1):
            for point in points:
                if point.key not in self.refused and len(self.points.get(point.key, [])) < number:
                    yield point

    def add(self, point: Point, found: dict[str, float] | str) -> None:
        """Keep a result and write the file."""
        if isinstance(found, str):
            self.refused[point.key] = found
        else:
            self.points.setdefault(point.key, []).append(found)
        content = {"settings": self.settings, "points": self.points, "refused": self.refused}
        write_json(self.path, content, indent=1)


def read_measurements(path: Path) -> dict[str, Any]:
    """The content of such a file. Raises InputError if it is none."""
    hint = "measurements of a sequence study: move it away, or choose another --out"
    content = read_json(path, hint)
    try:
        layers, refused = content["settings"]["layers"], content["refused"]
        sound = type(layers) is int and layers > 0 and isinstance(refused, dict)
        for key, rounds in content["points"].items():
            label, _, tokens = key.rpartition(" ")
            Kind.parse(label)
            figures = [found[name] for found in rounds for name in FIGURES]
            sound &= int(tokens) > 0 and len(rounds) > 0 and all(0 <= figure < math.inf for figure in figures)
    except (KeyError, TypeError, ValueError, AttributeError, InputError):
        sound = False
    if not sound:
        raise InputError(f"{path} holds no {hint}")
    assert isinstance(content, dict)
    return content


def medians(content: dict[str, Any], shape: Shape) -> dict[tuple[str, int], dict[str, float]]:
    """Medians over the rounds, scaled from the measured blocks to the shape's: per (kind, tokens) the FIGURES.

    Time is proportional to the blocks. In a forward pass only the weights are; what training holds is, but for the
    moment's temporary results, so its scaled peak is an upper bound.
    """
    measured = content["settings"]["layers"]
    factor = shape.layers / measured
    found = {}
    for key, rounds in content["points"].items():
        label, _, tokens = key.rpartition(" ")
        figures = {name: statistics.median(r[name] for r in rounds) for name in FIGURES}
        params = sum(p.numel() for p in Kind.parse(label).build(shape, int(tokens), measured).parameters())
        figures["forward_mib"] += (factor - 1) * params * 4 / 2**20
        for name in ("forward_s", "train_s", "train_mib"):
            figures[name] *= factor
        found[label, int(tokens)] = figures | {"rounds": len(rounds)}
    return found
