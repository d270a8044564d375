"""A small study, and a checkout whose train.py only pretends: the runner must not wait for torch in its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_helpers import PRETENDED_TRAIN, STUDY

from ecoformer.study.plan import StudyConfig, load_study


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a train.py that writes a summary at once, and fails for uniform attention."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "train.py").write_text(PRETENDED_TRAIN)
    return root
