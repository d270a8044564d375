"""Checkpoint files: whole or not there, and never a way to run code."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import FakeModel, make_trainer

from ecoformer.errors import InputError
from ecoformer.model.checkpoint import evaluated_weights, load_checkpoint, load_weights, save_checkpoint

WEIGHTS = {"kind": "weights", "config": {}, "epoch": 1, "step": 6, "metrics": None}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**WEIGHTS, "model": {"w": torch.arange(5000.0)}, "epoch": 3})
    return path


class Exploit:
    """What a malicious pickle looks like: loading it would create the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_round_trip(checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    assert content["format"] == "ecoformer.checkpoint" and content["version"] == 2 and content["epoch"] == 3
    assert torch.equal(content["model"]["w"], torch.arange(5000.0))
    assert list(checkpoint.parent.iterdir()) == [checkpoint]  # nothing temporary is left


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in one_line(tmp_path / "none.pt")
    assert "does not exist" in one_line(tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.999])
def test_truncated(checkpoint: Path, share: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: max(4, int(share * len(whole)))])
    assert "is truncated or damaged" in one_line(checkpoint)


def test_flipped_bit_in_a_tensor(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    where = data.find(torch.arange(5000.0).numpy().tobytes())
    assert where > 0
    data[where + 8000] ^= 1
    checkpoint.write_bytes(bytes(data))
    assert "damaged" in one_line(checkpoint)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04" + bytes(40), b"PK\x03\x04"])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.pt"
    path.write_bytes(content)
    one_line(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"model": {"w": torch.ones(2)}}, path)
    assert "is no checkpoint of this project" in one_line(path)
    torch.save({"format": "ecoformer.checkpoint", "version": 2, "kind": "run", "model": {}}, path)
    assert "is no checkpoint of this project" in one_line(path)
    torch.save([1, 2], path)
    assert "is no checkpoint of this project" in one_line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    one_line(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_the_pickle_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trap = tmp_path / "trap.pt", tmp_path / "sprung"
    content = {"format": "ecoformer.checkpoint", "version": 1, "model": Exploit(trap)}
    if legacy:
        path.write_bytes(pickle.dumps(content))
        one_line(path)
    else:
        torch.save(content, path)
        assert "could run code" in one_line(path)
    assert not trap.exists()


def test_newer_version(checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    torch.save({**content, "version": 99}, checkpoint)
    assert "format version 99, this program reads up to 2: update it" in one_line(checkpoint)


def test_objects_that_could_not_be_loaded_again_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"checkpoint\['path'\] is a PosixPath"):
        save_checkpoint(tmp_path / "last.pt", {"path": tmp_path})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_disk_leaves_the_previous_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = checkpoint.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"ecoformer.files.os.{call}", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; free space"):
        save_checkpoint(checkpoint, {"model": {"w": torch.ones(9)}})
    assert checkpoint.read_bytes() == before and list(checkpoint.parent.iterdir()) == [checkpoint]


def test_disk_that_fills_up_while_writing(checkpoint: Path) -> None:
    """A real write error in the middle of the file: the process may write no file larger than 100 kB."""
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            save_checkpoint(checkpoint, {"model": {"w": torch.ones(1_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"cannot write {checkpoint}: File too large; free space")
    assert checkpoint.read_bytes() == before and list(checkpoint.parent.iterdir()) == [checkpoint]


def test_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        make_trainer(tmp_path / "file" / "run", epochs=1).fit()


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = FakeModel().state_dict()
    del state["stem.bias"]
    state["extra"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(7, 8)
    with pytest.raises(InputError) as caught:
        load_weights(FakeModel(), state, "some.pt")
    assert str(caught.value).startswith(
        "checkpoint some.pt does not fit this model: 1 key missing (first stem.bias), 1 key unexpected (first "
        "extra), 1 key of another shape (first head.weight); use"
    )


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda weight: weight.index_fill(0, torch.tensor(0), torch.nan), "has NaN or infinite numbers: use"),
        (lambda weight: (weight / 0).half(), "has NaN or infinite numbers: use"),
        (lambda weight: (100 * weight).to(torch.int8), "is no dense tensor of torch.float32: save"),
        (lambda weight: weight.to_sparse(), "is no dense tensor of torch.float32: save"),
        (lambda weight: weight.to("meta"), "is no dense tensor of torch.float32: save"),
    ],
)
def test_weights_that_are_none(spoilt: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    model = FakeModel()
    state = {**model.state_dict(), "head.weight": spoilt(model.head.weight.detach())}
    with pytest.raises(InputError) as caught:
        load_weights(model, state, "some.pt")
    assert str(caught.value).startswith(f"checkpoint some.pt cannot be used: head.weight {message}")
    load_weights(model, {key: value.double() for key, value in model.state_dict().items()}, "some.pt")


def test_best_holds_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    last, best = load_checkpoint(tmp_path / "last.pt"), load_checkpoint(tmp_path / "best.pt")
    assert trainer.state.ema is not None
    averaged = trainer.state.ema.module.state_dict()
    for weights in (best["model"], evaluated_weights(best), evaluated_weights(last)):
        assert all(torch.equal(weights[key], averaged[key]) for key in averaged)
    assert not torch.equal(last["model"]["head.weight"], best["model"]["head.weight"])
    assert best["config"] == {"name": "fake"} and best["metrics"]["epoch"] == 0
