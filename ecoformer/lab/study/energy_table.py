"""The table that needs no data: published energies beside ours, and beside stock and MSA of every model."""

from pathlib import Path

from ecoformer.energy import load_profile
from ecoformer.files import write_json
from ecoformer.files.table import render, write_table
from ecoformer.lab.energy.cases import cases
from ecoformer.lab.energy.energy_tables import BASELINES, published_table, summary_table
from ecoformer.lab.energy.published import PUBLISHED, TITLE, compare_published, faults
from ecoformer.lab.study.plots import plot_front

# Top-1 on ImageNet-1K that others measured: EcoFormer as published, stock as timm reports for its weights.
TOP1 = {
    ("pvt_v2_b0", "ecoformer"): 70.44,
    ("pvt_v2_b1", "ecoformer"): 78.38,
    ("pvt_v2_b2", "ecoformer"): 81.28,
    ("pvt_v2_b3", "ecoformer"): 81.96,
    ("pvt_v2_b4", "ecoformer"): 81.90,
    ("twins_svt_small", "ecoformer"): 80.22,
    ("pvt_v2_b0", "stock"): 70.65,
    ("pvt_v2_b1", "stock"): 78.70,
    ("pvt_v2_b2", "stock"): 82.06,
    ("pvt_v2_b3", "stock"): 83.12,
    ("pvt_v2_b4", "stock"): 83.71,
    ("twins_svt_small", "stock"): 81.69,
}


def report_energy(out: Path) -> int:
    """Write the tables and the plot, print them, and return 1 if a published figure is not met, else 0."""
    comparisons = compare_published()
    profile = load_profile("45nm_fp32")
    rows = [case.row("paper", profile) for case in cases(list(PUBLISHED))]
    table, compared = summary_table(rows), published_table(comparisons)
    write_json(out / "table.json", {"published": compared.texts, "rows": rows})
    write_table(compared, out / "published", TITLE, [BASELINES])
    write_table(table, out / "models", "Energy, paper convention", [BASELINES])
    points = [
        {**row, "label": f"{row['model']} {row['attention']}", "top1": top1}
        for row in rows
        if (top1 := TOP1.get((row["model"], row["attention"]))) is not None
    ]
    plot_front(
        points, out / "energy.png", "ImageNet-1K: published top-1 (EcoFormer: the paper; stock: timm), our energy"
    )
    print(render(compared, "table", TITLE))
    print(render(table, "table", "Energy, paper convention", [BASELINES, f"{out} holds the tables and energy.png"]))
    return 1 if faults(comparisons) else 0
