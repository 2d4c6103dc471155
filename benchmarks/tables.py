"""Tables of the results, written into the pages that show them.

python -m benchmarks tables

A page says which between two comments: ``<!-- table: NAME -->`` and ``<!-- end of table -->``, where NAME is a file of
benchmarks/results without its ending, or one of `SUMMARIES`. Run it after a benchmark; a test compares the pages.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

SETS = {
    "headct": ("head CT, haemorrhage", "头部 CT，出血"),
    "covidx": ("chest radiograph, pneumonia", "胸片，肺炎"),
    "lungus": ("lung ultrasound", "肺部超声"),
    "lgg": ("brain MRI FLAIR, glioma", "脑部 MRI FLAIR，胶质瘤"),
    "mias": ("mammography", "乳腺 X 线"),
    "papsmear": ("cytology, smear", "宫颈涂片细胞学"),
    "photo_eardrum": ("otoscopy", "耳镜"),
    "gen_nc_bottle": ("bottles (photograph)", "瓶子（照片）"),
    "gen_nc_ksdd": ("metal, cracks", "金属裂纹"),
    "gen_nc_road": ("road, cracks", "路面裂缝"),
    "gen_nc_solar": ("solar cells", "太阳能电池"),
    "gen_nc_fishxray": ("fish fillet x-ray, bones", "鱼片 X 光，鱼刺"),
    "gen_nc_screw": ("screws", "螺丝"),
    "gen_nc_pcb": ("circuit boards", "电路板"),
}
REACH = {
    "covidx": ("yes: same source, other images, labels used", "有：同一来源的其他图像，用过标签"),
    "lgg": ("brain MRI of another sequence, labels used", "有：其他序列的脑部 MRI，用过标签"),
}
"""What of a collection the pre-training's pool holds; nothing of the others."""
METHODS = {
    "default": ("**this package**", "**本软件包**"),
    "nearest": ("nearest feature, ImageNet trunk", "最近特征，ImageNet 主干"),
}
HEAD = {
    "set": ("collection", "数据集"),
    "reach": ("its kind in the pre-training", "预训练中是否有同类图像"),
    "probe": ("linear probe **with** labels", "**使用**标签的线性探针"),
    "mean": ("mean", "平均"),
    "no": ("no", "无"),
}


def mean(values: list[float]) -> str:
    """Three digits, and the spread over draws."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def overview(found: dict, chinese: bool = False) -> str:
    """Image AUROC of every collection and method from one image, beside what the pre-training has seen of its kind."""
    methods = list(dict.fromkeys(m for rows in found.values() for m in rows if m.endswith(" 1")))
    heads = [METHODS.get(m.removesuffix(" 1"), (m.removesuffix(" 1"),) * 2)[chinese] for m in methods]
    lines = [
        "| " + " | ".join([HEAD["set"][chinese], HEAD["reach"][chinese], *heads, HEAD["probe"][chinese]]) + " |",
        "|---" * (len(methods) + 3) + "|",
    ]
    for name, rows in found.items():
        cells = [mean([d["image_auroc"] for d in rows[m]["draws"]]) if m in rows else "" for m in methods]
        reach, said = REACH.get(name, HEAD["no"])[chinese], SETS.get(name, (name, name))[chinese]
        lines.append(f"| {said} | {reach} | " + " | ".join(cells) + f" | {rows['probe']['image_auroc']:.3f} |")
    complete = [rows for rows in found.values() if all(m in rows for m in methods)]
    means = [f"{np.mean([np.mean([d['image_auroc'] for d in r[m]['draws']]) for r in complete]):.3f}" for m in methods]
    probe = f"{np.mean([rows['probe']['image_auroc'] for rows in complete]):.3f}"
    lines.append(f"| {HEAD['mean'][chinese]} ({len(complete)}) | | " + " | ".join([*means, probe]) + " |")
    return "\n".join(lines) + "\n"


def reference(results: dict) -> str:
    """The recipe "reference" beside the default and the nearest feature, of one protocol: image AUROC."""
    methods = ("reference", "default", "nearest")
    lines = ["| collection | " + " | ".join(f"`{m}`" for m in methods) + " |", "|---" * (len(methods) + 1) + "|"]
    values = {(run["set"], run["method"]): [s["image_auroc"] for s in run["seeds"]] for run in results["runs"]}
    for name in dict.fromkeys(run["set"] for run in results["runs"]):
        lines.append(f"| {SETS[name][0]} | " + " | ".join(mean(values[name, m]) for m in methods) + " |")
    return "\n".join(lines) + "\n"


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


SUMMARIES: dict[str, Callable[[], str]] = {
    "overview": lambda: overview(_read("transfer")["found"]),
    "overview-zh": lambda: overview(_read("transfer")["found"], chinese=True),
    "reference": lambda: reference(_read("recipes")),
}


def made(name: str) -> str:
    """The Markdown of a table."""
    if name in SUMMARIES:
        return SUMMARIES[name]()
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def filled(text: str) -> str:
    """A page with its tables as the results have them; blank lines keep a table apart from its comments."""
    return MARKED.sub(lambda match: f"{match[1]}\n{made(match[2]).strip()}\n\n{match[3]}", text)


def pages() -> list[Path]:
    """All pages that may hold tables."""
    return [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: list[str]) -> None:
    """Write the tables into the pages."""
    argparse.ArgumentParser(prog="python -m benchmarks tables", description=__doc__).parse_args(arguments)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if text != filled(text):
            page.write_text(filled(text), encoding="utf-8")
            print(page.relative_to(ROOT))
