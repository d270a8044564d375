"""Averages of checkpoints: what is averaged, what must be the same, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoformer import fit_hashes
from ecoformer.cli.average import main
from ecoformer.cli.export import main as export
from ecoformer.config.schema import Config, DataConfig, ModelConfig
from ecoformer.model.checkpoint import load_checkpoint, save_checkpoint
from ecoformer.ops.codes.powers import nearest_powers
from ecoformer.run.start import build_model, model_of_run, read_run

PVT = {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}
HASH = {"name": "ecoformer", "num_bits": 4, "num_anchors": 4, "top_k": 2}
Settings = dict[str, Any]


def checkpoint(path: Path, seed: int, *, fit: int = 0, ema: bool = False, **changes: Any) -> Path:
    """A checkpoint of a tiny hashed PVT: weights of `seed`, hash functions of `fit`."""
    settings: Settings = {"attention": HASH, "name": "pvt_v2_b0", "classes": 3, **changes}
    config = Config(
        model=ModelConfig(settings["name"], patch_stride=2, kwargs=PVT),
        attention=settings["attention"],
        data=DataConfig(name=settings.get("data", "digits"), img_size=32, mean=settings.get("mean")),
    )
    torch.manual_seed(0)  # the same start for the fits
    net = build_model(config, settings["classes"]).model
    fit_hashes(net, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(fit)), seed=fit)
    torch.manual_seed(seed)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    net.eval()  # codes of weights follow
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    content = {
        "kind": "weights",
        "config": {"settings": asdict(config), "class_names": [f"class{i}" for i in range(settings["classes"])]},
        "epoch": seed,
        "step": 10 * seed,
        "metrics": {"val_top1": 50.0},
        "model": weights,
    }
    if ema:
        torch.nn.init.zeros_(net.head.weight)
        content |= {"kind": "run", "ema": dict(net.state_dict()), "training": {}}
    save_checkpoint(path, content)
    return path


def test_parameters_are_averaged_and_hash_functions_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (1, 2, 3)]
    assert main([*map(str, paths), f"--out={tmp_path / 'mean.pt'}"]) == 0
    assert "the average of 3 checkpoints" in capsys.readouterr().out
    states = [load_checkpoint(path)["model"] for path in paths]
    found = load_checkpoint(tmp_path / "mean.pt")
    assert (found["kind"], found["epoch"], found["step"], found["metrics"]) == ("weights", 3, 30, None)
    names = {name for name, _ in model_of_run(read_run(paths[0])).named_parameters()}
    assert 0 < len(names) < len(states[0])
    for key, value in found["model"].items():
        assert value.dtype == states[0][key].dtype
        if key in names:
            torch.testing.assert_close(value, torch.stack([state[key] for state in states]).mean(0))
        else:
            assert torch.equal(value, states[2][key])
    model_of_run(read_run(tmp_path / "mean.pt")).eval()(torch.randn(1, 3, 32, 32))


def test_codes_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{seed}.pt", seed, attention={"name": "msa_shift"}) for seed in (1, 2)]
    assert main([*map(str, paths), f"--out={tmp_path / 'mean.pt'}"]) == 0
    found = load_checkpoint(tmp_path / "mean.pt")["model"]
    name = "stages.0.blocks.0.attn.proj"
    signs, exponents = nearest_powers(found[f"{name}.weight"])
    assert torch.equal(found[f"{name}.signs"], signs.to(torch.int8))
    assert torch.equal(found[f"{name}.exponents"], exponents.to(torch.int8))


def test_averaged_weights_of_a_run_are_taken(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "1.pt", 1, ema=True)
    two = checkpoint(tmp_path / "2.pt", 2)
    assert main([str(one), str(two), f"--out={tmp_path / 'mean.pt'}"]) == 0
    mean = load_checkpoint(tmp_path / "mean.pt")["model"]["head.weight"]
    torch.testing.assert_close(mean, load_checkpoint(two)["model"]["head.weight"] / 2)


def test_batch_norm_is_averaged_and_its_count_taken_from_the_last(tmp_path: Path) -> None:
    def with_norm(seed: int) -> Path:
        config = Config(model=ModelConfig("resnet10t"), data=DataConfig(name="digits", img_size=32))
        torch.manual_seed(seed)
        net = build_model(config, 3).model
        net.train()(torch.randn(4, 3, 32, 32))
        if seed == 2:
            net(torch.randn(4, 3, 32, 32))
        content = {"epoch": 1, "step": 1, "metrics": None, "model": dict(net.state_dict())}
        settings = {"settings": asdict(config), "class_names": ["a", "b", "c"]}
        save_checkpoint(tmp_path / f"{seed}.pt", {"kind": "weights", "config": settings, **content})
        return tmp_path / f"{seed}.pt"

    paths = [with_norm(1), with_norm(2)]
    assert main([*map(str, paths), f"--out={tmp_path / 'mean.pt'}"]) == 0
    one, two, mean = (load_checkpoint(path)["model"] for path in (*paths, tmp_path / "mean.pt"))
    key = next(key for key in one if key.endswith("running_var"))
    torch.testing.assert_close(mean[key], (one[key] + two[key]) / 2)
    assert mean[key.replace("running_var", "num_batches_tracked")] == 2


def test_refusals(tmp_path: Path, one_line: Callable[..., str]) -> None:
    one, out = checkpoint(tmp_path / "1.pt", 1), f"--out={tmp_path / 'mean.pt'}"
    others = {
        "hold different stages.0.blocks.0.attn": checkpoint(tmp_path / "fit.pt", 2, fit=1),
        "not of the same attention": checkpoint(tmp_path / "msa.pt", 2, attention={"name": "msa"}),
        "not of the same classes": checkpoint(tmp_path / "four.pt", 2, classes=4),
        "not of the same model": checkpoint(tmp_path / "li.pt", 2, name="pvt_v2_b2_li", attention={"name": "msa"}),
        "not of the same data.mean": checkpoint(tmp_path / "mean_of_its_own.pt", 2, mean=[0.1, 0.2, 0.3]),
        "data.std, or data.name": checkpoint(tmp_path / "cifar10.pt", 2, data="cifar10"),
    }
    for message, other in others.items():
        assert message in one_line(main, one, other, out)
    assert "hash functions and what else was fitted cannot be averaged" in one_line(main, one, tmp_path / "fit.pt", out)
    assert "a checkpoint is a .pt file" in one_line(main, one, out.replace(".pt", ".safetensors"))
    assert "give at least two" in one_line(main, one, out)
    assert "give at least two" in one_line(main, one, one, out)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(one.read_bytes())
    assert f"{one} and {copy} hold the same weights" in one_line(main, one, copy, out)
    assert "does not exist" in one_line(main, one, tmp_path / "no.pt", out)
    assert not (tmp_path / "mean.pt").exists()


def test_no_command_writes_over_what_it_reads(tmp_path: Path, one_line: Callable[..., str]) -> None:
    one, two = (checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (1, 2))
    before = one.read_bytes()
    assert "would write over" in one_line(main, one, two, f"--out={tmp_path / '..' / tmp_path.name / '1.pt'}")
    refused = one_line(export, one, "--format=torch_export", f"--out={one}")
    assert refused.endswith("which is read: name another file\n") and one.read_bytes() == before
    (tmp_path / "run").mkdir()
    best = one.rename(tmp_path / "run" / "best.pt")  # for which its folder stands
    for source in (best.parent, two):  # nor over another run's
        refused = one_line(export, source, "--format=torch_export", f"--out={best}")
        assert f"would write over {best}, a file of the run" in refused and best.read_bytes() == before
        (best.parent / "config.yaml").touch()
    one = best.rename(one)
    assert main([str(one), str(two), f"--out={tmp_path / 'mean.pt'}"]) == 0
    assert main([str(one), str(two), f"--out={tmp_path / 'mean.pt'}"]) == 0  # what it wrote itself may be written anew


def test_home_is_read_behind_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shell does it: --out=~/mean.pt made a folder called ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    one, two = (checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (1, 2))
    assert main([str(one), str(two), "--out=~/mean.pt"]) == 0
    assert (tmp_path / "mean.pt").is_file()
