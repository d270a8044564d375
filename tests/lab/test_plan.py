"""From a study file to commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_helpers import STUDY

from ecoformer.errors import InputError
from ecoformer.lab.study.plan import RowConfig, StudyConfig, jobs, load_study

ROOT = Path(__file__).resolve().parents[2]


def test_every_run_is_one_command_with_a_folder_of_its_own_after_the_run_it_starts_from(study: StudyConfig) -> None:
    planned = jobs(study, Path("out"), ["data.root=DIR"])
    assert [job.id for job in planned] == [
        "net/stage1-msa",
        "net/msa/seed0",
        "net/msa/seed1",
        "net/uniform/seed0",
        "net/ecoformer-kernel/seed0",
        "net/ecoformer-kernel/seed1",
        "net/ecoformer-kernel-converted/seed0",
    ]
    assert planned[5].command("torchrun --nproc-per-node 2") == (
        "torchrun --nproc-per-node 2 train.py data=digits model=pvt_v2_b0 attention=ecoformer train.epochs=1 "
        "attention.numerator=kernel attention.clamp=true seed=1 data.root=DIR "
        "init.checkpoint=out/runs/net/stage1-msa/best.pt output_dir=out/runs/net/ecoformer-kernel/seed1 resume=auto"
    )
    assert "train.epochs=0" in planned[6].arguments, "converted without training"
    assert len({job.folder for job in planned}) == len(planned)


def test_a_stage1_seed_is_one_run_more_from_a_stage1_run_of_that_seed(study: StudyConfig) -> None:
    study.backbones["net"].rows[1].stage1_seeds = [2]
    planned = jobs(study, Path("out"))
    assert [job.id for job in planned[:2]] == ["net/stage1-msa", "net/stage1-msa-seed2"]
    assert "seed=2" in planned[1].arguments
    (row,) = (job for job in planned if job.stage1_seed == 2 and job.row is not None)
    assert row.id == "net/uniform/stage1_seed2" and row.needs == "net/stage1-msa-seed2"
    assert {"seed=2", "init.checkpoint=out/runs/net/stage1-msa-seed2/best.pt"} < set(row.arguments)
    assert all(job.needs in {None, "net/stage1-msa"} for job in planned if job is not row)


def test_a_row_from_scratch_is_a_run_of_stage1(study: StudyConfig) -> None:
    net = study.backbones["net"]
    net.stage1["ecoformer"] = ["train.epochs=2"]
    net.rows += [RowConfig("msa", source="scratch", seeds=[0, 1]), RowConfig("ecoformer", source="scratch", seeds=[3])]
    planned = jobs(study, Path("out"))
    scratch = [job for job in planned if job.row is not None and job.needs is None]
    assert [job.id for job in scratch] == ["net/stage1-msa", "net/stage1-msa-seed1", "net/stage1-ecoformer-seed3"]
    assert [job.row.label for job in scratch] == ["msa, from scratch"] * 2 + ["ecoformer, from scratch"]
    assert [job.stage1_seed for job in scratch] == [0, 1, 3]
    assert len({job.folder for job in planned}) == len(planned) == 9
    assert next(job for job in planned if job.id == "net/msa/seed0").needs == "net/stage1-msa"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attention: uniform}", "attention: uniform, source: scratch}", "trained by stage1, which has msa"),
        ("msa, seeds: [0, 1]}", "msa, source: scratch, finetune: false}", "give it nothing but seeds"),
        ("title: a net", "titel: a net", "titel"),
        (
            "attention: uniform}",
            "attention: uniform, source: stock}",
            "stock, which stage1 does not train (it has msa)",
        ),
        ("attention: uniform}", "attention: msa}", "two rows 'msa'"),
        ("attention: uniform}", "attention: uniform, stage1_seeds: [1, 0]}", "stage1_seeds=[1, 0]: each must be new"),
        ("overrides: [data=digits]", "overrides: [data=digits", "is no YAML"),
        ("attention: uniform}", "attention: uniform, seeds: [0, 0]}", "seeds=[0, 0]: each must be new"),
        ("attention: uniform}", "attention: uniform, overrides: [seed=5]}", "sets seed=5, which the study does"),
        (
            "attention: uniform}",
            "attention: uniform, finetune: false, overrides: [train.epochs=4]}",
            "sets train.epochs",
        ),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_study(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_without_training_has_none_whatever_all_runs_are_told(study: StudyConfig) -> None:
    job = next(job for job in jobs(study, Path("out"), ["train.epochs=3"]) if job.row and not job.row.finetune)
    assert [text for text in job.arguments if text.startswith("train.epochs=")][-1] == "train.epochs=0"


def test_a_missing_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("title: x\nbackbones: {}\n")
    with pytest.raises(InputError, match="has no backbones"):
        load_study(tmp_path / "empty.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_has_both_controls_beside_msa(path: Path) -> None:
    for name, backbone in load_study(path).backbones.items():
        kinds = {row.attention for row in backbone.rows}
        assert {"msa", "uniform"} <= kinds, f"{name}: an accuracy means nothing without its controls"
