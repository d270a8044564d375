"""A small study, and a train.py that only pretends: the runner must not wait for torch in its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_helpers import PRETENDED_TRAIN, STUDY

from ecoformer.lab.study.plan import StudyConfig, load_study


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def trainer(tmp_path: Path) -> list[str]:
    """What runs a job: a script that writes a summary at once, and fails for uniform attention."""
    script = tmp_path / "train.py"
    script.write_text(PRETENDED_TRAIN)
    return [str(script)]
