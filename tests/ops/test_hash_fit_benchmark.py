"""The command line of the hash-fit benchmark: its JSON, its errors, and that memory does not grow with N squared."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_hash.py"
KEYS = ["seconds", "peak_extra_mib", "objective_before", "objective_after", "accepted_bits"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


@pytest.fixture(scope="module")
def main() -> Iterator[Callable[[list[str]], int]]:
    module = importlib.import_module("ecoformer.cli.benchmark_hash")
    threads = torch.get_num_threads()
    yield module.main
    torch.set_num_threads(threads)


@needs_proc
def test_both_implementations_agree_and_only_the_naive_one_holds_an_n_by_n_matrix(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    num_tokens = 4000  # a matrix of 61 MiB; what any first fit maps is about 35
    arguments = f"--shape 1,1,{num_tokens},8 --num-bits 2 --num-anchors 5 --top-k 4 --steps 2 --threads 1"
    assert main([*arguments.split(), "--implementation", "both", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ((fast,), (reference,)) = report["runs"]["fast"], report["runs"]["reference"]
    for key in ("objective_before", "objective_after", "accepted_bits"):
        assert fast[key] == pytest.approx(reference[key])
    matrix_mib = num_tokens**2 * 4 / 2**20
    assert fast["peak_extra_mib"] < matrix_mib < reference["peak_extra_mib"]
    assert fast["seconds"] > 0 and report["speedup"] > 0


@needs_proc
@pytest.mark.parametrize("implementation", ["fast", "reference"])
def test_json_and_table(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], implementation: str
) -> None:
    arguments = "--shape 2,1,64,8 --num-bits 4 --num-anchors 5 --top-k 4 --steps 2 --threads 1 --implementation"
    assert main([*arguments.split(), implementation, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(isinstance(report[key], float) for key in KEYS[:-1]) and report["accepted_bits"] <= 4
    assert main([*arguments.split(), implementation]) == 0
    header, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["implementation", *KEYS] and row[0] == implementation
    assert float(row[3]) == pytest.approx(report["objective_before"], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape 2,1,64", "argument --shape: '2,1,64' must be four whole numbers of at least 1"),
        ("--shape 2,0,64,8", "argument --shape: '2,0,64,8' must be four whole numbers of at least 1"),
        ("--num-bits 0", "argument --num-bits: '0' must be a whole number of at least 1"),
        ("--shape 2,1,16,8", "--num-anchors 25 > 16 tokens of --shape: lower it to at most 16"),
        ("--shape 2,1,64,8 --top-k 33", "top_k=33 must lie in [1, 32], half of the 64 tokens"),
        ("--shape 2,1,64,8 --top-k 33 --implementation both", "top_k=33 must lie in [1, 32], half of the 64"),
        ("--shape 2,1,64,8 --lr nan", "lr=nan must be a finite number above 0"),
        ("--repeats 3", "--repeats needs --implementation both"),
        ("--implementation slow", "argument --implementation: invalid choice: 'slow'"),
        ("--speed 3", "unrecognized arguments: --speed 3"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    try:
        code = main([*arguments.split(), "--threads", "1"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else -1
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1
