"""An installed copy holds every package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"ecoformer", "ecoformer.models"}
    found |= {f"ecoformer.{path.parent.name}" for path in (ROOT / "ecoformer").glob("*/__init__.py")}
    assert set(listed) == found
    assert listed == sorted(listed)
