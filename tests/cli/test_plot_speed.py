"""The growth plot takes the benchmark's rows and refuses anything else."""

import json

import pytest

from ecoformer.cli import plot_speed as script


def row(attention, img_size, milliseconds, peak_mib=None):
    shared = {"model": "m", "mode": "eval", "batch_size": 2, "precision": "fp32", "threads": 1, "machine": "here"}
    return shared | {"attention": attention, "img_size": img_size, "milliseconds": milliseconds, "peak_mib": peak_mib}


def test_draws_a_line_per_attention(tmp_path, drawn):
    rows = [row(attention, size, size / 10, 5.0) for attention in ("stock", "msa") for size in (224, 384)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert script.main([str(tmp_path / "rows.json"), "--out", str(tmp_path / "p.png")]) == 0
    axes = drawn["p.png"].axes
    assert [line.get_label() for line in axes[0].lines] == ["stock", "msa"]
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([11.2, 19.2])
    assert axes[1].lines[0].get_ydata().tolist() == pytest.approx([11200 / 56**2, 19200 / 96**2])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), ("{", "no rows"), ('[{"model": 1}]', "no rows"), ("[]", "no rows")]
)
def test_refusals(tmp_path, one_line, content, message):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    assert message in one_line(script.main, path, "--out", tmp_path / "p.png")
