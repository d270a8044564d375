"""What a user can get wrong: each gives one line that names the fault and the remedy, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from app_helpers import QUICK, TINY_DIGITS, TINY_PVT

from ecoformer import InputError
from ecoformer.engine.same_run import require_same_run
from ecoformer.run.directory import keep_out_of_splits

Refused = Callable[..., str]

COMMAND_LINES = [
    ("", ["model.name must be given", "experiment=NAME"]),
    ("model=pvt_v2_b0", ["data.name must be given", "data=OPTION"]),
    ("experiment=digits_mas", ["experiment=digits_mas does not exist", "did you mean digits_msa?", "digits_stock"]),
    ("expriment=digits_msa", ["unknown key expriment", "did you mean experiment?"]),
    ("+expriment=digits_msa", ["unknown key expriment", "did you mean experiment?"]),
    ("experiment=digits_msa train.epoch=3", ["unknown key train.epoch;", "did you mean train.epochs?"]),
    ("experiment=digits_msa +train.epoch=3", ["unknown key train.epoch;", "did you mean train.epochs?"]),
    ("experiment=digits_msa ++train.epoch=3", ["unknown key train.epoch;", "did you mean train.epochs?"]),
    ("experiment=digits_msa epochs=3", ["unknown key epochs", "did you mean train.epochs?"]),
    ("experiment=digits_msa +zzz.yyy=1", ["unknown key zzz", "known: name, model"]),
    ("experiment=digits_msa +train.epochs=3", ["train.epochs exists already", "leave out the +"]),
    ("+experiment=digits_msa", ["experiment exists already: leave out the + before it"]),
    (
        "experiment=digits_msa ~optim.clip_grad",
        ["~optim.clip_grad: a setting always has", "write optim.clip_grad=null"],
    ),
    ("experiment=digits_msa optim.betas.0=0.8", ["an item of a list or mapping that is null: give all of it"]),
    ("experiment=digits_msa optim.betas[0]=0.8", ["optim.betas[0]=0.8: give the whole list, as optim.betas=[VALUE"]),
    ("experiment=digits_msa optim.kwargs={foreach:false}", ["optim.kwargs does not have", "write a + before it"]),
    ("experiment=digits_msa output_dir=~nobody_here/x", ["~nobody_here/x lies in nobody's home: write the path in"]),
    ("experiment=digits_msa init.checkpoint=~nobody_here/x.pt", ["~nobody_here/x.pt lies in nobody's home"]),
    ("experiment=cifar10_pvt_v2_b0_msa data.root=~nobody_here", ["~nobody_here lies in nobody's home"]),
    ("experiment=digits_msa hydra.run.dir=x", ["hydra.run.dir=x is the folder of nothing here: write output_dir=x"]),
    ("experiment=digits_msa hydra.sweep.dir=x", ["hydra.sweep.dir=x is for sweeps: add -m, or write output_dir=DIR"]),
    ("experiment=digits_msa hydra.sweep.subdir=x", ["hydra.sweep.subdir=x is for sweeps: add -m"]),
    ("experiment=digits_msa --resolve", ["--resolve goes with --cfg: write --show"]),
    ("experiment=digits_msa --config-path x", ["--config-path=x: the package has its own: --config-dir DIR adds"]),
    ("experiment=digits_msa --config-name eval", ["experiment: the file that --config-name names has no such group"]),
    ("experiment=digits_msa ~model.kwargs", ["~model.kwargs: a setting always has a", "write model.kwargs.KEY=VALUE"]),
    ("experiment=digits_msa ~logger.wandb", ["write logger.wandb.KEY=VALUE"]),
    ("experiment=digits_msa ~augment", ["~augment: a setting always has a value: write augment=OPTION"]),
    ("experiment=digits_msa schedule.name=none", ["schedule.warmup_epochs=1 has no effect", "set it to 0"]),
    ("experiment=digits_msa train.epochs=abc", ["train.epochs=abc must be a whole number"]),
    ("experiment=digits_msa train.epochs=1.5", ["train.epochs=1.5 must be a whole number"]),
    ("experiment=digits_msa data.mean=[a,b,c]", ["data.mean[0]=a must be a number"]),
    ("experiment=digits_msa deterministic=maybe", ["deterministic=maybe must be true or false"]),
    ("experiment=digits_msa train.epochs==3", ["cannot read the override train.epochs==3"]),
    ("experiment=digits_msa seed=1,2", ["seed=1,2", "--multirun"]),
    ("experiment=digits_msa --epochs=3", ["--epochs is no flag", "train.epochs"]),
    ("experiment=digits_msa --cfg jobs", ["--cfg", "invalid choice: 'jobs'"]),
    ("experiment=digits_msa name=${nowhere}", ["name: Interpolation key 'nowhere' not found"]),
    ("experiment=digits_msa train.epochs=-1", ["train.epochs=-1 must be at least 0"]),
    ("experiment=digits_msa train.grad_accum=0", ["train.grad_accum=0 must be at least 1"]),
    ("experiment=digits_msa train.batch_size=-1", ["train.batch_size=-1 must be at least 1"]),
    ("experiment=digits_msa train.amp=fp8", ["train.amp=fp8 does not exist", "bf16"]),
    ("experiment=digits_msa train.amp=fp16 device=cpu", ["train.amp=fp16 needs a GPU"]),
    ("experiment=digits_msa device=tpu9", ["device=tpu9"]),
    ("experiment=digits_msa optim.lr=0", ["optim.lr=0.0 must be above 0"]),
    ("experiment=digits_msa optim.name=adamv", ["optim.name=adamv"]),
    ("experiment=digits_msa schedule=cosin", ["schedule=cosin does not exist", "did you mean cosine?"]),
    ("experiment=digits_msa schedule.name=cyclic", ["schedule.name=cyclic does not exist"]),
    ("experiment=digits_msa data=digts", ["data=digts does not exist", "did you mean digits?"]),
    ("experiment=digits_msa energy=null", ["energy=null does not exist", "audited, paper"]),
    ("experiment=digits_msa data=folder", ["data.root"]),
    ("experiment=digits_msa data=folder data.root=/no/such/folder", ["data.root=/no/such/folder is not a folder"]),
    ("experiment=cifar10_pvt_v2_b0_msa", ["data=cifar10 needs data.root"]),
    ("experiment=digits_msa augment.mixup=0.8 train.batch_size=63", ["train.batch_size=63 is odd"]),
    ("experiment=digits_msa model=pvt_v2_b9", ["model=pvt_v2_b9 does not exist", "pvt_v2_b5"]),
    ("data=digits model=resnet50", ["model=resnet50 does not", "any other of timm's: model=timm model.name=resnet50"]),
    ("experiment=digits_msa model.name=pvt_v2_b9", ["model.name=pvt_v2_b9 does not exist", "pvt_v2_b0"]),
    ("experiment=digits_msa model.name=pvt_v2_b0_msa", ["use model=pvt_v2_b0 attention=msa"]),
    ("experiment=digits_msa optim.kwargs.x=3", ["optim.kwargs.x is not set before: write +optim.kwargs.x=VALUE"]),
    ("experiment=digits_msa +model.kwargs.depth=3", ["model.name=pvt_v2_b0", "depth"]),
    ("experiment=digits_msa model.patch_stride=9", ["model.patch_stride=9"]),
    ("experiment=digits_msa attention=ecoforme", ["attention=ecoforme does not exist", "did you mean ecoformer?"]),
    ("experiment=digits_msa attention.num_bits=8", ["attention.num_bits is not an option"]),
    ("experiment=digits_ecoformer attention.num_bit=8", ["unknown key attention.num_bit;", "attention.num_bits?"]),
    ("experiment=digits_ecoformer +attention.num_bit=8", ["attention.num_bit", "attention.num_bits?"]),
    ("experiment=digits_ecoformer attention.num_bits=0", ["attention.num_bits=0 must be"]),
    ("experiment=digits_ecoformer callbacks.hash_update.every_steps=-1", ["every_steps=-1 must be at least 0"]),
    (
        "experiment=digits_ecoformer callbacks.hash_update.at_epochs=[-1]",
        ["at_epochs=[-1] must be epochs counted from 0"],
    ),
    (
        "experiment=digits_ecoformer init.checkpoint=null callbacks.hash_update.at_epochs=[99] dry_run=true",
        ["at_epochs=[99]) fits nothing before the first step", "start from a fitted checkpoint"],
    ),
    ("experiment=digits_ecoformer callbacks.hash_update.freeze_epoch=0", ["freeze_epoch=0 must be", "enabled=false"]),
    ("experiment=digits_ecoformer callbacks.hash_update.freeze_step=-3", ["freeze_step=-3 must be", "enabled=false"]),
    ("experiment=digits_ecoformer callbacks.hash_update.warmup_steps=9", ["warmup_every=0", "set both"]),
    (
        "experiment=digits_ecoformer callbacks.hash_update.warmup_steps=9 callbacks.hash_update.warmup_every=10",
        ["warmup_every=10", "the smaller"],
    ),
    (
        "experiment=digits_ecoformer callbacks.hash_update.at_epochs=[0,5] callbacks.hash_update.freeze_epoch=4",
        ["asks for a fit at epoch 5", "freeze_epoch=4 ends them before"],
    ),
    ("experiment=digits_ecoformer attention.num_bits=many", ["attention.num_bits='many' must be"]),
    ("experiment=digits_ecoformer attention.clamp=false", ["stage 3", "25 > 16 tokens", "attention.clamp=true"]),
    ("experiment=digits_msa attention.layers=[9]", ["attention.layers: 9 matches no attention layer", "stages 1 to 4"]),
    ("experiment=digits_msa attention.layers=1", ["attention.layers=1 must be a list"]),
    ("experiment=digits_msa attention.rest=msa", ["attention.rest=msa is of the layers that", "set that too"]),
    ("experiment=digits_msa attention.layers=[1] attention.rest=stock", ["attention.rest=stock: ", "leave it out"]),
    ("experiment=digits_msa attention.layers=[1] attention.rest=mas", ["attention.rest=mas: ", "does not exist"]),
    ("experiment=digits_msa energy.profile=3nm", ["3nm"]),
    (
        "experiment=digits_msa energy.profile=45nm_fp32_dram callbacks.energy_log.enabled=false",
        ["45nm_fp32_dram prices memory, which convention=paper does not count"],
    ),
    ("experiment=digits_msa energy.convention=hopeful", ["energy.convention=hopeful does not exist"]),
    ("experiment=digits_msa resume=auto", ["resume=auto", "add output_dir=DIR"]),
    ("experiment=digits_msa resume=/no/such/last.pt", ["/no/such/last.pt does not exist"]),
    ("experiment=digits_msa resume=auto output_dir=x overwrite=true", ["resume and overwrite=true contradict"]),
    ("experiment=digits_msa init.checkpoint=/no/such/best.pt", ["/no/such/best.pt does not exist"]),
    ("experiment=digits_msa output_dir=", ["output_dir= is empty: give a value (an unset shell variable?)"]),
    ("experiment=digits_msa data=folder data.root=", ["data.root= is empty"]),
    ("experiment=digits_msa threads=100000", ["threads=100000 must be between 1 and 1024"]),
    ("experiment=digits_msa init.pretrained=true", ["init.pretrained=true", "cannot be downloaded", "init.checkpoint"]),
]


@pytest.mark.parametrize(("line", "fragments"), COMMAND_LINES, ids=[line or "(nothing)" for line, _ in COMMAND_LINES])
def test_train_refuses(line: str, fragments: list[str], refused: Refused, tmp_path: Path) -> None:
    extra = [] if "output_dir" in line or "resume" in line else [f"output_dir={tmp_path / 'run'}"]
    small = ["data.max_train_samples=64", "data.max_val_samples=16"] if "experiment=digits_" in line else []
    message = refused("train", *line.split(), *small, *extra)
    for fragment in fragments:
        assert fragment in message
    assert not (tmp_path / "run" / "last.pt").exists()


def test_output_dir_that_cannot_be_made(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused("train", "experiment=digits_msa", *TINY_DIGITS, f"output_dir={tmp_path / 'file' / 'run'}")
    assert "cannot write" in message and "another folder (output_dir, --out)" in message


def test_several_processes_need_one_output_dir(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "add output_dir=DIR" in refused("train", "experiment=digits_msa")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(b"", "is an empty file"), (b"PK\x03\x04 cut", "truncated"), (b"text", "is a text file")],
)
def test_eval_refuses_files_that_are_no_checkpoint(
    content: bytes, fragment: str, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    assert fragment in refused("eval", f"checkpoint={path}")


DRY = "train experiment=digits_msa dry_run=true"


@pytest.mark.parametrize(
    "line", ["eval checkpoint={read} out={out}", f"{DRY} init.checkpoint={{read}} dry_run_out={{out}}"]
)
def test_figures_do_not_write_over_weights(line: str, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "best.pt"
    out.write_bytes(b"weights of days")
    for read in (out, tmp_path):  # a folder stands for its best.pt
        assert f"would write over {out}, " in refused(*line.format(read=read, out=out).split())
    assert out.read_bytes() == b"weights of days"
    (tmp_path / "top").mkdir()
    for name in ("last.pt", "metrics.jsonl", "top/epoch-3.pt"):  # the same run's other files
        (tmp_path / name).write_bytes(b"of days")
        assert f"a file of the run in {tmp_path}: name" in refused(*line.format(read=out, out=tmp_path / name).split())


def test_resume_of_a_run_that_lost_its_last_checkpoint(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    message = refused("train", "experiment=digits_msa", *TINY_DIGITS, f"output_dir={tmp_path}", "resume=auto")
    assert "it has no last.pt to go on from; without resume=auto, set it aside with overwrite=true" in message


def test_eval_needs_a_checkpoint(refused: Refused) -> None:
    assert "checkpoint must be given" in refused("eval")
    assert "did you mean checkpoint?" in refused("eval", "chekpoint=x.pt")
    assert "batch_size=many must be a whole number or null" in refused("eval", "checkpoint=x.pt", "batch_size=many")


class TestWithAStockRun:
    @pytest.fixture
    def stock(self, digits_runs: Callable[[str], Path]) -> Path:
        return digits_runs("stock") / "best.pt"

    def test_each_use_that_does_not_fit(self, stock: Path, refused: Refused, tmp_path: Path, folders: Path) -> None:
        message = refused("eval", f"checkpoint={stock}", "attention=ecoformer")
        assert "has stock attention, not ecoformer" in message and "convert and fit it by training" in message

        cut = tmp_path / "cut.pt"
        cut.write_bytes(stock.read_bytes()[:-3000])
        assert "truncated" in refused("eval", f"checkpoint={cut}")

        content = torch.load(stock, weights_only=True)
        del content["config"]["class_names"]
        torch.save(content, cut)
        assert "does not say what it was trained with" in refused("eval", f"checkpoint={cut}")

        start = ["experiment=digits_msa", *TINY_DIGITS, f"output_dir={tmp_path / 'new'}"]
        other = refused("train", *start, f"init.checkpoint={stock}", "model=pvt_v2_b1")
        assert "was trained with model.name=pvt_v2_b0, now it is pvt_v2_b1" in other
        narrow = ["experiment=digits_msa", *QUICK, f"init.checkpoint={stock}", f"output_dir={tmp_path / 'new'}"]
        assert "was trained with model.kwargs={" in refused("train", *narrow)
        classes = refused(
            "train", "experiment=digits_msa", "data=folder", f"data.root={folders}", "data.img_size=32",
            TINY_PVT, *QUICK, f"init.checkpoint={stock}", f"output_dir={tmp_path / 'new'}",
        )  # fmt: skip
        assert "has 10 classes, the data have 3" in classes and "init.reset_head=true" in classes

    def test_a_run_in_the_way_is_not_overwritten(self, stock: Path, refused: Refused) -> None:
        before = stock.read_bytes()
        message = refused("train", "experiment=digits_stock", *TINY_DIGITS, f"output_dir={stock.parent}")
        assert "already holds a run" in message and "resume=auto" in message and "overwrite=true" in message
        assert stock.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("seed=5", "seed=0, now it is 5"),
            ("optim.lr=0.1", "optim.lr=0.001, now it is 0.1"),
            ("model.drop_path_rate=0.1", "model.drop_path_rate=0.0, now it is 0.1"),
            ("attention=msa", "attention.name=stock, now it is msa"),
            ("augment.crop_padding=1", "augment.crop_padding=2, now it is 1"),
            ("data.max_train_samples=48", "data.max_train_samples=64, now it is 48"),
        ],
    )
    def test_resume_refuses_a_changed_setting_by_name(
        self, change: str, named: str, stock: Path, refused: Refused
    ) -> None:
        line = ["experiment=digits_stock", *TINY_DIGITS, f"output_dir={stock.parent}", "resume=auto", change]
        assert named in refused("train", *line)


def test_ecoformer_cannot_become_stock_again(
    digits_runs: Callable[[str], Path], refused: Refused, tmp_path: Path
) -> None:
    line = ["experiment=digits_stock", *TINY_DIGITS, f"init.checkpoint={digits_runs('ecoformer') / 'best.pt'}"]
    assert "cannot be turned back into stock attention" in refused("train", *line, f"output_dir={tmp_path / 'new'}")


def test_a_run_among_the_class_folders_is_refused(refused: Refused, folders: Path) -> None:
    for split in ("train", "val"):
        data = ["data=folder", f"data.root={folders}", f"output_dir={folders / split / 'run'}"]
        message = refused("train", "model=pvt_v2_b0", "attention=msa", "data.img_size=64", TINY_PVT, *QUICK, *data)
        assert f"lies in a split of data.root={folders}, where every folder is a class" in message
        assert not (folders / split / "run").exists()


def test_nothing_is_written_among_the_class_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out x\.pt lies in a split of data\.root"):
        keep_out_of_splits(tmp_path / "train" / "cat" / "x.pt", str(tmp_path), "--out x.pt")
    keep_out_of_splits(tmp_path / "x.pt", str(tmp_path), "--out x.pt")


def test_a_part_of_an_epoch_counts(tmp_path: Path) -> None:
    begun = {"kind": "run", "config": {}, "epoch": 0, "training": {"position": {"steps": 1}, "settings": {}}}
    with pytest.raises(InputError, match=r"0 epochs and a part of the next > train\.epochs=0"):
        require_same_run(tmp_path, begun, 0, {}, {})
    require_same_run(tmp_path, begun, 1, {}, {})
