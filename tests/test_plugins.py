"""A package outside of the tree adds a kind, a data source, a callback and a logger; nothing else is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import Fresh, command

from ecoformer.engine.callbacks import Callback, EnergyLog
from ecoformer.errors import InputError
from ecoformer.nn.plugins import load_installed
from ecoformer.run import process
from ecoformer.run.build import made

KIND = """
from dataclasses import dataclass

from ecoformer.kinds import AttentionSpec, ReplacementAttention, attention_kind


@dataclass(frozen=True)
class FirstTokenSpec(AttentionSpec):
    name = "first_token"


@attention_kind(FirstTokenSpec)
class FirstTokenAttention(ReplacementAttention):
    parts = {"value": "value", "proj": "proj"}

    def attend(self, v_BHNC):
        return v_BHNC[:, :, :1].expand_as(v_BHNC)

    def paper_core_ops(self, num_tokens):
        return 0, 0
"""
OTHERS = """
import json

import numpy as np

from ecoformer.data.sources import ArraySource, Splits, data_source
from ecoformer.engine.callbacks import Callback
from ecoformer.engine.loggers import Logger


@data_source("stripes")
def stripes(data, *, with_train, **_):
    def source(name, count):
        images = np.zeros((count, 32, 32), np.uint8)
        images[: count // 2, ::2], images[count // 2 :, :, ::2] = 255, 255
        return ArraySource(name, images, np.arange(count) * 2 // count)

    mean = (0.5, 0.5, 0.5)
    return Splits(["across", "along"], source("train", 16) if with_train else None, source("val", 8), mean, mean, 1.0)


class Shout(Callback):
    name = "shout"

    def __init__(self, word):
        self.word = word

    def on_epoch_start(self, trainer, epoch):
        trainer.log(self.word)


class Kept(Logger):
    name = "kept"

    def open(self, run_dir, resumed_epoch, config):
        self.path = run_dir / "kept.jsonl"

    def log(self, record):
        with self.path.open("a") as file:
            file.write(json.dumps(record["event"]) + "\\n")


class NoCallback:
    pass
"""
LINE = [
    *("model=timm", "model.name=vit_tiny_patch16_224", "data.img_size=32", "device=cpu", "train.progress=false"),
    "+model.kwargs={patch_size:8,embed_dim:24,depth:1,num_heads:2}",
    *("+data.name=stripes", "train.epochs=1", "train.batch_size=8"),
]
EXTRA = ["callbacks.extra=[{_target_:others.Shout,word:hello}]", "logger.extra=[{_target_:others.Kept}]"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    (folder / "others.py").write_text(KIND + OTHERS)
    (folder / "kind.py").write_text(KIND)
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    (folder / "conf" / "attention").mkdir(parents=True)
    (folder / "conf" / "attention" / "first_token.yaml").write_text("name: first_token\nlayers: null\n")
    return folder


@pytest.fixture
def ecoformer(package: Path, fresh: Callable[..., Fresh]) -> Callable[..., Fresh]:
    """ecoformer(COMMAND, ...): a command that has ended, run in the folder of the package."""

    def run(*arguments: str) -> Fresh:
        done = fresh(command, list(arguments), cwd=package)
        done.wait()
        return done

    return run


def test_a_run_made_of_what_others_wrote(
    package: Path, ecoformer: Callable[..., Fresh], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["--config-dir", "conf", "attention=first_token", "plugins=[others]"]
    done = ecoformer("train", *own, *LINE, *EXTRA, "output_dir=run")
    assert done.wait() == 0, done.stderr
    summary = json.loads((package / "run/summary.json").read_text())
    events = [json.loads(line) for line in (package / "run/kept.jsonl").read_text().splitlines()]
    assert "hello" in events and "epoch" in events
    evaluated = ecoformer("eval", "checkpoint=run/best.pt", "plugins=[others]", "out=figures.json")
    assert evaluated.wait() == 0, evaluated.stderr
    assert json.loads((package / "figures.json").read_text())["top1"] == summary["top1"]
    # A checkpoint does not choose what is imported.
    refused = ecoformer("eval", "checkpoint=run/best.pt")
    assert refused.wait() == 2 and refused.stderr.count("\n") == 1
    assert "stripes does not exist" in refused.stderr or "plugins=[MODULE]" in refused.stderr
    monkeypatch.setenv("ECOFORMER_PLUGINS", "others")  # commands without `plugins`
    counted = ecoformer("energy", "--checkpoint", "run/best.pt")
    assert counted.wait() == 0 and "first_token" in counted.stdout, counted.stderr


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ("[no_such_module]", "plugins=[no_such_module]: no_such_module cannot be imported: No module named"),
        ("others", "plugins=others must be a list, each item text"),
        ("[leaves]", "plugins=[leaves]: leaves cannot be imported: 3; name a module"),
    ],
)
def test_modules_that_cannot_be_imported(
    package: Path, ecoformer: Callable[..., Fresh], plugins: str, message: str
) -> None:
    done = ecoformer("train", *LINE, f"plugins={plugins}", f"output_dir={package / 'refused'}")
    assert done.wait() == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (package / "refused").exists()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"word": 1}, "callbacks.extra: {'word': 1} must be a mapping with _target_: MODULE.CLASS"),
        ({"_target_": f"{EnergyLog.__module__}.EnergyLog"}, "EnergyLog cannot be made: "),
        (
            {"_target_": "collections.Counter"},
            "collections.Counter is no ecoformer.engine.callbacks.Callback: derive it",
        ),
    ],
)
def test_callbacks_that_are_none(item: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        made([item], "callbacks.extra", Callback)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def load_installed_from(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    load_installed()


def test_an_installed_package_need_not_be_named(package: Path, fresh: Callable[..., Fresh]) -> None:
    info = package / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ecoformer.plugins]\nothers = kind\n")
    code = "from ecoformer.kinds import make_spec; print(make_spec('first_token'))"
    env = process.environment(PYTHONPATH=f"{process.SOURCE}:{package}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=100)
    assert done.stdout == "FirstTokenSpec()\n", done.stderr
    (info / "entry_points.txt").write_text("[ecoformer.plugins]\nothers = gone\n")
    done = fresh(load_installed_from, package)
    assert done.wait() == 1
    assert "the plugin others=gone of others cannot be imported: No module named 'gone'; mend or" in done.stderr
