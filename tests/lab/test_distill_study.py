"""Studies of many distillations: what is resumed, told apart, refused and drawn."""

import json
import statistics

import pytest
import torch
from tiny_models import digits_run

from ecoformer import InputError
from ecoformer.cli import distill_study as study
from ecoformer.lab.closeness import distill_report, distill_study
from ecoformer.lab.closeness.distill import spec_of
from ecoformer.run.start import model_of_run, read_run


@pytest.fixture
def run(tmp_path):
    return digits_run(tmp_path / "tiny" / "best.pt")


def test_the_study_goes_on_where_it_was(run, tmp_path, capsys):
    arguments = ["--checkpoints", str(run), "--num-images", "8", "--steps", "2", "--held-out", "4", "--max-val", "20"]
    arguments += ["--out", str(tmp_path / "study"), "--num-bits", "4"]
    assert study.main([*arguments, "--controls"]) == 0
    (first,) = json.loads((tmp_path / "study" / "table.json").read_text())
    assert study.main([*arguments, "--seeds", "0", "1"]) == 0
    rows = json.loads((tmp_path / "study" / "table.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1] and rows[0] == first
    keys = "dataset model source num_bits seed finetuned top1_before top1_after energy_pj ecoformer_energy_pj"
    assert {*keys.split(), "error_per_block", "uniform_per_block", "controls"} <= first.keys()
    assert first["finetuned"] is False and len(first["error_per_block"]) == 2
    assert (tmp_path / "study" / "study.png").stat().st_size > 5000
    (line,) = (tmp_path / "study" / "table.md").read_text().splitlines()[2:]
    mean, spread = statistics.fmean(row["top1_after"] for row in rows), statistics.stdev(r["top1_after"] for r in rows)
    assert "| 4 bits, fit_steps=2 | 8 | 0 | 2 |" in line and f"| {mean:.2f} ± {spread:.2f} |" in line
    assert {
        *["codes", "features", "levels", "projection", "training_seed", "fit_seed", "kl", "agreement"]
    } <= first.keys()
    assert (first["codes"], first["features"], first["top1_source"]) == ("bits", 4, first["top1_before"])


def test_the_study_takes_features_beside_codes(run, tmp_path):
    out = tmp_path / "study"
    arguments = ["--checkpoints", str(run), "--num-images", "8", "--steps", "2", "--held-out", "4", "--max-val", "20"]
    arguments += ["--attention", "hedgehog", "distilled:num_features=4", "--out", str(out), "--keep", str(tmp_path)]
    assert study.main(arguments) == 0
    row, other = json.loads((out / "table.json").read_text())
    assert (row["codes"], row["features"], row["relaxation"]) == ("hedgehog", None, None) and other["codes"] == "shift"
    assert row["energy_pj"] > other["energy_pj"] > 0
    line, _ = (out / "table.md").read_text().splitlines()[2:]
    assert "| hedgehog, fit_steps=2 | 8 | 0 | 1 |" in line
    (saved,) = tmp_path.glob("*hedgehog_seed0.pt")
    assert model_of_run(read_run(saved)).eval()(torch.randn(2, 3, 16, 16)).isfinite().all()
    for kind, options, message in (
        ("hedgehog", {"relaxation": "sigmoid"}, "attention.relaxation is not an option of attention=hedgehog"),
        ("ecoformer_tuned", {}, "'ecoformer_tuned' is not distilled: give distilled, distilled_hash or hedgehog"),
    ):
        with pytest.raises(InputError, match=message):
            spec_of(kind, **options)


def test_the_front_shows_every_kind_of_the_same_model(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(distill_report, "save_figure", lambda figure, out: drawn.append(figure))
    model = {"dataset": "digits", "model": "vit", "training_seed": 0}
    code = {"levels": 16, "projection": "ternary", "joint_steps": 0, "energy_pj": 2e6, "codes": "shift", "num_bits": 28}
    rows = [model | code | {"layers": None, "top1_after": top1} for top1 in (70.0, 71.0, None)]
    rows.append(
        rows[0] | {"layers": ["blocks.0.*"], "error_per_block": [0.2, 0.1], "joint_steps": 500, "energy_pj": 2.5e6}
    )
    other = {"epochs_stage2": 0, "energy_pj": 3e6, "name": ""}
    beside = [
        model | other | {"attention": "msa", "top1": 80.0},
        model | other | {"attention": "ecoformer", "name": "kernel numerator", "top1": 20.0},
        model | other | {"attention": "performer", "top1": 75.0, "epochs_stage2": 30},
        model | other | {"attention": "linformer", "top1": 60.0, "training_seed": 1},
        model | other | {"attention": "distilled_hash", "top1": 69.0},
    ]
    distill_report.plot_front(rows, beside, tmp_path / "front.png")
    (axis,) = drawn[0].axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert points == {
        "msa": [[3, 80]],
        "ecoformer kernel numerator": [[3, 20]],
        "distilled: 28 shifts, ternary": [[2, 70], [2, 71]],
        "distilled: 28 shifts, ternary, 2 layers, joint fit": [[2.5, 70]],
    }
    assert [text.get_text() for text in drawn[0].legends[0].texts] == list(points)


def test_the_study_tells_relaxations_and_layers_apart(run, tmp_path, capsys):
    out = tmp_path / "study"
    arguments = ["--checkpoints", str(run), "--num-images", "8", "--num-bits", "4", "--steps", "2"]
    arguments += ["--held-out", "4", "--max-val", "20"]
    for _ in range(2):  # the second time nothing is left to do
        assert study.main([*arguments, "--out", str(out)]) == 0
        assert study.main([*arguments, "--out", str(out), "--relaxation", "straight_through"]) == 0
        assert study.main([*arguments, "--out", str(out), "--layers", "blocks.1.*"]) == 0
    rows = json.loads((out / "table.json").read_text())
    assert [(row["relaxation"], row["layers"]) for row in rows] == [
        ("sigmoid", None),
        ("straight_through", None),
        ("sigmoid", ["blocks.1.*"]),
    ]
    assert rows[2]["blocks"] == ["blocks.1.attn"]
    lines = (out / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == [
        "4 bits, fit_steps=2",
        "4 bits, fit_steps=2, relaxation=straight_through",
        "4 bits, fit_steps=2, in blocks.1",
    ], "other options are no seeds"

    older = json.dumps([{key: value for key, value in rows[1].items() if key != "spec"}])
    (out / "table.json").write_text(older)
    assert study.main([*arguments, "--out", str(out)]) == 2
    assert "has rows of an earlier version: give another folder" in capsys.readouterr().err
    assert (out / "table.json").read_text() == older


def test_rows_that_another_command_added_meanwhile_stay(run, tmp_path, monkeypatch):
    out = tmp_path / "study"
    arguments = ["--checkpoints", str(run), "--num-images", "8", "--steps", "2", "--held-out", "4", "--max-val", "20"]
    arguments += ["--out", str(out)]
    measure = distill_study.measure_distilled

    def beside(*args, seed, **others):
        if seed == 0:
            monkeypatch.setattr(distill_study, "measure_distilled", measure)
            assert study.main([*arguments, "--seeds", "0", "1"]) == 0
        return measure(*args, seed=seed, **others)

    monkeypatch.setattr(distill_study, "measure_distilled", beside)
    assert study.main(arguments) == 0
    rows = json.loads((out / "table.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1], "each once"


def test_two_models_in_folders_of_one_name_are_refused(run, tmp_path, capsys):
    other = digits_run(tmp_path / "elsewhere" / run.parent.name / "best.pt", seed=1)
    out = tmp_path / "study"
    arguments = ["--num-images", "8", "--steps", "2", "--held-out", "4", "--max-val", "20", "--out", str(out)]
    assert study.main(["--checkpoints", str(run), str(other), *arguments]) == 2 and not out.exists()
    assert study.main(["--checkpoints", str(run), *arguments]) == 0
    before = (out / "table.json").read_text()
    capsys.readouterr()
    assert study.main(["--checkpoints", str(other), *arguments]) == 2
    assert f"{other} is not what {run.parent.name} is in {out / 'table.json'}: rows go by" in capsys.readouterr().err
    assert (out / "table.json").read_text() == before
    older = [{key: value for key, value in row.items() if key != "training_seed"} for row in json.loads(before)]
    distill_study.require_apart([run], older, out / "table.json")  # what rows of earlier versions do not say is alike


def test_the_study_writes_no_kept_model_over(run, tmp_path, capsys):
    kept = tmp_path / "kept"
    arguments = ["--checkpoints", str(run), "--out", str(tmp_path / "study"), "--keep", str(kept)]
    assert study.main([*arguments, "--attention", "distilled:levels=4", "distilled:levels=8"]) == 2
    name = f"{run.parent.name}_16shift_seed0.pt"
    said = capsys.readouterr().err
    assert f"--keep {kept}: {name} would be written over: give settings that differ in more than codes" in said
    kept.mkdir()
    (kept / name).write_bytes(b"another study's")
    assert study.main(arguments) == 2
    assert (kept / name).read_bytes() == b"another study's" and not (tmp_path / "study").exists()
