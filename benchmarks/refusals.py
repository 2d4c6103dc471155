"""What a detector refuses to judge: images of its own collection, and of all others, by what kind they are.

python -m benchmarks refusals --data DIR --out results/refusals.json

Every normal image of a collection serves as the one reference, and images of all collections are compared with it; no
lesion and no fit plays a part. Evaluation collections took no part in learning what tells kinds apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import DEFAULT_DATA, fields_of, read_manifest
from benchmarks.run import environment, networks
from oneshot_medad.backbones.kinds import similarity

MODALITIES = {
    "ultrasound": ("us_", "lungus"),
    "MRI": ("mr_", "brisc", "spine", "lgg"),
    "CT": ("ct_", "lungct", "headct"),
    "radiography": ("xr_", "fracatlas", "covidx", "mias"),
    "PET": ("pet_",),
    "fundus": ("fundus",),
    "OCT": ("oct_",),
    "endoscopy": ("endo_",),
    "photography": ("photo_", "ph2"),
    "cytology": ("papsmear",),
    "goods": ("gen_",),
}
"""Modalities by the beginnings of the collections' names."""


def modality(name: str) -> str:
    """Of a collection."""
    return next(known for known, starts in MODALITIES.items() if name.startswith(starts))


def kinds_of(data: str, role: str, count: int) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """(N, D) kind of up to ``count`` random images of each collection, and which of them may be references."""
    rng, found, backbone = np.random.default_rng(0), {}, networks()
    items = read_manifest(data, role=role)
    for name in sorted({item.set for item in items}):
        members = [item for item in items if item.set == name]
        chosen = [members[i] for i in rng.permutation(len(members))[:count]]
        chunks = [chosen[i : i + 16] for i in range(0, len(chosen), 16)]
        kinds = [backbone.kind(backbone.vision(fields_of(chunk, backbone.spec.image_px))) for chunk in chunks]
        usable = np.array([item.label != "abnormal" for item in chosen])
        found[name] = torch.cat(kinds), usable if usable.any() else ~usable
    return found


def refused(found: dict, references: list[str], limit: float) -> dict[str, dict[str, float]]:
    """Share of images refused, by the reference's collection and the image's."""
    table: dict[str, dict[str, float]] = {}
    for name in references:
        kinds, usable = found[name]
        table[name] = {}
        for other, (images, _) in found.items():
            alike = similarity(images, kinds[usable])
            if other == name:  # no image is compared with itself
                alike = alike[~torch.eye(len(images), dtype=torch.bool)[:, usable]]
            table[name][other] = float((alike < limit).float().mean())
    return table


def summary(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over pairs of collections: the same, the same modality, another modality."""
    groups: dict[str, list[float]] = {"own collection": [], "same modality": [], "other modality": []}
    for name, row in table.items():
        for other, share in row.items():
            same = "same modality" if modality(name) == modality(other) else "other modality"
            groups["own collection" if name == other else same].append(share)
    return {group: float(np.mean(shares)) if shares else float("nan") for group, shares in groups.items()}


def cells(table: dict[str, dict[str, float]]) -> str:
    """The summary as cells of a Markdown table; empty where there is no such pair."""
    return " | ".join("" if np.isnan(share) else f"{share:.1%}" for share in summary(table).values())


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks refusals", description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--count", type=int, default=60, help="images of each collection")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    limit = networks().least_similarity
    assert limit is not None
    groups = {role: kinds_of(args.data, role, args.count) for role in ("pool", "eval")}
    everything = groups["pool"] | groups["eval"]
    tables = {role: refused(everything, list(found), limit) for role, found in groups.items()}
    found = {"environment": environment(), "limit": limit, "count": args.count, "refused": tables}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    lines = ["| one reference from | own collection | same modality | another modality |", "|---|---|---|---|"]
    for role, said in (("eval", "evaluation collections"), ("pool", "the pool")):
        lines.append(f"| {said} | " + cells(tables[role]) + " |")
    for name, row in tables["eval"].items():
        lines.append(f"| {name} | " + cells({name: row}) + " |")
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
