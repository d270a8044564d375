"""scripts/energy_table.py: its options, keys, exit codes and messages."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from row_keys import ROW_KEYS
from tiny_models import DIGITS_VIT, digits_run, hashed_run

from ecoformer.cli import energy as script
from ecoformer.lab.energy import published


def test_json_rows(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model pvt_v2_b0,twins_svt_small --attention stock,msa,ecoformer --img-size 224 --num-bits 16"
    options += " --num-anchors 25 --convention paper --profile 45nm_fp32 --format json"
    assert script.main(options.split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(tuple(row) == ROW_KEYS for row in rows)
    found = [(row["model"], row["attention"], row["muls"]) for row in rows]
    assert found == [
        ("pvt_v2_b0", "stock", 572023672),
        ("pvt_v2_b0", "msa", 2015865904),
        ("pvt_v2_b0", "ecoformer", 535392840),
        ("twins_svt_small", "stock", 2935786048),
        ("twins_svt_small", "msa", 5957848896),
        ("twins_svt_small", "ecoformer", 2718878336),
    ]
    assert (rows[2]["num_bits"], rows[2]["num_anchors"], rows[2]["uncounted"]) == (16, 25, [])


def test_a_kind_is_named_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    named = ["ecoformer:num_bits=8,num_anchors=5", "distilled:projection=ternary,num_features=4", "distilled"]
    options = ["--model", "test_vit", "--attention", ",".join(named), "--num-bits", "8", "--format", "json"]
    assert script.main(options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["attention"] for row in rows] == named
    assert (rows[0]["num_bits"], rows[0]["num_anchors"]) == (8, 5)
    assert script.main([*options[:3], "ecoformer", "--num-bits=8", "--num-anchors=5", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["muls"] == rows[0]["muls"]
    assert rows[1]["muls"] < rows[2]["muls"] and rows[1]["adds"] < rows[2]["adds"]
    assert script.main([*options[:3], "ecoformer:num_bit=8"]) == 2
    assert "did you mean attention.num_bits" in capsys.readouterr().err


def test_published_agrees_but_for_the_misprint(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--published"]) == 0
    text = capsys.readouterr().out
    assert text.count(" yes ") == 17 and text.count("misprint") == 2
    assert "6.71507" in text and "-0.03493" in text


def test_published_fails_on_any_other_difference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "PUBLISHED", {"pvt_v2_b0": ("0.54", "0.56", "2.6")})
    assert script.main(["--published"]) == 1
    assert "DIFFERS: pvt_v2_b0 energy_pj: printed 2.6, ours 2.5" in capsys.readouterr().out


def test_audited_md_and_latex(capsys: pytest.CaptureFixture[str]) -> None:
    for format, sign in (("md", "|---"), ("latex", "\\toprule"), ("csv", "model,attention,")):
        options = f"--model resnet18 --attention stock --img-size 64 --convention audited --format {format}"
        assert script.main(options.split()) == 0
        assert sign in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--by=stage", "--by=kind", "--explain", "--show-profile"])
def test_details(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert script.main(["--attention", "ecoformer", "--img-size", "96", "--convention", "audited", option]) == 0
    expected = {"--by=stage": "stages.2", "--by=kind": "fma", "--explain": "kernel: linalg_vector_norm"}
    assert expected.get(option, "Horowitz") in capsys.readouterr().out


def test_plots(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    options = f"--attention stock,ecoformer --img-size 96,128 --num-bits 4,16 --plots {tmp_path}"
    assert script.main(options.split()) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"layers.png", "resolution.png", "bits_anchors.png"}
    titles = [axis.get_title(loc="left").partition(":")[0] for axis in drawn["layers.png"].axes]
    assert titles == ["stock", "ecoformer, 4 bits, 25 anchors"]
    assert [line.get_label() for line in drawn["resolution.png"].axes[0].lines] == ["stock", titles[1]]
    assert drawn["bits_anchors.png"].axes[0].images[0].get_array().shape == (2, 1)


def test_measured_column_says_unavailable_without_a_counter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ecoformer.energy.measure.RaplMeter.__init__.__defaults__", (tmp_path,))
    options = "--model resnet18 --attention stock --img-size 32 --measure cpu --format json"
    assert script.main(options.split()) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["measured"] == "unavailable"
    assert "no RAPL package" in captured.err


BAD = {
    "--prices mac": "--out and --prices go with --calibrate",
    "--model nosuch": "--model=nosuch does not exist",
    "--attention linear": "attention=linear does not exist; choose one of stock",
    "--model resnet18 --attention msa": "no attention that can be converted",
    "--img-size 64 --attention ecoformer": "raise data.img_size, lower attention.num_anchors",
    "--img-size 8 --attention stock": "does not run on an input of shape (1, 3, 8, 8)",
    "--model vit_tiny_patch16_224 --img-size 8 --attention stock": "does not run on an input of shape (1, 3, 8, 8)",
    "--img-size big": "--seq-len: 'big' must be a whole number of at least 1",
    "--img-size 0": "--seq-len: '0' must be a whole number of at least 1",
    "--num-bits -4": "--num-bits: '-4' must be a whole number of at least 1",
    "--profile 7nm": "profile '7nm' does not exist: choose one of",
    "--profile 45nm_fp32_dram": "prices memory, which convention=paper does not count",
    "--convention both": "invalid choice: 'both'",
    "--format xml": "invalid choice: 'xml'",
    "--nonsense": "unrecognized arguments: --nonsense",
    "--by layer --measure cpu": "--measure has no effect beside --by",
    "--published --model twins_svt_small": "--model has no effect beside --published",
    "--show-profile --witness": "--witness has no effect beside --show-profile",
}


@pytest.mark.parametrize(("options", "message"), BAD.items(), ids=BAD)
def test_bad_input_gives_one_line_and_exit_code_2(one_line: Callable[..., str], options: str, message: str) -> None:
    assert message in one_line(script.main, *options.split())


def test_malformed_profile_file(one_line: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("summary: nothing else\n")
    assert one_line(script.main, "--profile", path) == f"error: profile {path}: key 'precisions' is missing\n"


def test_a_model_of_one_size_is_made_for_the_size_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model vit_tiny_patch16_224 --attention stock --img-size 224,256 --format json"
    assert script.main(options.split()) == 0
    small, large = json.loads(capsys.readouterr().out)
    assert large["params"] - small["params"] == (256 - 196) * 192  # the position embedding
    assert large["muls"] > small["muls"]


def test_what_cannot_be_counted_is_named_and_does_not_end_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--img-size", "64", "--attention", "stock,ecoformer,msa", "--format", "json"]) == 2
    captured = capsys.readouterr()
    assert [row["attention"] for row in json.loads(captured.out)] == ["stock", "msa"]
    assert (
        captured.err.startswith("error: pvt_v2_b0 ecoformer 64 px is left out: stage 3")
        and captured.err.count("\n") == 1
    )
    assert script.main(["--img-size", "64", "--attention", "ecoformer,stock", "--by", "stage"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("pvt_v2_b0 stock 64 px") and "ecoformer 64 px is left out" in captured.err


def test_a_checkpoint_beside_its_baselines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(hashed_run(tmp_path / "best.pt"))
    assert script.main(["--checkpoint", run, "--convention", "audited", "--format", "json"]) == 0
    own, stock, msa = json.loads(capsys.readouterr().out)
    assert (own["attention"], own["num_bits"], own["num_anchors"]) == ("ecoformer", 8, 4)
    assert (own["checkpoint"], stock["checkpoint"]) == (run, None) and own["img_size"] == 16
    assert msa["muls"] == stock["muls"] != own["muls"] and msa["attention"] == "msa"
    asked = ["--checkpoint", run, "--attention", "ecoformer:num_bits=8,num_anchors=4,top_k=3", "--model", "resnet18"]
    assert script.main([*asked, "--convention", "audited", "--format", "json"]) == 2
    captured = capsys.readouterr()
    same, again = json.loads(captured.out)
    assert same["muls"] == again["muls"] == own["muls"] and again["num_bits"] == 8
    assert captured.err.startswith("error: resnet18 ecoformer:num_bits=8,num_anchors=4,top_k=3 224 px is left out: ")
    assert script.main(["--checkpoint", run]) == 0
    assert "best.pt" in capsys.readouterr().out
    assert script.main(["--checkpoint", "nothing.pt"]) == 2
    assert "checkpoint nothing.pt does not exist" in capsys.readouterr().err


def test_savings_are_against_the_same_architecture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one model's name, the second of twice the depth: neither saves against the other's baselines."""
    runs = [str(digits_run(tmp_path / "shallow.pt"))]
    monkeypatch.setitem(DIGITS_VIT, "depth", 4)
    runs.append(str(digits_run(tmp_path / "deep.pt")))
    command = ["--checkpoint", ",".join(runs), "--attention", "stock,uniform"]
    assert script.main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["architecture"] for row in rows] == [run for run in runs for _ in range(3)]
    assert script.main([*command, "--format", "md"]) == 0
    head, _, *lines = (line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if "|" in line)
    place = [heading.strip() for heading in head].index("vs stock")
    msa, stock, uniform, *of_the_second = [line[place].strip() for line in lines]
    assert (msa, stock) == ("0.0 %", "-") and 0 < float(uniform.removesuffix("%")) < 50
    assert of_the_second[:2] == [msa, stock] and 0 < float(of_the_second[2].removesuffix("%")) < 50


def test_pictures_of_kinds_without_anchors(tmp_path: Path) -> None:
    """There is no map of bits and anchors to draw."""
    arguments = ["--model", "vit_tiny_patch16_224", "--attention", "distilled_hash", "--num-bits", "8,16"]
    assert script.main([*arguments, "--plots", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]


def test_sizes_are_what_each_model_is_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    models = "vit_tiny_patch16_224,vit_tiny_patch16_384,lra_encoder"
    assert script.main(["--model", models, "--attention", "stock", "--format", "json"]) == 0
    assert [row["img_size"] for row in json.loads(capsys.readouterr().out)] == [224, 384, 512]
    assert script.main(["--model", models, "--attention", "stock"]) == 0
    text = capsys.readouterr().out
    assert "384 px" in text and "512 tokens" in text


def test_a_model_without_attention_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--model", "resnet18", "--attention", "stock"]) == 0
    assert "No attention recognised in resnet18" in " ".join(capsys.readouterr().out.split())
    assert script.main(["--model", "resnet18", "--attention", "stock", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["attention_energy_pj"] is None


def test_joules_without_a_gpu_are_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert script.main(["--attention", "stock", "--measure", "cuda", "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["measured"] == "unavailable" and "torch sees no GPU" in captured.err
    assert script.main(["--attention", "stock", "--measure", "gpu"]) == 2
    assert "device 'gpu' does not exist" in capsys.readouterr().err
