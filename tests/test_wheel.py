"""The product that pip installs: a wheel, unpacked into a folder of its own, used from an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without fetching a build backend")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_a_wheel_holds_code_configs_models_profiles_and_the_command(installed: Path) -> None:
    for name in (
        *("py.typed", "__main__.py", "models/registry.py", "cli/train.py", "energy/profiles/45nm_fp32.yaml"),
        *("configs/train.yaml", "configs/experiment/digits_msa.yaml", "configs/study/cifar10.yaml"),
    ):
        assert (installed / "ecoformer" / name).is_file(), name
    assert not list(installed.glob("tests*")) and not list(installed.glob("results*"))
    (info,) = installed.glob("ecoformer-*.dist-info")
    assert "ecoformer = ecoformer.cli.main:main" in (info / "entry_points.txt").read_text()


def test_it_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    tiny = "+model.kwargs={depths:[1,1,1,1],embed_dims:[8,16,40,64]}"
    line = ["experiment=digits_msa", tiny, "train.epochs=1", "train.max_steps=1", "train.batch_size=8", "device=cpu"]
    line += ["data.max_train_samples=16", "data.max_val_samples=8", "train.progress=false", "output_dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "ecoformer", "train", *line],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file() and [path.name for path in tmp_path.iterdir()] == ["run"]
    where = [sys.executable, "-c", "import ecoformer, ecoformer.models as m; print(ecoformer.__file__, m.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert all(str(installed) in path for path in found.split()), "another copy of the package answered"
