"""Files of weights as training scripts of others leave them: found, stripped, chosen, or named for what they are."""

from __future__ import annotations

import argparse
import io
import pathlib
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_models import tiny_pvt, tiny_vit
from torch import nn

from ecoformer.errors import InputError
from ecoformer.models.official import read_foreign
from ecoformer.models.weight_files import format_of, read_weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def plain() -> Tensors:
    return tiny_vit().state_dict()


@pytest.fixture
def averaged(plain: Tensors) -> Tensors:
    return {key: value + 1 for key, value in plain.items()}


def named(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def saved(tmp_path: Path, content: Any, name: str = "weights.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


PREFIXES = {
    "compiled": ("_orig_mod.", ["_orig_mod. left out of the names"]),
    "DataParallel": ("module.", ["module. dropped from the names of 32 tensors"]),
    "compiled, then wrapped": (
        "module._orig_mod.",
        ["_orig_mod. left out of the names", "module. dropped from the names of 32 tensors"],
    ),
    "wrapped, then compiled": (
        "_orig_mod.module.",
        ["_orig_mod. left out of the names", "module. dropped from the names of 32 tensors"],
    ),
    "Lightning": ("model.", ["model. dropped from the names of 32 tensors"]),
    "a wrapper of one's own": ("student.net.", ["student.net. dropped from the names of 32 tensors"]),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_of_wrappers(case: str, plain: Tensors, tmp_path: Path) -> None:
    prefix, notes = PREFIXES[case]
    found = read_weights(saved(tmp_path, {"state_dict": named(prefix, plain), "epoch": 3}))
    assert len(plain) == 32 and same(found.tensors, plain) and found.notes == notes


def test_submodules_that_were_compiled_on_their_own(plain: Tensors, tmp_path: Path) -> None:
    inside = {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in plain.items()}
    assert same(read_weights(saved(tmp_path, inside)).tensors, plain)


def test_a_lightning_module_with_a_loss_and_hyper_parameters(plain: Tensors, tmp_path: Path) -> None:
    state = {**named("model.", plain), "criterion.weight": torch.ones(7), "metric.total": torch.ones(())}
    content = {"state_dict": state, "hyper_parameters": {"lr": 1e-3}, "pytorch-lightning_version": "2.4", "epoch": 9}
    found = read_weights(saved(tmp_path, content, "last.ckpt"))
    assert same(found.tensors, plain)
    assert found.notes[1] == "left aside: criterion (1 tensors), metric (1 tensors)"


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_teacher_beside_the_model_is_named_and_left(
    prefix: str, plain: Tensors, averaged: Tensors, tmp_path: Path
) -> None:
    content = named(prefix, plain) | named("teacher.", averaged) | {"criterion.weight": torch.ones(4)}
    found = read_weights(saved(tmp_path, {"state_dict": content}))
    assert same(found.tensors, plain)
    assert found.notes[-1] == "left aside: teacher (32 tensors), criterion (1 tensors)"


def test_an_mm_style_backbone_keeps_its_classifier(plain: Tensors, tmp_path: Path) -> None:
    body = {key: value for key, value in plain.items() if not key.startswith("head.")}
    head = {f"head.fc.{name}": plain[f"head.{name}"] for name in ("weight", "bias")}
    state = {**named("backbone.", body), **head, "neck.norm.weight": torch.ones(3)}
    found = read_weights(saved(tmp_path, {"meta": {"epoch": 1}, "state_dict": state}))
    assert same(found.tensors, plain) and found.notes[-1] == "left aside: neck (1 tensors)"


@pytest.mark.parametrize(
    ("plain_key", "ema_key"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema_state_dict")]
)
def test_a_key_chooses_between_plain_and_averaged(
    plain_key: str, ema_key: str, plain: Tensors, averaged: Tensors, tmp_path: Path
) -> None:
    path = saved(tmp_path, {plain_key: plain, ema_key: named("module.", averaged), "arch": "vit"})
    taken, left = read_weights(path), read_weights(path, use_ema=False)
    assert same(taken.tensors, averaged) and same(left.tensors, plain)
    assert taken.notes[0] == f"averaged weights ({ema_key}) were taken; init.use_ema=false takes {plain_key}"
    assert left.notes == [f"plain weights ({plain_key}) were taken, averaged ones ({ema_key}) left aside"]
    alone = read_weights(saved(tmp_path, {ema_key: averaged}), use_ema=False)
    assert same(alone.tensors, averaged) and alone.notes == [f"averaged weights ({ema_key}) were taken"]


@pytest.mark.parametrize(("key", "other"), [("state_dict", "model"), ("model_ema", "ema")])
def test_of_two_models_of_one_kind_none_is_taken(
    key: str, other: str, plain: Tensors, averaged: Tensors, tmp_path: Path
) -> None:
    path = saved(tmp_path, {key: plain, other: averaged})
    with pytest.raises(InputError, match=f"holds different weights as {key} and as {other}: save those that are"):
        read_weights(path)
    copies = {key: plain, other: {name: value.clone() for name, value in plain.items()}}
    assert same(read_weights(saved(tmp_path, copies)).tensors, plain)
    assert same(read_weights(saved(tmp_path, {"state_dict": {"lr": torch.ones(1)}, "net": plain})).tensors, plain)


def test_averages_under_the_roof_of_one_state_dict(plain: Tensors, averaged: Tensors, tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {**named("model.", plain), **named("ema_model.", averaged)}})
    assert same(read_weights(path).tensors, averaged) and same(read_weights(path, use_ema=False).tensors, plain)
    path = saved(tmp_path, {**named("student.", plain), **named("teacher.", averaged)})
    with pytest.raises(InputError, match=r"holds 2 models \(student\., teacher\.\): save the one that is meant"):
        read_weights(path)


def test_what_scripts_keep_beside_tensors_is_harmless(plain: Tensors, tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PosixPath("runs")),
        "best_acc": np.float64(81.2),
        "epoch": np.int64(3),
        "log": [{"loss": 0.5}],
    }
    assert same(read_weights(saved(tmp_path, {"model": plain, **beside})).tensors, plain)


def test_safetensors_under_another_name_are_read(plain: Tensors, tmp_path: Path) -> None:
    safetensors.torch.save_file(plain, tmp_path / "weights.bin")
    assert same(read_weights(tmp_path / "weights.bin").tensors, plain)


def packed(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.txt", "a")
    else:
        with tarfile.open(fileobj=out, mode="w:gz" if kind == "gz" else "w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a git-LFS pointer, not the file"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not the file that it links to"),
        (b"", "is an empty file: use another copy"),
        (b'{"model": "weights"}', "is a text file: give a file of weights"),
        (packed("zip"), "is a zip archive of other files: unpack it"),
        (packed("gz"), "is a packed archive: unpack it"),
        (packed("tar"), "is a packed archive: unpack it"),
    ],
    ids=["lfs", "html", "empty", "json", "zip", "gz", "tar"],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_weights(tmp_path / "model.pth")
    assert str(refused.value).startswith(f"{tmp_path / 'model.pth'} {message}") and "\n" not in str(refused.value)


def test_safetensors_that_were_cut_or_are_none(plain: Tensors, tmp_path: Path) -> None:
    path, torch_file = tmp_path / "model.safetensors", saved(tmp_path, plain)
    safetensors.torch.save_file(plain, path)
    whole = path.read_bytes()
    for content in (whole[:4], whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert format_of(path) in (None, "")
        with pytest.raises(InputError, match="is truncated or damaged: download it again"):
            read_weights(path)
    path.write_bytes(torch_file.read_bytes())
    assert format_of(path) in (None, "") and same(read_weights(path).tensors, plain)


def test_a_folder_and_a_whole_pickled_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give a file of weights in it"):
        read_weights(tmp_path)
    with pytest.raises(
        InputError, match=r"asks for objects .* \(torch\.nn\.modules\.linear\.Linear\) and is not loaded"
    ):
        read_weights(saved(tmp_path, nn.Linear(2, 2)))


def test_the_layout_is_recognised_behind_the_wrapper(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model_ema": named("_orig_mod.", tiny_pvt().state_dict())})
    weights = read_foreign(path)
    assert weights.layout == "timm's PVTv2" and not weights.report.renamed
    assert weights.notes == ["averaged weights (model_ema) were taken", "_orig_mod. left out of the names"]
