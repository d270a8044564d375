"""A rank killed under torchrun: all ranks start again and the run continues from its checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import assert_same_run

CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, fault_child
torch.set_num_threads(1)
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
fault_child.train_rank(sys.argv[2], int(os.environ["RANK"]), None, sys.argv[3] if first else None)
"""


def torchrun(run_dir: Path, fault: str) -> str:
    run_dir.mkdir()
    script = run_dir / "child.py"
    script.write_text(CHILD)
    line = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", str(script)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *line, str(Path(__file__).parent), str(run_dir), fault],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_fault_killed_rank_under_torchrun(tmp_path: Path) -> None:
    torchrun(tmp_path / "straight", "none")
    assert "-9" in torchrun(tmp_path / "killed", "kill")  # it reports the exit code
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
