"""How far what was learned carries: all evaluation collections, those in reach of the pool and those absent from it.

python -m benchmarks transfer --data DIR --out results/transfer.json

Beside the detector stand the nearest feature on an unadapted ImageNet trunk, a trivial method, and a linear probe with
labels on the detector's own features, which bounds what they hold. Where normal images of a collection come in groups
of their own kind (cell types of solar modules, circuit boards), one group is drawn, and its images are tested.
"""

from __future__ import annotations

import argparse
import copy
import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines import nearest
from benchmarks.ceiling import pooled, probe
from benchmarks.data import DEFAULT_DATA, Item, read_manifest
from benchmarks.pretrain.clip import imagenet_trunk
from benchmarks.run import METHODS, Collection, environment, networks, read_collection, score
from oneshot_medad.backbones import Backbone, read_visual
from oneshot_medad.backbones.fused import fuse
from oneshot_medad.evaluation import auroc

IN_REACH = ("covidx", "lgg")
"""Collections whose modality and organ the pool holds; all others are absent from it."""
GROUPS = {
    "gen_nc_solar": lambda item: "poly" if "poly" in item.kind else "mono",
    "gen_nc_pcb": lambda item: item.patient,
}
"""Sub-collections that a normal image stands for."""
SAME = {"gen_nc_pcb": lambda item: item.path.stem}
"""What a support image and a test image must not share, where it is not the patient."""


@lru_cache(maxsize=1)
def imagenet() -> Backbone:
    """The embedded networks with the vision trunk as ImageNet left it, without statistics of its features."""
    backbone = copy.copy(networks())
    trunk, _ = imagenet_trunk()
    visual = read_visual(networks().folder).eval()
    visual.trunk.load_state_dict(trunk)
    vision = copy.copy(networks().vision)
    vision._modules = {"visual": fuse(visual).requires_grad_(False).to(memory_format=torch.channels_last)}
    backbone.vision = vision  # type: ignore[misc]
    return backbone


def draw(collection: Collection, shots: int, seed: int, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``shots`` normal support images and of test images of the same group, of other patients."""
    rng, name = np.random.default_rng(1000 + seed), collection.name
    group_of, shared = GROUPS.get(name, lambda item: ""), SAME.get(name, lambda item: item.patient or str(item.path))
    groups = np.array([group_of(item) for item in collection.items])
    keys = np.array([shared(item) for item in collection.items])
    normal = collection.labels == 0
    fitting = [g for g in sorted(set(groups)) if (normal & (groups == g)).sum() >= shots + 2]
    if not fitting:
        raise LookupError(f"{name} has no group of {shots + 2} normal images")
    inside = groups == fitting[seed % len(fitting)]
    support = rng.choice(np.flatnonzero(normal & inside), shots, replace=False)
    test = np.flatnonzero(inside & ~np.isin(keys, keys[support]))
    return support, np.sort(rng.permutation(test)[:limit]) if limit and limit < len(test) else test


def evaluate(collection: Collection, plain: Collection, method: str, shots: int, seed: int, limit: int | None) -> dict:
    """AUROC of one draw, and for our own methods the shares of normal and abnormal images above the threshold."""
    support, test = draw(collection, shots, seed, limit)
    labels = collection.labels[test]
    if method == "nearest":
        features = [f[test] for f in plain.encoded.features]
        maps = nearest([f[support] for f in plain.encoded.features], features)
        return {"image_auroc": auroc(labels, maps.flatten(1).topk(10, dim=1).values.mean(1).numpy())}
    found = score(collection, METHODS[method], support, test, seed)
    scores = found.scores.numpy()
    above = scores > found.threshold
    return {
        "image_auroc": auroc(labels, scores),
        "flagged_normals": float(above[labels == 0].mean()),
        "missed": float((~above[labels == 1]).mean()),
        "fusion": found.fusion,
    }


def measure(name: str, args: argparse.Namespace) -> dict[str, dict]:
    """All shots × methods × draws of one collection, and the probe."""
    collection = read_collection(args.data, name, latents=False)
    plain = read_collection(args.data, name, latents=False, mirror=False, backbone=imagenet())
    rows: dict[str, dict] = {"probe": {"image_auroc": probe(collection, pooled(collection.encoded.features))}}
    for shots in args.shots:
        for method in args.methods:
            try:
                draws = [evaluate(collection, plain, method, shots, seed, args.limit) for seed in range(args.seeds)]
            except LookupError as reason:
                print(reason, flush=True)
                continue
            rows[f"{method} {shots}"] = {"draws": draws}
            print(name, method, shots, f"{np.mean([d['image_auroc'] for d in draws]):.3f}", flush=True)
    return rows


def table(found: dict[str, dict[str, dict]], shots: list[int], methods: list[str]) -> str:
    """Markdown: one row a collection, then means; a collection without enough images leaves its cell empty."""
    columns = [f"{method} {k}" for k in shots for method in methods]
    shown = [c.replace(" ", ", K = ") for c in columns]
    lines = ["| set | " + " | ".join(shown) + " | normals flagged, missed (K = 1) | probe with labels |"]
    lines.append("|---" * (len(columns) + 3) + "|")

    def mean(name: str, column: str, key: str = "image_auroc") -> float:
        draws = found[name].get(column, {"draws": []})["draws"]
        return float(np.mean([d[key] for d in draws])) if draws else float("nan")

    def cell(name: str, column: str) -> str:
        values = [d["image_auroc"] for d in found[name].get(column, {"draws": []})["draws"]]
        return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else ""

    first = f"{methods[0]} {shots[0]}"
    for name, rows in found.items():
        flags = f"{mean(name, first, 'flagged_normals'):.0%}, {mean(name, first, 'missed'):.0%}"
        ceiling = f"{rows['probe']['image_auroc']:.3f}"
        lines.append(f"| {name} | " + " | ".join(cell(name, c) for c in columns) + f" | {flags} | {ceiling} |")
    groups = {
        "mean, in reach": [n for n in found if n in IN_REACH],
        "mean, absent": [n for n in found if n not in IN_REACH],
        "mean, absent medical": [n for n in found if n not in IN_REACH and not n.startswith("gen_")],
        "mean, generic": [n for n in found if n.startswith("gen_")],
    }
    for label, names in groups.items():
        if names:
            cells = [f"{np.nanmean([mean(n, c) for n in names]):.3f}" for c in columns]
            ceiling = f"{np.mean([found[n]['probe']['image_auroc'] for n in names]):.3f}"
            lines.append(f"| {label} | " + " | ".join(cells) + f" | | {ceiling} |")
    return "\n".join(lines) + "\n"


def sets(data: str) -> list[str]:
    """All evaluation collections of a manifest."""
    items: list[Item] = read_manifest(data, role="eval")
    return sorted({item.set for item in items}, key=lambda name: (name.startswith("gen_"), name))


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it, anew after every collection."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks transfer", description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--sets", nargs="+", help="default: all evaluation collections")
    parser.add_argument("--methods", nargs="+", default=["default", "nearest"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="test images of each draw; default all")
    parser.add_argument("--jobs", type=int, default=1, help="collections at a time, each in a process with one thread")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found: dict[str, dict[str, dict]] = {}
    names = args.sets or sets(args.data)
    workers = ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (1,))
    with workers if args.jobs > 1 else nullcontext() as pool:
        for name, rows in zip(names, (pool.map if pool else map)(partial(measure, args=args), names), strict=True):
            found[name] = rows
            results = {"environment": environment(), "limit": args.limit, "found": found}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(found, args.shots, args.methods))
