"""The sequence study: costs that can be derived by hand, crossovers, resumable measurements, verdicts, advice."""

import json
import os
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from ecoformer import InputError
from ecoformer.cli import sequence as script
from ecoformer.lab.sequence.crossover import crossovers, describe, interpolate
from ecoformer.lab.sequence.encoder import SHAPES, Kind, Shape, all_kinds, token_list
from ecoformer.lab.sequence.measurement import Measurements, Point, measure_apart, medians
from ecoformer.lab.sequence.study import Study, ledger_row
from ecoformer.lab.sequence.verdict import verdicts
from ecoformer.run.lock import LOCK, Owner, started

NARROW = Shape("custom", 32, 2, 64, 3)
SMALL = ["--shape", "custom", "--width", "32", "--heads", "2", "--depth", "3", "--threads", "1"]


@pytest.fixture
def refused(one_line):
    return partial(one_line, script.main)


def test_softmax_attention_and_low_rank_by_hand():
    tokens, width, mlp = 48, 32, 64
    msa, low = (ledger_row(Kind.parse(kind), NARROW, tokens) for kind in ("msa", "low_rank_4"))
    linears = tokens * (4 * width**2 + 2 * width * mlp)
    norms, softmax = 2 * 2 * tokens * width, 2 * tokens**2
    assert msa["paper_muls"] == 3 * (linears + norms + 2 * tokens**2 * width + softmax)
    factors = tokens * 4 * (4 * width + 2 * width + 2 * (width + mlp))
    assert msa["paper_muls"] - low["paper_muls"] == 3 * (linears - factors)
    assert msa["weight_mib"] == pytest.approx(msa["params"] * 4 / 2**20)


@pytest.mark.parametrize("kind", [*all_kinds(), "linformer_8"])
def test_every_kind_is_counted_whole(kind):
    label = "low_rank_4" if kind == "low_rank" else kind
    row = ledger_row(Kind.parse(label), NARROW, 64)
    assert row["refused"] is None, row["refused"]
    assert row["uncounted"] == []
    assert 0 < row["paper_energy_mj"] < row["audited_energy_mj"]


def test_a_block_times_the_blocks_is_the_encoder():
    kind = Kind.parse("ecoformer")
    three, one = (ledger_row(kind, Shape("custom", 32, 2, 64, layers), 64) for layers in (3, 1))
    assert three["paper_muls"] == 3 * one["paper_muls"] and three["params"] == 3 * one["params"]
    assert kind.build(NARROW, 64, 3)(torch.empty(1, 64, 32, device="meta")).shape == (1, 64, 32)


def test_refused_points_say_why():
    assert "16 tokens" in ledger_row(Kind.parse("ecoformer"), NARROW, 16)["refused"]
    assert "no fewer parameters" in ledger_row(Kind.parse("low_rank"), NARROW, 16)["refused"]


def test_an_mlp_is_as_wide_as_asked_for():
    block = Kind.parse("msa").build(Shape("custom", 100, 4, 232, 1), 16, 1)[0]
    assert block.mlp.fc1.out_features == 232


def test_shapes_are_those_of_bert_base_and_vit_b():
    bert = ledger_row(Kind.parse("msa"), SHAPES["bert_base"], 64)
    assert bert["params"] == 85_054_464  # the layers of BERT-base's encoder
    assert ledger_row(Kind.parse("stock"), SHAPES["vit_b_block"], 64)["params"] * 12 == bert["params"]


def test_token_lists():
    assert token_list("64,128,...,8192") == [64, 128, 256, 512, 1024, 2048, 4096, 8192]
    assert token_list("64,...,256,100") == [64, 100, 128, 256]
    for text in ("", "64,x", "0", "...,64", "64,...", "64,...,100", "64,...,..."):
        with pytest.raises(InputError):
            token_list(text)


def test_crossovers_are_exact_for_power_laws():
    linear = {n: 1000.0 * n for n in (64, 256, 1024, 4096)}
    quadratic = {n: 2.0 * n * n for n in (64, 256, 1024, 4096)}
    assert crossovers(linear, quadratic) == [pytest.approx(500)]
    assert describe(linear, quadratic) == "from 500 tokens"
    assert describe(quadratic, linear) == "up to 500 tokens"
    assert describe(linear, {n: 2 * c for n, c in linear.items()}) == "always (64 to 4096 tokens)"
    assert describe(linear, {5000: 1.0}) == "not comparable"
    assert interpolate(quadratic, 500) == pytest.approx(500_000)
    assert interpolate(quadratic, 5000) is None


def test_a_bump_has_two_crossovers():
    first, second = {64: 1.0, 128: 3.0, 256: 1.0}, {64: 2.0, 128: 2.0, 256: 2.0}
    assert len(crossovers(first, second)) == 2
    assert describe(first, second).startswith("up to") and " and from " in describe(first, second)


def test_verdicts_name_the_arithmetic():
    kinds = ["msa", "low_rank", "linformer_256"]
    rows = [ledger_row(Kind.parse(k), SHAPES["bert_base"], n) for k in kinds for n in (64, 512, 4096, 16384)]
    found = {verdict.claim: verdict for verdict in verdicts(Study(rows, SHAPES["bert_base"]))}
    assert len(found) == 5
    assert found["low_rank saves time and memory for sequences up to about 512 tokens"].outcome == "agrees"
    pays = found["linformer_256 costs less than msa from about 512 tokens up"]
    assert pays.outcome == "agrees" and "equal at 512 tokens" in pays.reason
    wins = found["linformer_256 costs less than low_rank from about 512 tokens up"]
    # (12 D^2 + 4 k D - 16 r D) / 2 D with D = 768, k = 256, r = 100
    assert wins.outcome == "disagrees" and "equal at 4,320 tokens" in wins.reason
    saving = found["low_rank cuts BERT-base's cost by more than 30%"]
    assert saving.outcome == "partly" and "up to 8,085 tokens" in saving.reason


def test_a_verdict_names_no_negative_number_of_tokens():
    shape = Shape("custom", 65, 1, 260, 1)
    rows = [ledger_row(Kind.parse(label), shape, tokens) for label in ("msa", "low_rank") for tokens in (64, 128)]
    rows += [ledger_row(Kind.parse("linformer"), shape, tokens) for tokens in (64, 128)]
    reasons = " ".join(verdict.reason for verdict in verdicts(Study(rows, shape)))
    assert "adds 53,300 multiply-adds a token" in reasons and "for Linformer at any length with D = 65" in reasons
    assert "saves more than 30% at no length" in reasons and " -" not in reasons.replace("2 N D - 4 k D", "")


def test_a_point_is_measured_in_a_process_of_its_own():
    found = measure_apart(Point(Kind.parse("low_rank_4"), NARROW, 64, layers=1, threads=1))
    assert set(found) == {"forward_s", "forward_mib", "train_s", "train_mib"}
    assert min(found["forward_s"], found["train_s"]) > 0


def test_an_interrupted_measurement_goes_on(tmp_path):
    points = [Point(Kind.parse(kind), NARROW, 64, 1, 1) for kind in ("msa", "none", "uniform")]
    figures = {"forward_s": 1.0, "forward_mib": 2.0, "train_s": 3.0, "train_mib": 4.0}
    kept = Measurements(tmp_path / "measured.json", {"layers": 1, "threads": 1})
    assert [p.key for p in kept.todo(points, 2)] == ["msa 64", "none 64", "uniform 64"] * 2
    kept.add(points[0], figures)
    kept.add(points[2], "needs more memory than there is")
    again = Measurements(tmp_path / "measured.json", {"layers": 1, "threads": 1})
    assert [p.key for p in again.todo(points, 2)] == ["none 64", "msa 64", "none 64"]
    with pytest.raises(InputError, match="was measured with threads=1, now it is 2"):
        Measurements(tmp_path / "measured.json", {"layers": 1, "threads": 2})
    again.add(points[0], {**figures, "forward_s": 3.0})
    scaled = medians(json.loads((tmp_path / "measured.json").read_text()), NARROW)["msa", 64]
    params = ledger_row(Kind.parse("msa"), NARROW, 64)["params"] / 3
    assert scaled["forward_s"] == 3 * 2.0 and scaled["train_mib"] == 3 * 4.0 and scaled["rounds"] == 2
    assert scaled["forward_mib"] == pytest.approx(2.0 + 2 * params * 4 / 2**20)


def test_the_contract_writes_json_plots_and_verdicts(capsys, tmp_path, drawn):
    arguments = [*SMALL, "--tokens", "32,...,128", "--kinds", "msa,low_rank_4,linformer_8", "--out", str(tmp_path)]
    assert script.main([*arguments, "--rounds", "1", "--max-seconds", "0.001", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "study.json").read_text())
    assert {row["tokens"] for row in shown["rows"]} == {32, 64, 128}
    assert len(shown["verdicts"]) == 5
    assert {c["metric"] for c in shown["crossovers"]} >= {"paper_energy_mj", "audited_energy_mj"}
    (axis,) = drawn["audited_energy_mj.png"].axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axis.lines if line.get_label()[0] != "_"}
    assert lines == {kind: [32, 64, 128] for kind in ("msa", "low_rank_4", "linformer_8")}
    assert "**verdicts**" in (tmp_path / "report.md").read_text()
    assert script.main([*arguments, "--rounds", "0"]) == 0
    assert "costs less than msa" in capsys.readouterr().out


def test_advice(capsys):
    kinds = "msa,ecoformer,none,low_rank_4"
    arguments = ["--advise", "--at-tokens", "64", "--width", "32", "--heads", "2", "--kinds", kinds]
    assert script.main([*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == "low_rank_4"
    assert [row["kind"] for row in found["rows"]][-1] == "none", "a control was advised"
    energies = [row["audited_energy_mj"] for row in found["rows"][:-1]]
    assert energies == sorted(energies)
    assert any("Accuracy is not advised" in caveat for caveat in found["caveats"])
    assert script.main([*arguments, "--budget", "params=1000"]) == 0
    assert "no kind" in capsys.readouterr().out
    line = ["--advise", "--at-tokens", "64", "--kinds", "msa,uniform,random_hash", "--format", "json"]
    params = []
    for shape in ("bert_base", "vit_b_block"):
        assert script.main([*line, "--shape", shape]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["best"] == "msa"
        params.append(found["rows"][0]["params"])
    assert params[0] == 12 * params[1]


def test_refusals(refused, tmp_path):
    custom = ("--shape", "custom", "--rounds", 0)
    advise = ("--advise", "--at-tokens", 64, "--width", 32, "--kinds", "msa")
    assert "kind nope does not exist" in refused("--kinds", "nope")
    assert "--rounds 0 for the ledger alone" in refused("--kinds", "msa", "--tokens", "64")
    assert "--threads 0 must be at least 1" in refused("--threads", 0)
    assert "doubling 64 never gives 100" in refused("--tokens", "64,...,100", "--out", tmp_path)
    assert "width=30 does not divide into heads=4" in refused(*custom, "--width", 30, "--heads", 4)
    assert "--shape custom needs --width" in refused(*custom)
    assert "--width belongs to a custom shape" in refused("--width", 64, "--shape", "bert_base", "--rounds", 0)
    assert "--advise needs --at-tokens" in refused("--advise")
    assert "'joules' is no limit" in refused(*advise, "--budget", "joules=1")
    assert "'x' is no number" in refused(*advise, "--budget", "params=x")
    assert "params is given twice" in refused(*advise, "--budget", "params=3e7,params=1")
    assert "--rounds is not looked at with --advise" in refused(*advise, "--rounds", 3)
    assert "--at-tokens is not looked at without --advise" in refused(*custom, "--width", 32, "--at-tokens", 5)
    assert "--depth belongs to a custom shape" in refused("--advise", "--at-tokens", 64, "--depth", 1)
    assert "needs measurements of 32 channels" in refused(*advise, "--budget", "time_s=1")
    (tmp_path / "measured.json").write_text("[]")
    assert "holds no measurements" in refused("--kinds", "msa", "--tokens", "64", "--rounds", 0, "--out", tmp_path)


def test_two_studies_in_one_folder(refused, tmp_path):
    other = replace(Owner.here(), process=os.getppid(), started=started(os.getppid()))
    (tmp_path / LOCK).write_text(json.dumps(asdict(other)))
    line = ("--kinds", "msa", "--tokens", "64", "--rounds", 1, "--out", tmp_path)
    assert f"{tmp_path} is in use by process {other.process}: wait for its end" in refused(*SMALL, *line)


def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch, capsys, tmp_path):
    def interrupted(point):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecoformer.lab.sequence.command.measure_apart", interrupted)
    line = ["--kinds", "msa", "--tokens", "64", "--rounds", "1", "--out", str(tmp_path)]
    assert script.main([*SMALL, *line]) == 130
    assert capsys.readouterr().err.endswith("stopped: the same command goes on where it was\n")


FIGURES = {"forward_s": 1.0, "forward_mib": 2.0, "train_s": 3.0, "train_mib": 4.0}
SETTINGS = {"width": 32, "heads": 2, "mlp": 128, "layers": 1}
DAMAGED = {
    "no rounds": {"points": {"msa 16": []}},
    "a figure less": {"points": {"msa 16": [{"forward_s": 1.0}]}},
    "null": {"points": {"msa 16": [{**FIGURES, "forward_s": None}]}},
    "negative": {"points": {"msa 16": [{**FIGURES, "forward_s": -1.0}]}},
    "tokens": {"points": {"msa x": [FIGURES]}},
    "kind": {"points": {"nosuch 16": [FIGURES]}},
    "no points": {"points": []},
    "no settings": {"settings": None},
    "no layers": {"settings": {**SETTINGS, "layers": 0}},
    "refused": {"refused": []},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_measurements_are_one_line(refused, tmp_path, change):
    content = {"settings": SETTINGS, "points": {"msa 16": [FIGURES]}, "refused": {}}
    (tmp_path / "measured.json").write_text(json.dumps(content | change))
    line = ("--kinds", "msa,uniform", "--tokens", "16,32", "--rounds", 0, "--out", tmp_path)
    assert "measured.json holds no measurements" in refused("--width", 32, "--heads", 2, *line)


def test_what_could_not_be_measured_is_said(capsys, tmp_path):
    content = {"settings": SETTINGS, "points": {"msa 32": [FIGURES]}, "refused": {"msa 16": "needs more memory"}}
    (tmp_path / "measured.json").write_text(json.dumps(content))
    line = ["--width", "32", "--heads", "2", "--kinds", "msa", "--tokens", "16,32", "--rounds", "0"]
    assert script.main([*line, "--out", str(tmp_path)]) == 0
    assert "could not be measured" in (text := capsys.readouterr().out) and "needs more memory" in text
    assert "measured with width 32, heads 2, mlp 128, layers 1" in text
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["unmeasured"] for row in rows] == ["needs more memory", None]
