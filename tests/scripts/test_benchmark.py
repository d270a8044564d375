"""The benchmark's contract: one row per variant with the promised keys, and one line for what it cannot do."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

import ecoformer.kinds  # noqa: F401  registers the kinds
from ecoformer.kinds import SPECS, make_spec
from ecoformer.lab.speed.cases import SpeedCase, Variant

KEYS = {"model", "attention", "img_size", "batch_size", "mode", "device", "precision"}
KEYS |= {"images_per_second", "ratio_to_stock", "peak_mib", "milliseconds"}
QUICK = ["--img-size", "96", "--batch-size", "2", "--threads", "1", "--rounds", "2", "--min-seconds", "0.01"]


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("ecoformer.cli.benchmark")


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_rows(script, capsys, tmp_path):
    out = tmp_path / "speed.json"
    arguments = ["--attention", "stock,msa_unfused", "--model", "pvt_v2_b0", "--format", "json", "--out", str(out)]
    assert script.main([*QUICK, *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(out.read_text())
    assert [row["attention"] for row in rows] == ["stock", "msa_unfused"]
    for row in rows:
        assert row.keys() >= KEYS
        assert row["milliseconds_low"] <= row["milliseconds"] <= row["milliseconds_high"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["milliseconds"], rel=0.01)
        assert row["peak_mib"] > 3.7e6 * 4 / 2**20, "not even the weights"
    assert rows[0]["ratio_to_stock"] == 1


def test_beside_load_the_same_rows_come_again(script, capsys):
    assert script.main([*QUICK, "--attention", "stock,msa", "--beside-load", "--format", "json", "--no-peak"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["attention"], row.get("beside_load", False)) for row in rows] == [
        ("stock", False), ("msa", False), ("stock", True), ("msa", True),
    ]  # fmt: skip
    for alone, beside in zip(rows[:2], rows[2:], strict=True):
        assert beside["slowdown"] == pytest.approx(beside["milliseconds"] / alone["milliseconds"], abs=0.01)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("layer", [[], ["--layer", "1"]], ids=["model", "layer"])
def test_modes(script, capsys, mode, layer):
    arguments = ["--attention", "ecoformer", "--no-peak", "--precision", "bf16", "--channels-last", "--mode", mode]
    assert script.main([*QUICK, *arguments, *layer, "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | attention |")
    assert "ratio_to_stock" not in lines[0], "there is no stock row to compare with"


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_every_registered_kind_runs(kind):
    assert SpeedCase("pvt_v2_b0", kind, img_size=96, batch_size=1).step()() is not None


def test_suffixes_are_read_off_the_end_but_never_off_a_name(monkeypatch):
    monkeypatch.setitem(SPECS, "sum_unfused", SPECS["msa"])
    found = [Variant.parse(label) for label in ("sum_unfused_compiled", "msa_unfused_compiled")]
    assert [(v.kind, sorted(v.suffixes)) for v in found] == [
        ("sum_unfused", ["compiled"]),
        ("msa", ["compiled", "unfused"]),
    ]
    assert Variant.parse("ecoformer_compiled:num_bits=8").spec == make_spec("ecoformer", {"num_bits": 8})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "nope"], "attention=nope does not exist; choose one of stock"),
        (["--attention", "msa_folded"], "attention=msa_folded does not exist"),
        (["--model", "resnet18", "--attention", "ecoformer"], "no attention that can be converted"),
        (["--model", "nope"], "--model=nope does not exist"),
        (["--device", "cuda:99"], "--device cuda:99, but torch sees"),
        (["--device", "abacus"], "--device abacus does not exist"),
        (["--device", "meta"], "--device meta is not supported"),
        (["--img-size", "64"], "16 tokens"),
        (["--img-size", "16"], "does not accept 16x16 images"),
        (["--img-size", "0"], "'0' must be a whole number"),
        (["--attention", "ecoformer_torch"], "ecoformer_torch: _torch is for CUDA"),
        (["--layer", "9"], "attention layers 1 to 8"),
    ],
)
def test_refusals(script, capsys, arguments, message):
    assert script.main(["--batch-size", "1", "--attention", "stock,ecoformer", "--no-peak", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_too_little_memory_is_one_line():
    code = (
        "import resource, sys;"
        "import ecoformer.lab.speed.peak_memory as p;"
        "p.refuse_more_than_available = lambda: resource.setrlimit(resource.RLIMIT_AS, (p._status_kib('VmSize') * 1024"
        " + 2**27,) * 2);"
        "from ecoformer.cli.benchmark import main; sys.exit(main())"
    )
    arguments = ["--peak-only", "--attention", "stock", "--batch-size", "64", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs more memory than there is" in done.stderr
