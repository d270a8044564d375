"""Runs on sequences: trained, resumed, evaluated, exported and published from the checkpoint alone, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from app_helpers import QUICK, TINY_HASH, run_task

from ecoformer.cli import benchmark, distill, energy, export, hub
from ecoformer.run.start import model_of_run, read_run

SEQ_LEN = 24
LISTOPS = [
    "model=lra_encoder",
    "data=listops",
    "augment=none",
    "+model.kwargs={embed_dim:16,depth:1,proj_drop_rate:0.1}",
    "data.max_train_samples=64",
    "data.max_val_samples=16",
    "data.min_tokens=6",
    f"data.seq_len={SEQ_LEN}",
    "data.max_depth=3",
    "data.max_args=5",
    *QUICK,
]
HASH = [*TINY_HASH, "attention.num_anchors=4", "attention.top_k=2", "attention.num_bits=4"]


def test_ids_that_a_checkpoint_does_not_know_are_refused(
    train: Callable[..., dict[str, Any]], refused: Callable[..., str], tmp_path: Path
) -> None:
    for name, largest in (("few", 300), ("more", 400)):
        (tmp_path / name).mkdir()
        for split in ("train", "val"):
            ids = np.arange(1, 161).reshape(16, 10)
            ids[0, 0] = largest
            np.savez(tmp_path / name / f"{split}.npz", ids=ids, labels=np.arange(16) % 2)
    texts = [setting for setting in LISTOPS if not setting.startswith("data")]
    train(tmp_path / "run", *texts, "data=text_bytes", f"data.root={tmp_path / 'few'}", f"data.seq_len={SEQ_LEN}")
    message = refused("eval", f"checkpoint={tmp_path / 'run'}", f"data.root={tmp_path / 'more'}")
    assert "knows 301 ids, the data have 401: give data with ids that it was trained on" in message


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with stock attention. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "stock"
    run_task("train", *LISTOPS, f"output_dir={folder}")
    return folder


def ids(num_real: int) -> torch.Tensor:
    found = torch.randint(1, 16, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    found[1, num_real:] = 0
    return found


def test_a_run_and_its_evaluation_agree(stock: Path, command: Callable[..., int], tmp_path: Path) -> None:
    summary = json.loads((stock / "summary.json").read_text())
    assert summary["seq_len"] == SEQ_LEN and summary["dataset"] == "listops"
    assert summary["energy_pj"] > summary["attention_energy_pj"] > 0
    assert command("eval", f"checkpoint={stock}", "device=cpu", f"out={tmp_path / 'eval.json'}") == 0
    again = json.loads((tmp_path / "eval.json").read_text())
    assert (again["top1"], again["energy_pj"]) == (summary["top1"], summary["energy_pj"])
    model = model_of_run(read_run(stock)).eval()
    assert (model.vocab_size, model.seq_len, model.num_classes) == (16, SEQ_LEN, 10)


def test_resumed_is_the_same_as_in_one_go(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = [*LISTOPS, "schedule=constant"]
    train(whole, *settings, "train.epochs=2")
    train(parts, *settings)
    train(parts, *settings, "train.epochs=2", "resume=auto")
    once, twice = (read_run(folder / "last.pt").content["model"] for folder in (whole, parts))
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("kind", ["msa", "ecoformer"])
def test_conversion_export_and_hub(
    stock: Path, kind: str, train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hashed = HASH if kind == "ecoformer" else []
    train(tmp_path / kind, *LISTOPS, f"attention={kind}", *hashed, f"init.checkpoint={stock}")
    best = str(tmp_path / kind / "best.pt")
    model = model_of_run(read_run(best)).eval()
    with torch.no_grad():
        logits = model(ids(9))
        torch.testing.assert_close(model(ids(9)[1:, :9]), logits[1:])

    out = str(tmp_path / "m.pt2")
    assert export.main([best, "--format=torch_export", f"--out={out}", "--dynamic-size"]) == 0
    assert f"1x{SEQ_LEN}, 3x{SEQ_LEN}, 1x{SEQ_LEN // 2}" in capsys.readouterr().out
    torch.testing.assert_close(torch.export.load(out).module()(ids(9)), logits)

    assert hub.main([best, f"--out={tmp_path / 'hub'}"]) == 0
    published = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    torch.testing.assert_close(published(ids(9)), logits)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["model_args"]["seq_len"] == SEQ_LEN and config["pretrained_cfg"]["input_size"] == [SEQ_LEN]
    assert "mJ a sequence (paper" in (tmp_path / "hub" / "README.md").read_text()


def test_words_of_a_run(command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [*LISTOPS, "attention=ecoformer", *HASH, "train.progress=true", f"output_dir={tmp_path / 'run'}"]
    assert command("train", *lines) == 0
    said = capsys.readouterr().out
    for words in (
        "64 train / 16 val samples, 10 classes",
        f"samples        {SEQ_LEN} tokens, 16 ids, in memory",
        f"stage 1: 1 layer of {SEQ_LEN}",
        "before epoch 1, on 4 samples",
        "J a sample, paper convention",
        " samples/s ",
        "energy a sample",
    ):
        assert words in said, words
    assert "image" not in said


def test_texts_of_one_file_are_evaluated_on_another(
    train: Callable[..., dict[str, Any]], command: Callable[..., int], tmp_path: Path
) -> None:
    lines = [
        f"texts/{split}/{name}/{n}.txt\t{name} {n}\n" for split in ("train", "test") for n in range(8) for name in "ab"
    ]
    (tmp_path / "one.tsv").write_text("".join(lines))
    (tmp_path / "other.tsv").write_text("".join(lines))
    texts = [setting for setting in LISTOPS if not setting.startswith(("data.m", "data=")) or "samples" in setting]
    sizes = ["data.max_train_samples=8", "data.max_val_samples=2"]
    train(tmp_path / "run", *texts, *sizes, "data=text_bytes", f"data.root={tmp_path / 'one.tsv'}")
    assert command("eval", f"checkpoint={tmp_path / 'run'}", f"data.root={tmp_path / 'other.tsv'}") == 0


def test_distilled_without_training(stock: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = tmp_path / "distilled.pt"
    fit = ["--attention=distilled:fit_steps=2", "--num-images=8", "--held-out=4", "--no-controls", "--threads=1"]
    assert distill.main([f"--checkpoint={stock / 'best.pt'}", f"--out={found}", *fit]) == 0
    said = capsys.readouterr().out
    assert "J a sample" in said and "on 16 samples" in said
    assert model_of_run(read_run(found))(ids(20)).isfinite().all()
    assert [path.name for path in (tmp_path / "distilled_pictures").iterdir()] == ["errors.png"]


def test_commands_without_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Energy, speed and export of the encoder by its name, at so many tokens."""
    model = ["--model=lra_encoder", "--seq-len=40"]
    assert energy.main([*model, "--attention=msa,ecoformer", "--format=json"]) == 0
    softmax, hashed = json.loads(capsys.readouterr().out)
    assert softmax["img_size"] == 40 and softmax["attention_energy_pj"] > hashed["attention_energy_pj"] > 0
    assert energy.main([*model, "--attention=msa", "--by=stage"]) == 0
    assert "lra_encoder msa 40 tokens" in capsys.readouterr().out
    speed = ["--batch-size=2", "--rounds=1", "--min-seconds=0.01", "--mode=train", "--format=json", "--no-peak"]
    assert benchmark.main([*model, "--attention=msa", "--layer=2", *speed]) == 0
    assert [row["batch_size"] for row in json.loads(capsys.readouterr().out)] == [2]
    assert export.main(["lra_encoder", "--format=torch_export", "--seq-len=40", f"--out={tmp_path / 'm.pt2'}"]) == 0
    assert "1x40, 3x40" in capsys.readouterr().out


def test_low_rank_weights_on_sequences(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    train(tmp_path / "run", *LISTOPS, "compress=low_rank", "compress.rank=4")
    assert model_of_run(read_run(tmp_path / "run")).eval()(ids(3)).isfinite().all()
    assert json.loads((tmp_path / "run" / "compression.json").read_text())["ledger"]["paper"]["before"]["muls"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=pvt_v2_b0"],
            "model.name=pvt_v2_b0 takes images, data.name=listops are sequences of ids: use model=lra",
        ),
        (
            ["data=digits", "data.seq_len=null"],
            "model.name=lra_encoder takes sequences of ids, data.name=digits are ima",
        ),
        (["+model.kwargs.seq_len=50"], "model.kwargs.seq_len=50: data.name=listops has 24: leave it out"),
        (
            ["train.channels_last=true"],
            "train.channels_last=true is a layout of images, data.name=listops are sequences",
        ),
        (["attention=linear_sra"], "takes no attn_mask"),
    ],
    ids=["image model", "image data", "length", "layout", "kind"],
)
def test_what_does_not_fit_is_one_line(
    overrides: list[str], message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    lines = [line for line in LISTOPS if "=digits" not in str(overrides) or not line.startswith("data")]
    said = refused("train", *[x for x in lines if not x.startswith(overrides[0].partition("=")[0] + "=")], *overrides)
    assert message in said


def test_a_checkpoint_for_other_lengths_is_refused(stock: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    lines = [*LISTOPS, "data.seq_len=30", f"init.checkpoint={stock}", f"output_dir={tmp_path / 'run'}"]
    assert "was trained on vocab_size=16, seq_len=24, the data have vocab_size=16, seq_len=30" in refused(
        "train", *lines
    )
