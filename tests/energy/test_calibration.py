"""Prices from measured joules: found again where they are known, refused where they cannot be told."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ecoformer.cli import energy as command
from ecoformer.energy import calibrate, count, load_profile
from ecoformer.energy.ledger import Ledger
from ecoformer.errors import InputError

TRUE = {"mac": 2.0, "add": 0.5, "read_bytes": 10.0, "written_bytes": 10.0}


class Block(nn.Module):
    """Products, sums and element-wise work in proportions of its own."""

    def __init__(self, width: int, sums: int) -> None:
        super().__init__()
        self.linear, self.sums = nn.Linear(8, width), sums

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x).relu()
        for _ in range(self.sums):
            x = x + 1
        return x.softmax(-1)


def ledgers(shapes: Sequence[tuple[int, int]] = ((4, 0), (64, 1), (256, 9), (16, 40), (512, 3))) -> list[Ledger]:
    return [count(Block(width, sums), torch.zeros(4, 8)) for width, sums in shapes]


def measured(noise: Sequence[float] = (0, 0, 0, 0, 0)) -> list[tuple[str, Ledger, float]]:
    return [
        (f"block {i}", ledger, ledger.energy_pj(TRUE) * 1e-12 * (1 + error))
        for i, (ledger, error) in enumerate(zip(ledgers(), noise, strict=True))
    ]


def test_prices_are_found_again_and_charge_what_was_measured(tmp_path: Path) -> None:
    found = calibrate(measured())
    assert found.prices == pytest.approx({"mac": 2.0, "add": 0.5, "bytes": 10.0})
    assert found.r2 == pytest.approx(1) and found.left_out == pytest.approx(found.joules)
    path = tmp_path / "mine.yaml"
    path.write_text(found.to_yaml())
    for label, ledger, joules in measured():
        assert ledger.energy_pj(path) * 1e-12 == pytest.approx(joules), label
        assert ledger.energy_pj(found.profile) == pytest.approx(ledger.energy_pj(path))
    assert yaml.safe_load(path.read_text())["calibration"]["samples"][1]["label"] == "block 1"
    assert "R2 1.0000" in load_profile(path).precisions["measured"].prices["fma"].origin


def test_residuals_are_of_the_least_relative_squares() -> None:
    work = [(900, 100, 500), (100, 800, 400), (200, 300, 4000), (5000, 4000, 9000), (70, 10, 100), (10, 60, 200)]
    counted = [{"fma": fma, "add": add, "read_bytes": read} for fma, add, read in work]
    off = (0.02, -0.03, 0.01, 0.02, -0.01, 0.02)
    joules = [
        (2 * fma + 0.5 * add + 10 * read) * 1e-12 * (1 + error)
        for (fma, add, read), error in zip(work, off, strict=True)
    ]
    found = calibrate([(str(i), *sample) for i, sample in enumerate(zip(counted, joules, strict=True))])
    residuals = [model / joule - 1 for model, joule in zip(found.modelled, joules, strict=True)]

    def squares(changed: dict[str, float]) -> float:
        weights = [changed[name] for name in ("mac", "add", "bytes")]
        modelled = [sum(n * pj for n, pj in zip(counts, weights, strict=True)) * 1e-12 for counts in work]
        return sum((model / joule - 1) ** 2 for model, joule in zip(modelled, joules, strict=True))

    best = squares(found.prices)
    assert best == pytest.approx(sum(miss**2 for miss in residuals))
    for name, price in found.prices.items():
        assert min(squares({**found.prices, name: price * scale}) for scale in (0.99, 1.01)) > best
        assert found.errors[name] > 0
    assert 0.99 < found.r2 < 1
    # A sample that had no say is missed by more than one that had.
    misses = [abs(out / joule - 1) for out, joule in zip(found.left_out, joules, strict=True)]
    assert all(out > abs(miss) for out, miss in zip(misses, residuals, strict=True))
    table = found.table()
    assert all(word in table for word in ("residual", "left out", "condition", "R2 0.99", "standard error"))


def test_a_price_that_would_be_negative_is_zero() -> None:
    samples = [({"fma": 100, "add": 0}, 1e-10), ({"fma": 100, "add": 100}, 0.9e-10), ({"fma": 300, "add": 100}, 3e-10)]
    found = calibrate([(str(i), work, joules) for i, (work, joules) in enumerate(samples)], ["mac", "add"])
    assert found.prices["add"] == 0 and found.errors["add"] is None
    # With one price left, p = sum(a) / sum(a^2) of the relative equations a p = 1.
    equations = [work["fma"] * 1e-12 / joules for work, joules in samples]
    assert found.prices["mac"] == pytest.approx(sum(equations) / sum(a * a for a in equations))
    assert "zero because it would be negative: add" in found.table()


REFUSED = {
    "too few": (measured()[:2], {}, "2 samples cannot tell 3 prices apart .* at least 3 different models"),
    "proportional": (
        [(str(n), {"fma": 3 * n, "add": n}, 1e-9 * n) for n in (1, 2, 3)],
        {"prices": ["mac", "add"]},
        "their work is proportional",
    ),
    "absent": ([(str(n), {"fma": n}, 1e-9) for n in (1, 2)], {"prices": ["mac", "add"]}, "no sample has any add"),
    "no add": (measured(), {"prices": ["mac", "bytes"]}, "add and mac .* must be among them"),
    "unknown": (measured(), {"prices": ["mac", "add", "dram"]}, "prices: dram does not exist"),
    "no list": (3, {}, "^calibrate: samples must be a list of "),
    "no pairs": ([3, 4], {}, "^calibrate: samples must be a list of "),
    "no work": ([("a", 3, 1.0)] * 3, {}, "^sample a: 3 is no ledger and no counts per kind$"),
    "no kind": ([("a", {"mac": 3}, 1.0)] * 3, {}, "^operations mac=3 are no count: give numbers from 0 of mul, add"),
    "below 0": ([("a", {"fma": -3}, 1.0)] * 3, {}, "^operations fma=-3 are no count"),
    "joules": ([("a", {"fma": 1}, -1.0)], {}, "sample a: joules=-1.0 must be a number above 0"),
    "paper": (
        [("a", count(nn.Linear(2, 2), torch.zeros(1, 2), convention="paper"), 1.0)],
        {},
        "sample a: convention=paper leaves work out",
    ),
}


@pytest.mark.parametrize(("samples", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_refused(samples: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(samples, **options)


def test_the_command_reads_models_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict] = [{**json.loads(ledger.to_json()), "joules": joules} for _, ledger, joules in measured()]
    rows[0]["label"] = "the smallest"
    model = {"model": "resnet18", "attention": "stock", "img_size": 32}
    rows += [{**model, "joules_per_image": 0.03}, {**model, "joules_per_image": None}]
    source, out = tmp_path / "measured.json", tmp_path / "mine.yaml"
    source.write_text(json.dumps(rows))
    assert command.main(["--calibrate", str(source), "--out", str(out)]) == 0
    text = capsys.readouterr()
    assert "the smallest" in text.out and "resnet18 stock 32 px" in text.out
    assert "1 of 7 samples has no joules: left out" in text.err
    assert command.main(["--model", "resnet18", "--attention", "stock", "--img-size", "32", "--profile", str(out),
                         "--convention", "audited", "--format", "json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)[0]["energy_pj"]
    modelled = yaml.safe_load(out.read_text())["calibration"]["samples"][-1]["modelled_joules"]
    assert found * 1e-12 == pytest.approx(modelled)


BAD = {
    "{}": "holds no measured samples",
    '[{"joules": 1}]': "sample 1: neither counts nor a model: give one of them",
    '[{"joules": 1, "counts": {"fmas": 3}}]': "sample 1: counts must be whole numbers of mul, add, fma",
    '[{"joules": 1, "model": "nosuch"}]': "sample 1: --model=nosuch does not exist",
    '[{"joules": 1, "model": "resnet18", "checkpoint": null}]': "its architecture is of a checkpoint that it does not",
    '[{"joules": 1, "model": "x", "checkpoint": "no.pt"}]': "sample 1: checkpoint no.pt does not exist",
    '[{"model": "resnet18"}]': "no sample has joules",
}


@pytest.mark.parametrize(("content", "message"), BAD.items(), ids=BAD)
def test_a_file_of_something_else(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measured.json").write_text(content)
    assert command.main(["--calibrate", str(tmp_path / "measured.json")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
