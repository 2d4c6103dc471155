"""One-shot detection on labelled collections: every method on the same support images and features.

python -m benchmarks run --data DIR --sets headct lgg --methods default nearest --seeds 5 --out results/FILE.json
python -m benchmarks run --data DIR --config benchmarks/configs/ablation.json --out results/FILE.json

``--backbone`` takes other frozen networks than the embedded ones, by name (`medvae-vitl14`) or as a downloaded folder.
A configuration is a JSON object with the long options' names as keys; ``recipes`` in it adds methods, each a name and
the fields in which its recipe differs from the default.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.baselines import anomalib_patchcore, nearest, padim, zero_shot
from benchmarks.data import DEFAULT_DATA, Item, fields_of, load, read_manifest
from oneshot_medad import Recipe
from oneshot_medad._runtime import seeded
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.calibration import expected_threshold
from oneshot_medad.evaluation import aupro, auroc, average_precision, bootstrap_interval, pixel_auroc
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.scoring import fit_scorer
from oneshot_medad.training.cache import Encoded, Views, encode, join, make_views
from oneshot_medad.training.joint import JointModel

DEFAULT, SCRATCH = Recipe.named("default"), Recipe.named("scratch")
METHODS = {
    "default": DEFAULT,
    "reference": Recipe.named("reference"),
    "distance": replace(DEFAULT, deviations={}, n_lesions=0, branches={"distance": 1.0}, n_steps=1),
    "no-deviation": replace(DEFAULT, deviations={}),
    "no-lesions": replace(DEFAULT, n_lesions=0),
    "no-distance": replace(DEFAULT, branches={"clip": 1.0}),
    "lesions-only": replace(DEFAULT, deviations={}, branches={"clip": 1.0}),
    "scratch": SCRATCH,
    "scratch-no-deviation": replace(SCRATCH, deviations={}),
}
BASELINES = ("nearest", "padim", "zero-shot", "anomalib-patchcore")
"""The last one needs anomalib, whose requirements are not ours: give it an environment of its own."""
DRAWN = ("n_reference", "n_views", "n_lesions", "n_held", "max_area", "context", "mirror")
"""What decides the views of a fit; recipes that agree in it share them."""


@dataclass(frozen=True)
class Collection:
    """A labelled set, read and encoded once."""

    name: str
    items: list[Item]
    encoded: Encoded
    sizes: list[tuple[int, int]]
    brightness: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.array([int(item.label == "abnormal") for item in self.items])

    @property
    def patients(self) -> list[str]:
        """Patient of each image, or the image itself where none is known."""
        return [item.patient or str(item.path) for item in self.items]

    def masks(self, rows: np.ndarray) -> list[np.ndarray] | None:
        """Lesion masks of some rows; None if the set has none."""
        if not any(item.mask for item in self.items):
            return None
        found = []
        for row in rows.tolist():
            path = self.items[row].mask
            found.append(np.asarray(Image.open(path).convert("1")) if path else np.zeros(self.sizes[row], bool))
        return found

    @cached_property
    def embedded(self) -> torch.Tensor:
        """(N, D) image embeddings of the vision tower."""
        backbone = networks()
        chunks = [self.items[i : i + 32] for i in range(0, len(self.items), 32)]
        with torch.no_grad():
            found = [backbone.vision.forward_all(fields_of(chunk, backbone.spec.image_px))[1] for chunk in chunks]
        return torch.cat(found)


chosen = "tiny"
"""Name or folder of the frozen networks that everything in this process runs on."""


def networks() -> Backbone:
    """The frozen networks, fetched if they are not here."""
    return load_backbone(resolve(get_spec(chosen)), torch.device("cpu"))


def read_collection(
    data: str,
    name: str,
    role: str = "eval",
    mirror: bool = True,
    latents: bool = True,
    backbone: Backbone | None = None,
) -> Collection:
    """Read every labelled image of a set and run the frozen networks over it."""
    backbone = backbone or networks()
    grid = None if latents else (1, 1)
    items = [i for i in read_manifest(data, role=role, sets=[name]) if i.label in ("normal", "abnormal")]
    parts, sizes, brightness = [], [], []
    for start in range(0, len(items), 32):
        pixels = [load(item.path).float() / 255 for item in items[start : start + 32]]
        sizes += [(p.shape[1], p.shape[2]) for p in pixels]
        brightness += [float(p.mean()) for p in pixels]
        fields = torch.stack([to_field(p, backbone.spec.image_px) for p in pixels])
        parts.append(encode(backbone, fields, size=grid, mirror=mirror))
    return Collection(name, items, join(parts), sizes, np.array(brightness))


@torch.no_grad()
def projected(z: torch.Tensor) -> list[torch.Tensor]:
    """What the initial projection head makes of latents."""
    example = encode(networks(), torch.zeros(1, 3, *[networks().spec.image_px] * 2))
    head = JointModel.build(DEFAULT, networks(), example).eval().projection
    return [torch.cat(level) for level in zip(*(head(chunk) for chunk in z.split(64)), strict=True)]


def draw_support(
    collection: Collection, shots: int, seed: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``shots`` normal support images, and of the test images: others of other patients, all or ``limit``."""
    rng = np.random.default_rng(1000 + seed)
    normal = np.flatnonzero(collection.labels == 0)
    support = rng.choice(normal, shots, replace=False)
    seen = {collection.patients[i] for i in support}
    test = np.array(
        [i for i in range(len(collection.items)) if i not in support and collection.patients[i] not in seen]
    )
    if limit and limit < len(test):
        test = np.sort(rng.permutation(test)[:limit])
    return support, test


@dataclass(frozen=True)
class Found:
    """Scores (N,) and maps (N, h, w) of the test images, seconds of the fit, the fusion's weights, the threshold."""

    scores: torch.Tensor
    maps: torch.Tensor | None
    fit_seconds: float
    fusion: dict[str, float]
    threshold: float = float("nan")


def score(
    collection: Collection,
    method: str | Recipe,
    support: np.ndarray,
    test: np.ndarray,
    seed: int,
    init: str = "pretrained",
) -> Found:
    """Fit a recipe or one of `BASELINES` on the support images and score the others."""
    start = time.perf_counter()
    encoded, backbone = collection.encoded, networks()
    if method == "zero-shot":
        return Found(zero_shot(backbone, collection.embedded[test]), None, 0.0, {})
    if not isinstance(method, Recipe):
        fields = fields_of([collection.items[i] for i in support], backbone.spec.image_px)
        features = [f[test] for f in encoded.features]
        if method in ("nearest", "padim"):
            normal = [f[support] for f in encoded.features]
            maps = nearest(normal, features) if method == "nearest" else padim(backbone, fields, features, seed)
            count = round(DEFAULT.top_fraction * maps[0].numel())
            scores = maps.flatten(1).topk(count).values.mean(1)
        else:
            scores, maps = anomalib_patchcore(backbone, fields, features)
        return Found(scores, maps, time.perf_counter() - start, {})
    paths, drawn = tuple(collection.items[i].path for i in support), tuple(getattr(method, n) for n in DRAWN)
    views, state, seconds = encoded_views(paths, drawn, seed, collection.encoded.z.shape[1] > 0)
    start = time.perf_counter()
    fitted = fit_scorer(method, backbone, views, seeded(seed).set_state(state), init)
    scorer, threshold = fitted.scorer, expected_threshold(fitted.normal)
    seconds += time.perf_counter() - start
    scored = []
    for chunk in torch.from_numpy(test).split(16):
        part = encoded[chunk]
        scored.append(scorer(part.z, part.features, part.mirrored if method.mirror else None))
    scores, maps = (torch.cat(parts) for parts in zip(*scored, strict=True))
    return Found(scores, maps, seconds, dict(zip(method.branches, scorer.weights.tolist(), strict=True)), threshold)


@lru_cache(maxsize=10)
def encoded_views(paths: tuple[Path, ...], drawn: tuple, seed: int, latents: bool) -> tuple[Views, torch.Tensor, float]:
    """The views of a fit with this seed, the generator's state behind them, and how long they took."""
    start, backbone = time.perf_counter(), networks()
    reading = {"clip": 1.0, "distance": 1.0} | ({"latent": 1.0} if latents else {})  # what any recipe may read
    recipe = replace(DEFAULT, branches=reading, **dict(zip(DRAWN, drawn, strict=True)))
    generator = seeded(seed)
    fields = torch.stack([to_field(load(path).float() / 255, backbone.spec.image_px) for path in paths])
    views = make_views(backbone, fields, recipe, generator)
    return views, generator.get_state(), time.perf_counter() - start


def evaluate(
    collection: Collection,
    method: str | Recipe,
    shots: int,
    seed: int,
    limit: int | None = None,
    drawn: int = 1,
    init: str = "pretrained",
) -> dict[str, object]:
    """Fit on the first ``shots`` of ``drawn`` normal images, score others than these, and measure."""
    support, test = draw_support(collection, max(shots, drawn), seed, limit)
    support = support[:shots]
    found = score(collection, method, support, test, seed, init)
    scores = found.scores.tolist()
    labels, patients = collection.labels[test], [collection.patients[i] for i in test]
    result = {
        "seed": seed,
        "support": [str(collection.items[i].path.name) for i in support],
        "image_auroc": auroc(labels, scores),
        "image_auroc_interval": bootstrap_interval(auroc, labels, scores, patients, n_resamples=300),
        "image_ap": average_precision(labels, scores),
        "brightness_auroc": auroc(labels, collection.brightness[test]),
        "area_auroc": auroc(labels, [np.prod(collection.sizes[i]) for i in test]),
        "fit_seconds": round(found.fit_seconds, 1),
        "fusion": found.fusion,
    }
    masks = collection.masks(test) if found.maps is not None else None
    if masks is not None:
        side = networks().spec.image_px
        sizes = [collection.sizes[i] for i in test]
        heatmaps = [from_field(m, side, size).numpy() for m, size in zip(found.maps, sizes, strict=True)]
        result |= {"pixel_auroc": pixel_auroc(masks, heatmaps), "aupro": aupro(masks, heatmaps)}
    return result


def environment() -> dict[str, object]:
    """What the numbers were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = ("torch", "open_clip_torch", "medvae", "numpy", "scikit-learn")
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
    }


def table(results: dict) -> str:
    """Markdown: mean ± standard deviation over seeds, one row per set, shots and method."""
    names = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
    lines = [
        "| set | K | method | image AUROC | worst seed | image AP | pixel AUROC | AUPRO | brightness alone | fit s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in results["runs"]:
        seeds = run["seeds"]
        cells = [
            f"{np.mean([s[n] for s in seeds]):.3f} ± {np.std([s[n] for s in seeds]):.3f}" if n in seeds[0] else ""
            for n in names
        ]
        cells.insert(1, f"{min(s['image_auroc'] for s in seeds):.3f}")
        trivial, fit = (np.mean([s[n] for s in seeds]) for n in ("brightness_auroc", "fit_seconds"))
        cells += [f"{trivial:.3f}", f"{fit:.0f}"]
        lines.append(f"| {run['set']} | {run['shots']} | {run['method']} | " + " | ".join(cells) + " |")
    n_sets = len({run["set"] for run in results["runs"]})
    for shots, method in dict.fromkeys((run["shots"], run["method"]) for run in results["runs"]):
        found = [r["seeds"] for r in results["runs"] if (r["shots"], r["method"]) == (shots, method)]
        if n_sets > 1 and len(found) == n_sets:
            means = [f"{np.mean([np.mean([s[n] for s in seeds]) for seeds in found]):.3f}" for n in names[:2]]
            lines.append(f"| mean | {shots} | {method} | {means[0]} | | {means[1]} | | | | |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run the chosen sets × shots × methods × seeds; write JSON and a Markdown table, anew after every set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON file with values for the options below, and recipes")
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--backbone", default="tiny", help="name, or folder of `oneshot-medad download`")
    parser.add_argument("--role", default="eval")
    parser.add_argument("--sets", nargs="+", default=["headct", "covidx", "lgg", "mias"])
    parser.add_argument("--methods", nargs="+", default=["default", "reference", "distance", "nearest"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="test images of each seed, the same for all methods; default all")
    parser.add_argument("--init", choices=("pretrained", "random"), default="pretrained", help="of the trained parts")
    parser.add_argument("--jobs", type=int, default=1, help="sets at a time, each in a process with one thread")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments).config
    config = json.loads(given.read_text()) if given else {}
    methods = METHODS | {
        name: Recipe.from_dict(DEFAULT.to_dict() | fields) for name, fields in config.pop("recipes", {}).items()
    }
    parser.set_defaults(**config)
    args = parser.parse_args(arguments)
    methods["default"] = Recipe.named(get_spec(args.backbone).recipe)  # large networks take another
    for method in args.methods:
        if method not in methods and method not in BASELINES:
            parser.error(f"Got method {method!r}; wanted some of {', '.join([*methods, *BASELINES])}.")
    results: dict = {"environment": environment(), "backbone": args.backbone, "limit": args.limit, "runs": []}
    workers = ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (1,))
    with workers if args.jobs > 1 else nullcontext() as pool:
        for runs in (pool.map if pool else map)(partial(run_set, args=args, methods=methods), args.sets):
            results["runs"] += runs
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(results))


def run_set(name: str, args: argparse.Namespace, methods: dict[str, Recipe]) -> list[dict]:
    """All shots × methods × seeds on one collection."""
    global chosen
    chosen = args.backbone
    collection, runs = read_collection(args.data, name, args.role), []
    for shots, method in product(args.shots, args.methods):
        wanted = methods.get(method, method)
        most = max(args.shots)  # more images add to fewer, and all numbers of them are tested on the same others
        seeds = [evaluate(collection, wanted, shots, seed, args.limit, most, args.init) for seed in range(args.seeds)]
        runs.append({"set": name, "shots": shots, "method": method, "seeds": seeds})
        print(table({"runs": runs[-1:]}).splitlines()[-1], flush=True)
    return runs
