"""The product that pip installs: a wheel, unpacked into a folder of its own, used from an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_holds_everything_and_trains_in_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without fetching a build backend")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    holds_everything(tmp_path / "site")
    trains(tmp_path / "site", tmp_path / "empty")


def holds_everything(installed: Path) -> None:
    for name in (
        *("py.typed", "__main__.py", "models/registry.py", "cli/train.py", "energy/profiles/45nm_fp32.yaml"),
        *("configs/train.yaml", "configs/experiment/digits_msa.yaml", "configs/study/cifar10.yaml"),
    ):
        assert (installed / "ecoformer" / name).is_file(), name
    assert not list(installed.glob("tests*")) and not list(installed.glob("results*"))
    (info,) = installed.glob("ecoformer-*.dist-info")
    assert "ecoformer = ecoformer.cli.main:main" in (info / "entry_points.txt").read_text()


AS_A_LIBRARY = """
import sys
from ecoformer.cli.main import main
main(["train", *sys.argv[1:]])
import ecoformer, ecoformer.models
print(ecoformer.__file__, ecoformer.models.__file__)
"""


def trains(installed: Path, folder: Path) -> None:
    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, *arguments]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "usage: ecoformer COMMAND" in python("-m", "ecoformer", "--help")
    tiny = "+model.kwargs={depths:[1,1,1,1],embed_dims:[8,16,40,64]}"
    line = ["experiment=digits_msa", tiny, "train.epochs=1", "train.max_steps=1", "train.batch_size=8", "device=cpu"]
    line += ["data.max_train_samples=16", "data.max_val_samples=8", "train.progress=false", "output_dir=run"]
    found = python("-c", AS_A_LIBRARY, *line).splitlines()[-1]
    assert (folder / "run" / "summary.json").is_file() and [path.name for path in folder.iterdir()] == ["run"]
    assert all(str(installed) in path for path in found.split()), "another copy of the package answered"
