"""Speed at full-size geometry (MedVAE 8×4 and ViT-L/14, random weights), as ratios taken in one run.

python -m benchmarks speed --out benchmarks/results/speed.json

Every comparison measures both sides in turn, several times, and reports the ratio of their medians. A fit, a prediction
and the start of a saved detector run in processes of their own, whose peak memory is theirs alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.parts import parts, patchcore
from benchmarks.run import environment
from oneshot_medad import AnomalyDetector, datasets
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import Backbone
from oneshot_medad.backbones.clip import TextTower, VisionTower, build_clip, tokenize
from oneshot_medad.backbones.medvae import LatentSpace, build_autoencoder
from oneshot_medad.backbones.specs import WEIGHTS, get_spec
from oneshot_medad.config import Recipe
from oneshot_medad.nn.adapters import Adapters
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES
from oneshot_medad.scoring import Scorer
from oneshot_medad.scoring.fit import assemble
from oneshot_medad.synthesis.lesions import add_lesions
from oneshot_medad.training.cache import Views, draw_batch, make_views
from oneshot_medad.training.joint import JointModel
from oneshot_medad.training.loop import train

CPU = torch.device("cpu")
BATCH = 8
SCRATCH = Recipe.named("scratch")
RECIPES = {
    "clip and distance": SCRATCH,
    "all branches": replace(SCRATCH, branches={"clip": 1.0, "latent": 1.0, "distance": 8.0, "deviation": 1.0}),
}
CLIP = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
    "quick_gelu": True,
}
AUTOENCODER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip


class RandomBackbone(Backbone):
    """The full-size networks without their weights."""

    def __init__(self, half: bool) -> None:
        spec = replace(get_spec("medvae-vitl14"), folder=WEIGHTS, half=half)  # the folder is never read
        self.spec, self.device, self.initial, self._statistics = spec, CPU, {}, {}

    embed_dim = 768

    @cached_property
    def latents(self) -> LatentSpace:
        space = LatentSpace(build_autoencoder(AUTOENCODER), torch.zeros(4), torch.ones(4))
        space.autoencoder.to(self.dtype)
        return space

    @cached_property
    def vision(self) -> VisionTower:
        unit = [(torch.zeros(1024), torch.ones(1024))] * 3
        visual = build_clip(CLIP, text=False).visual
        tower = VisionTower(visual, self.spec.levels, self.spec.mean, self.spec.std, unit)
        tower.visual.to(self.dtype)
        return tower

    @cached_property
    def text(self) -> TextTower:
        return TextTower(build_clip(CLIP, vision=False)).to(self.dtype)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> dict[str, float]:
    """Medians of both in turn, after one call each to warm up."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(times)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"ours_s": round(a, 3), "theirs_s": round(b, 3), "theirs_over_ours": round(b / a, 2)}


class MediClipStyle(nn.Module):
    """What MediCLIP trains: adapters and prompts, with the vision tower run on every image and all 77 tokens read."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vision, self.text = [backbone.vision], [backbone.text]  # frozen; not among the parameters
        self.adapters = Adapters([1024] * 3, 768)
        self.context = nn.Parameter(torch.randn(2, 8, 768) * 0.02)
        self.tokens = [tokenize(p) for p in (NORMAL_PHRASES, ABNORMAL_PHRASES)]

    def words(self) -> torch.Tensor:
        text, classes = self.text[0], []
        places = torch.arange(77)
        for context, tokens in zip(self.context, self.tokens, strict=True):
            embedded = text.embed(tokens)
            spread = context[None].expand(len(tokens), -1, -1)
            sequence = torch.cat([embedded[:, :1], spread, embedded[:, 1:]], dim=1)[:, :77]
            found = text.encode(sequence, places, places[:, None] >= places)
            ends = tokens.argmax(1) + context.shape[0]
            classes.append(F.normalize(found[torch.arange(len(tokens)), ends], dim=-1).mean(0))
        return F.normalize(torch.stack(classes), dim=-1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.adapters(self.vision[0](images), self.words(), 1.0).probability[:, None], (28, 28))[
            :, 0
        ]


def some_views(backbone: Backbone, recipe: Recipe) -> Views:
    """Encoded views of one image, fewer than a fit makes, as a fit makes them."""
    few = replace(recipe, n_views=BATCH, n_lesions=BATCH, n_held=2)
    return make_views(backbone, torch.rand(1, 3, 224, 224), few, torch.Generator().manual_seed(0))


def scorer_of(backbone: Backbone, recipe: Recipe) -> Scorer:
    """A detector that was not trained."""
    views = some_views(backbone, recipe)
    model = JointModel.build(recipe, backbone, views.normal).eval()
    scorer = assemble(model, F.normalize(torch.randn(2, 768), dim=-1), views, CPU).eval()
    scorer.calibrate(views, CPU)
    return scorer


def training_step(backbone: Backbone, exact: Backbone, times: int) -> dict[str, float]:
    """One joint step on cached tensors against one step in MediCLIP's way, same images a step and prompts."""
    recipe = replace(SCRATCH, batch_size=BATCH // 2)
    views = some_views(backbone, SCRATCH)
    model = JointModel.build(recipe, backbone, views.normal)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            losses = model(draw_batch(views, recipe, generator, CPU), backbone.text)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()

    other = MediClipStyle(exact)
    moved = torch.optim.AdamW(other.parameters())
    images = torch.rand(BATCH, 3, 224, 224)

    def theirs() -> None:
        lesions, mask = add_lesions(images[: BATCH // 2], generator)
        probability = other(torch.cat([images[BATCH // 2 :], lesions]))
        target = F.adaptive_max_pool2d(torch.cat([torch.zeros_like(mask), mask])[:, None], 28)[:, 0]
        moved.zero_grad()
        (focal_loss(probability, target) + dice_loss(probability, target)).backward()
        moved.step()

    return compare(ours, theirs, times)


def prediction(backbone: Backbone, exact: Backbone, times: int) -> dict[str, dict[str, float]]:
    """Prediction of a batch against the frozen forwards alone, and against MediCLIP's own way."""
    images = torch.rand(BATCH, 3, 224, 224)
    other = MediClipStyle(exact)
    found = {}
    for name, recipe in RECIPES.items():
        scorer = scorer_of(backbone, recipe)

        def ours(scorer: Scorer = scorer) -> None:
            z = backbone.latents.encode(images) if scorer.recipe.reads_latents else None
            scorer(z, backbone.vision(images))

        def bare(scorer: Scorer = scorer) -> None:
            if scorer.recipe.reads_latents:
                backbone.latents.encode(images)
            backbone.vision(images)

        def theirs() -> None:
            with torch.no_grad():
                other(images)

        found[f"predict, {name}, against the bare forwards"] = compare(ours, bare, times)
        found[f"predict, {name}, against MediCLIP's way"] = compare(ours, theirs, times)
    return found


def fit() -> dict[str, float]:
    """One fit of one image with the default number of steps: encoding all views, and the loop."""
    backbone, generator = RandomBackbone(half=True), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    views = make_views(backbone, torch.rand(1, 3, 224, 224), SCRATCH, generator)
    encoded = time.perf_counter()
    model = JointModel.build(SCRATCH, backbone, views.normal)
    train(model, views, backbone.text, generator, CPU, progress=False, half=backbone.dtype == torch.bfloat16)
    done = time.perf_counter()
    found = {"steps": SCRATCH.n_steps, "views_s": round(encoded - start, 1), "training_s": round(done - encoded, 1)}
    return found | {"peak_memory_gib": peak_memory()}


def predict() -> dict[str, float]:
    """Three batches through all branches."""
    backbone = RandomBackbone(half=True)
    scorer = scorer_of(backbone, RECIPES["all branches"])
    for _ in range(3):
        images = torch.rand(BATCH, 3, 224, 224)
        scorer(backbone.latents.encode(images), backbone.vision(images))
    return {"peak_memory_gib": peak_memory()}


def peak_memory() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def alone(what: str) -> dict[str, float]:
    """What `fit` or `predict` measure in a new process."""
    command = [sys.executable, "-m", "benchmarks", "speed", "--alone", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def cold_start(times: int) -> dict[str, float]:
    """New processes that load a saved tiny detector and predict one file, and their rate on all files."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from oneshot_medad import AnomalyDetector\n"
        "files = sorted(Path(sys.argv[1], 'images').iterdir())\n"
        "detector = AnomalyDetector.from_pretrained(sys.argv[1] + '/detector'); detector.predict(files[0])\n"
        "first = time.time(); detector.predict(files)\n"
        "print(first - float(sys.argv[2]), len(files) / (time.time() - first))\n"
    )
    sample, found = datasets.load_sample(), []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for name, image in zip(sample.names, sample.images, strict=True):
            Image.fromarray(image).save(images / f"{name}.png")
        AnomalyDetector(random_state=0, n_steps=2).fit(sample.support).save_pretrained(f"{folder}/detector")
        for _ in range(times):
            command = [sys.executable, "-c", script, folder, str(time.time())]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(tuple(map(float, done.stdout.split())))
    cold, rate = (statistics.median(seen) for seen in zip(*found, strict=True))
    return {"cold_start_s": round(cold, 1), "images_per_second": round(rate, 1)}


def of_backbone(name: str, times: int) -> dict[str, float]:
    """`parts` of a detector on named networks, fitted on the sample's image in two steps."""
    detector = AnomalyDetector(name, random_state=0, n_steps=2).fit(datasets.load_sample().support)
    return parts(detector._fitted.networks.load(), detector._fitted.scorer, times)


def parts_table(found: dict[str, dict[str, float] | None]) -> str:
    """Markdown: one column a detector, one row a part."""
    measured = {name: cells for name, cells in found.items() if cells}
    rows = dict.fromkeys(row for cells in measured.values() for row in cells)
    lines = ["| | " + " | ".join(measured) + " |", "|---" * (len(measured) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(str(c.get(row, "")) for c in measured.values()) + " |" for row in rows]
    missing = [f"\n{name}: not measured." for name in found if name not in measured]
    return "\n".join([*lines, *missing]) + "\n"


def table(results: dict) -> str:
    """Markdown of the ratios."""
    machine = results["environment"]["machine"]
    lines = [
        f"{machine}; ours in {results['dtype']}, MediCLIP's way in float32; batch of {BATCH}.",
        "",
        "| what | ours, s | the other, s | ratio |",
        "|---|---|---|---|",
    ]
    for name, found in results.items():
        if isinstance(found, dict) and "theirs_s" in found:
            lines.append(f"| {name} | {found['ours_s']} | {found['theirs_s']} | {found['theirs_over_ours']} |")
    lines += ["", parts_table(results["parts"])]
    fit, tiny = results["fit"], results["tiny"]
    lines += [
        "",
        f"- Fit of one image with the default number of steps ({fit['steps']}): {fit['views_s']} s for the views, then "
        f"{fit['training_s']} s of training.",
        f"- Peak memory: {fit['peak_memory_gib']} GiB of the fit, {results['predict']['peak_memory_gib']} GiB of "
        "predictions with all branches.",
        f"- Embedded networks: a new process has its first prediction of a saved detector after "
        f"{tiny['cold_start_s']} s; then {tiny['images_per_second']} images a second.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown table comes beside it")
    parser.add_argument("--times", type=int, default=3, help="measurements of each side")
    parser.add_argument("--alone", choices=("fit", "predict"), help="measure that in this process and print it")
    parser.add_argument("--backbone", help="name or folder: only the parts of a prediction on these networks")
    args = parser.parse_args(arguments)
    if args.alone:
        print(json.dumps({"fit": fit, "predict": predict}[args.alone]()))
        return
    if args.out is None:
        parser.error("wanted --out FILE.json")
    if args.backbone:
        columns = {args.backbone: of_backbone(args.backbone, args.times)}
        args.out.write_text(json.dumps({"environment": environment(), "parts": columns}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(parts_table(columns))
        return
    half, exact = RandomBackbone(half=True), RandomBackbone(half=False)
    if half.dtype == exact.dtype:
        half = exact  # no fast bfloat16 here: everything in single precision
    results: dict = {"environment": environment(), "dtype": str(half.dtype).removeprefix("torch.")}
    results |= {"tiny": cold_start(args.times), "fit": alone("fit"), "predict": alone("predict")}
    results["training step against MediCLIP's way"] = training_step(half, exact, args.times)
    results |= prediction(half, exact, args.times)
    results["parts"] = {
        "tiny": of_backbone("tiny", args.times),
        "full size, random weights": parts(half, scorer_of(half, SCRATCH), args.times),
        "anomalib's PatchCore, wide_resnet50_2": patchcore(args.times),
    }
    print(json.dumps(results, indent=1), flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(results))
