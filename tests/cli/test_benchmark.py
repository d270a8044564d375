"""The benchmark's contract: one row per variant with the promised keys, and one line for what it cannot do."""

import json
import resource

import pytest
import torch
from fresh import command, two_ranks
from tiny_models import hashed_run

import ecoformer.kinds  # noqa: F401  registers the kinds
from ecoformer.cli import benchmark as script
from ecoformer.fit.hashes import hash_layers
from ecoformer.kinds import SPECS, make_spec
from ecoformer.lab.speed import benchmark, peak_memory
from ecoformer.lab.speed.cases import SpeedCase, Variant
from ecoformer.lab.speed.section import read_rows
from ecoformer.run.process import flags

KEYS = {"model", "attention", "img_size", "batch_size", "mode", "device", "precision"}
KEYS |= {"images_per_second", "ratio_to_stock", "peak_mib", "milliseconds"}
QUICK = ["--img-size", "96", "--batch-size", "2", "--threads", "1", "--rounds", "2", "--min-seconds", "0.01"]


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forked(fresh, monkeypatch):
    """Peak memory is that of a fork. That commands start processes is a matter of tests/ops/test_hash_fit_benchmark."""

    def json_of(name, **options):
        done = fresh(command, [name, *flags(options)])
        assert done.wait() == 0, done.stderr
        return json.loads(done.stdout)

    monkeypatch.setattr(benchmark, "json_of", json_of)


@pytest.mark.usefixtures("forked")
def test_rows(capsys, tmp_path):
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
        assert row["peak_mib_high"] >= row["peak_mib"] >= row["peak_mib_low"] > 3.7e6 * 4 / 2**20, (
            "not even the weights"
        )
    assert rows[0]["ratio_to_stock"] == 1


def test_beside_load_the_same_rows_come_again(capsys):
    assert script.main([*QUICK, "--attention", "stock,msa", "--beside-load", "--format", "json", "--no-peak"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["attention"], row.get("beside_load", False)) for row in rows] == [
        ("stock", False), ("msa", False), ("stock", True), ("msa", True),
    ]  # fmt: skip
    for alone, beside in zip(rows[:2], rows[2:], strict=True):
        assert beside["slowdown"] == pytest.approx(beside["milliseconds"] / alone["milliseconds"], abs=0.01)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("layer", [[], ["--layer", "1"]], ids=["model", "layer"])
def test_modes(capsys, mode, layer):
    arguments = ["--attention", "ecoformer", "--no-peak", "--precision", "bf16", "--channels-last", "--mode", mode]
    assert script.main([*QUICK, *arguments, *layer, "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | attention |")
    assert "ratio_to_stock" not in lines[0], "there is no stock row to compare with"


TINY = ["--batch-size", "2", "--threads", "1", "--rounds", "2", "--min-seconds", "0.01", "--no-peak"]


def test_the_longest_operations_are_those_of_the_device(monkeypatch):
    """On a CPU beside a GPU, which did nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    text = benchmark.profile(lambda: torch.ones(8, 8) @ torch.ones(8, 8), 3, torch.device("cpu"))
    shares = [float(line.split()[0]) for line in text.splitlines()]
    assert len(shares) == 3 and 0 < sum(shares) <= 100.5 and "aten::" in text


def test_a_checkpoint_beside_its_baselines_at_its_own_size(capsys, tmp_path):
    run = hashed_run(tmp_path / "best.pt")
    assert script.main([*TINY, "--checkpoint", str(run), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["attention"], row["checkpoint"]) for row in rows] == [
        ("ecoformer", str(run)), ("stock", None), ("msa", None),
    ]  # fmt: skip
    assert {(row["model"], row["img_size"]) for row in rows} == {("vit_tiny_patch16_224", 16)}
    assert f"{tmp_path.name}/best.pt" in benchmark.markdown(benchmark.table(rows))
    assert script.main([*TINY, "--checkpoint", str(run), "--model", "pvt_v2_b0"]) == 2
    assert "holds vit_tiny_patch16_224, not pvt_v2_b0: leave --model out" in capsys.readouterr().err


def test_a_checkpoint_keeps_its_weights_and_hash_functions(tmp_path):
    run = str(hashed_run(tmp_path / "best.pt"))
    model = SpeedCase("vit_tiny_patch16_224", "ecoformer_compiled", 16, checkpoint=run).build()
    saved = torch.load(run, weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert [int(layer.hash.fit_count) for layer in hash_layers(model).values()] == [1, 1]
    other = SpeedCase("vit_tiny_patch16_224", "ecoformer:num_bits=4,num_anchors=3,top_k=3", 16, checkpoint=run).build()
    assert next(iter(hash_layers(other).values())).spec.num_bits == 4


def test_what_cannot_run_keeps_a_row_that_says_why(capsys, tmp_path):
    out = tmp_path / "rows.json"
    arguments = [*TINY, "--img-size", "64", "--attention", "stock,ecoformer", "--out", str(out)]
    assert script.main([*arguments, "--beside-load"]) == 2
    captured = capsys.readouterr()
    assert "stage 3" in captured.out and captured.err.startswith(
        "error: pvt_v2_b0 ecoformer 64 px is left out: stage 3"
    )
    found = json.loads(out.read_text())
    assert [(row["attention"], "error" in row, row.get("beside_load", False)) for row in found] == [
        ("stock", False, False), ("ecoformer", True, False), ("stock", False, True),
    ]  # fmt: skip
    assert [row["attention"] for row in read_rows(out)] == ["stock", "stock"]
    assert script.main([*TINY, "--img-size", "64", "--attention", "ecoformer", "--clamp"]) == 0


def test_too_little_memory_leaves_one_variant_out(capsys, monkeypatch):
    step = SpeedCase.step

    def short_of_memory(case):
        if case.attention == "msa":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 PiB")
        return step(case)

    monkeypatch.setattr(SpeedCase, "step", short_of_memory)
    assert script.main([*TINY, "--img-size", "32", "--attention", "stock,msa"]) == 2
    assert "msa at 32 px needs more memory than there is" in capsys.readouterr().err


def test_sizes_are_what_a_model_is_made_for(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "run", lambda args: seen.append(args) or 0)
    for model, size in (("vit_tiny_patch16_224", 224), ("vit_tiny_patch16_384", 384), ("lra_encoder", 512)):
        script.main(["--model", model])
        benchmark.settle(seen[-1])
        assert seen[-1].img_size == [size]


def test_headings_of_sequences(capsys):
    arguments = [*TINY, "--model", "lra_encoder", "--seq-len", "32", "--attention", "stock", "--format", "markdown"]
    assert script.main(arguments) == 0
    heading = capsys.readouterr().out.splitlines()[0]
    assert "| tokens |" in heading and "sequences_per_second" in heading and "im" not in heading.replace("time", "")


def test_the_training_loop_beside_a_bare_one(capsys, tmp_path):
    out = tmp_path / "loop.json"
    arguments = [
        "--loop",
        "--checkpoint",
        str(hashed_run(tmp_path / "best.pt")),
        "--attention",
        "msa",
        "--out",
        str(out),
    ]
    assert script.main([*TINY, *arguments, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(out.read_text()) and [row["attention"] for row in rows] == ["ecoformer", "msa"]
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["trainer_milliseconds"] > 0 and row["bare_milliseconds"] > 0 and row["rounds"] == 2
    for option in (["--layer", "1"], ["--joules"], ["--beside-load"]):
        assert script.main([*TINY, *arguments, *option]) == 2
        assert "--loop trains whole models and measures nothing else" in capsys.readouterr().err
    assert script.main([*TINY, "--loop", "--attention", "msa_compiled"]) == 2
    assert "no variant with a suffix, which msa_compiled has" in capsys.readouterr().err


def test_the_training_loop_of_two_processes(fresh, tmp_path):
    run = str(hashed_run(tmp_path / "best.pt"))
    line = ["benchmark", *TINY, "--loop", "--checkpoint", run, "--attention", "msa", "--format", "json"]
    ranks = [fresh(command, line, **environment) for environment in two_ranks()]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].stderr
    assert [(row["processes"], row["attention"]) for row in json.loads(ranks[0].stdout)] == [
        (2, "ecoformer"),
        (2, "msa"),
    ]
    assert ranks[1].stdout == "" and "epoch 3/4" in ranks[0].stderr and "epoch" not in ranks[1].stderr


def test_codes_for_large_images_are_those_of_a_fit_at_224_px():
    """Also where timm makes a model for one size, so that the large one cannot see the small image."""
    small, large = (SpeedCase("vit_tiny_patch16_224", "ecoformer", img_size=size, batch_size=1) for size in (224, 256))
    found = hash_layers(large.build())
    for name, layer in hash_layers(small.build()).items():
        assert layer.is_fitted and found[name].is_fitted
        for key, value in layer.state_dict().items():
            assert torch.equal(found[name].state_dict()[key], value), f"{name}.{key}"


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
def test_refusals(capsys, arguments, message):
    assert script.main(["--batch-size", "1", "--attention", "stock,ecoformer", "--no-peak", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def benchmark_of_little_memory(arguments):
    benchmark.refuse_more_than_available = lambda: resource.setrlimit(
        resource.RLIMIT_AS, (peak_memory._status_kib("VmSize") * 1024 + 2**27,) * 2
    )
    command(["benchmark", *arguments])


def test_too_little_memory_is_one_line(fresh):
    arguments = ["--peak-only", "--attention", "stock", "--batch-size", "64", "--threads", "1"]
    done = fresh(benchmark_of_little_memory, arguments)
    assert done.wait() == 2
    assert "needs more memory than there is" in done.stderr
