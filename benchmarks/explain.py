"""What `explain` shows as normal: are lesions gone from it, and is the rest still there?

python -m benchmarks explain --data DIR --out benchmarks/results/explain.json

The contrast of a lesion is the difference between the mean inside its mask and that of a ring around it. Beside the
shipped way stands what the deviation network takes away from the latent, decoded, and that picture's difference to the
decoded latent as a score.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from benchmarks.data import DEFAULT_DATA, load, read_manifest
from benchmarks.run import environment
from oneshot_medad import AnomalyDetector, datasets
from oneshot_medad.evaluation import auroc
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.synthesis.deviation import N_TIMES, strengths

MARGIN = 6
"""Pixels between a mask and what counts as outside; the ring beyond is as wide."""


def sample(seed: int, count: int, data: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Reference, images and masks of the packaged sample, half of them normal."""
    found = datasets.load_sample(count, count, random_state=seed)
    return found.support, found.images, found.masks


def lgg(seed: int, count: int, data: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """The same of brain MRI with gliomas, no slice of the reference's patient among the images."""
    rng, items = np.random.default_rng(1000 + seed), read_manifest(data, role="eval", sets=["lgg"])
    normal, sick = ([item for item in items if item.label == label] for label in ("normal", "abnormal"))
    support = normal[rng.integers(len(normal))]
    chosen = [
        part[i]
        for part in (normal, sick)
        for i in rng.permutation(len(part))[: 2 * count]
        if part[i].patient != support.patient
    ]
    chosen = [*[c for c in chosen if c.label == "normal"][:count], *[c for c in chosen if c.label != "normal"][:count]]
    images = [load(item.path).numpy().transpose(1, 2, 0) for item in chosen]
    masks = [
        load(item.mask).numpy()[0] > 127 if item.mask else np.zeros(image.shape[:2], bool)
        for item, image in zip(chosen, images, strict=True)
    ]
    return load(support.path).numpy().transpose(1, 2, 0), images, masks


SETS = {"sample": sample, "lgg": lgg}


@torch.no_grad()
def decoded(detector: AnomalyDetector, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) grey: the autoencoder's picture of an image, and that without what the deviation network sees in it."""
    backbone = detector._fitted.networks.load()
    side = backbone.spec.image_px
    pixels = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1).expand(3, -1, -1) / 255
    z = backbone.latents.encode(to_field(pixels, side)[None])
    middle = N_TIMES // 2
    without = z - float(strengths()[middle]) * detector._fitted.scorer.model.unet(z, torch.full((1,), middle))
    seen = backbone.latents.decode(torch.cat([z, without])).mean(dim=1)
    before, after = (from_field(picture, side, image.shape[:2]).numpy() for picture in seen)
    return before, after


def contrast(picture: np.ndarray, mask: np.ndarray) -> float:
    """Absolute difference between the means inside a mask and in a ring around it."""
    near = binary_dilation(mask, iterations=MARGIN)
    ring = binary_dilation(near, iterations=MARGIN) & ~near
    return abs(float(picture[mask].mean() - picture[ring].mean()))


def grey(image: np.ndarray) -> np.ndarray:
    return (image if image.ndim == 2 else image.mean(axis=2)) / 255


def measure(name: str, seed: int, count: int, data: str) -> list[dict]:
    """One row an image."""
    support, images, masks = SETS[name](seed, count, data)
    detector = AnomalyDetector(random_state=seed).fit(support)
    rows = []
    for image, mask in zip(images, masks, strict=True):
        found, plain = detector.explain(image), grey(image)
        seen, without = decoded(detector, image)
        ways = {"redrawn": grey(found.normal), "deviation network": without}
        outside = ~binary_dilation(mask, iterations=MARGIN) if mask.any() else np.ones(mask.shape, bool)
        top = max(1, round(0.01 * mask.size))
        rows.append(
            {
                "label": int(mask.any()),
                "score": found.score,
                "flagged": found.verdict == "abnormal",
                "autoencoder": float(np.abs(seen - plain)[outside].mean()),
                "outside": {way: float(np.abs(picture - plain)[outside].mean()) for way, picture in ways.items()},
                "difference": float(np.sort(np.abs(seen - without).ravel())[-top:].mean()),
                "contrast": contrast(plain, mask) if mask.any() else None,
                "left": {way: contrast(picture, mask) for way, picture in ways.items()} if mask.any() else None,
            }
        )
    return rows


def summary(rows: list[dict]) -> dict[str, float]:
    """Shares over all images of a set: sums, so that a faint lesion counts for little."""
    sick = [row for row in rows if row["label"]]
    flagged = [row for row in sick if row["flagged"]]
    labels, scores, drawn = (np.array([row[key] for row in rows]) for key in ("label", "score", "difference"))
    both = scores / scores.std() + 0.5 * np.log(drawn) / np.log(drawn).std()

    def removed(of: list[dict], way: str) -> float:
        return 1 - sum(r["left"][way] for r in of) / sum(r["contrast"] for r in of) if of else float("nan")

    found = {"score": auroc(labels, scores), "difference": auroc(labels, drawn), "both": auroc(labels, both)}
    for way in ("redrawn", "deviation network"):
        error = np.mean([row["outside"][way] for row in rows]) / np.mean([row["autoencoder"] for row in rows])
        found |= {f"{way}: removed": removed(sick, way), f"{way}: removed of flagged": removed(flagged, way)}
        found[f"{way}: outside"] = float(error)
    return found | {"flagged": len(flagged) / len(sick)}


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: two rows a set."""
    lines = [
        "| set | `normal` | contrast removed | of those flagged | change outside, in errors of the autoencoder |",
        "|---|---|---|---|---|",
    ]
    scores = ["| set | score alone | old difference alone | both |", "|---|---|---|---|"]
    for name, rows in found.items():
        numbers = summary(rows)
        for way in ("redrawn", "deviation network"):
            shares = [numbers[f"{way}: removed"], numbers[f"{way}: removed of flagged"]]
            cells = " | ".join(f"{share:.0%}" for share in shares)
            lines.append(f"| {name} | {way} | {cells} | {numbers[f'{way}: outside']:.2f} |")
        scores.append(f"| {name} | " + " | ".join(f"{numbers[k]:.3f}" for k in ("score", "difference", "both")) + " |")
    return "\n".join([*lines, "", "Image AUROC of the deviation network's difference:", "", *scores]) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it, anew after every draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks explain", description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--count", type=int, default=20, help="normal images of a draw, and as many abnormal ones")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found: dict[str, list[dict]] = {name: [] for name in args.sets}
    for name in args.sets:
        for seed in range(args.seeds):
            found[name] += measure(name, seed, args.count, args.data)
            shown = {name: rows for name, rows in found.items() if rows}
            results = {
                "environment": environment(),
                "summary": {n: summary(r) for n, r in shown.items()},
                "rows": shown,
            }
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(shown))
            print(table(shown), flush=True)
