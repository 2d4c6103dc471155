"""What the frozen features could give with labels: a linear probe, trained and tested on parts of a collection.

python -m benchmarks ceiling --data DIR --out FILE.json

No detector is made from it: it bounds what a score that reads these features, or the latents beside them, may hope for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.data import DEFAULT_DATA
from benchmarks.run import Collection, environment, projected, read_collection
from oneshot_medad.evaluation import auroc

FOLDS, REPEATS = 5, 2


def pooled(levels: list[torch.Tensor]) -> np.ndarray:
    """(N, F): mean, maximum and spread of every channel of (N, C_l, h_l, w_l) levels."""
    return torch.cat([torch.cat([f.mean((2, 3)), f.amax((2, 3)), f.std((2, 3))], 1) for f in levels], 1).numpy()


def probe(collection: Collection, features: np.ndarray) -> float:
    """Image AUROC of logistic regression over folds that share no patient, mean over repeats."""
    found = []
    for seed in range(REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
        scores = cross_val_predict(
            model, features, collection.labels, groups=collection.patients, cv=folds, method="decision_function"
        )
        found.append(auroc(collection.labels, scores))
    return float(np.mean(found))


def measure(collection: Collection) -> dict[str, float]:
    """AUROC by what the probe reads."""
    seen = collection.encoded
    vision, latents = pooled(seen.features), pooled([seen.z, seen.z.abs()])
    through = pooled(projected(seen.z))
    return {
        "vision features": probe(collection, vision),
        "latents": probe(collection, latents),
        "projected latents": probe(collection, through),
        "all three": probe(collection, np.concatenate([vision, latents, through], axis=1)),
    }


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ceiling", description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--role", default="eval")
    parser.add_argument("--sets", nargs="+", default=["headct", "covidx", "lgg", "mias"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found = {name: measure(read_collection(args.data, name, args.role, mirror=False)) for name in args.sets}
    args.out.write_text(json.dumps({"environment": environment(), "image_auroc": found}, indent=1) + "\n")
    columns = list(next(iter(found.values())))
    lines = ["| set | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for name, row in found.items()]
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
