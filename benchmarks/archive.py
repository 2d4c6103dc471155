"""An archive on Ray beside the plain loop on the same machine, and what millions of images would take.

python -m benchmarks archive --images 3000 --out results/archive.json

Small generated images, one process that holds the detector, one thread each way; the detector looks at distances alone,
without the mirror image, which leaves Ray's own work its largest share. Memory is that of the driver and of the largest
process that holds the detector, sampled all along: its first and last quarter are compared.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow.dataset
import torch
from PIL import Image

from benchmarks.run import environment
from oneshot_medad import AnomalyDetector, Recipe, archive
from oneshot_medad.datasets import load_sample

CHEAP = replace(
    Recipe.named("default"), deviations={}, n_lesions=0, branches={"distance": 1.0}, n_steps=1, mirror=False
)
MILLIONS = (1, 10, 100)
CORE_HOUR = 0.04
"""Dollars of a core for an hour, a common price of virtual machines; change it to yours."""


def pictures(count: int, folder: Path) -> Path:
    """``count`` small variations of the packaged images, as PNG."""
    folder.mkdir()
    rng, images = np.random.default_rng(0), [image[::4, ::4] for image in load_sample().images]
    for i in range(count):
        image = images[i % len(images)]
        noisy = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:06}.png")
    return folder


class Memory(threading.Thread):
    """Resident MiB of this process and of the largest that Ray gave the detector, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver: list[float] = []
        self.judge: list[float] = []
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.5):
            sizes = [0.0]
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if "Judge" in " ".join(process.info["cmdline"] or []) and process.info["memory_info"]:
                    sizes.append(process.info["memory_info"].rss / 2**20)
            self.driver.append(me.memory_info().rss / 2**20)
            if max(sizes) > 0:
                self.judge.append(max(sizes))


def quarters(values: list[float]) -> list[float]:
    """Means of the first and the last quarter, leaving out a tenth in which processes start."""
    kept = values[len(values) // 10 :]
    size = max(1, len(kept) // 4)
    return [round(float(np.mean(part)), 1) for part in (kept[:size], kept[-size:])]


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def table(found: dict) -> str:
    """Markdown."""
    n, driver, judge = found["images"], found["driver_mib"], found["judge_mib"]
    lines = [
        "| what | measured |",
        "|---|---|",
        f"| images, all with one row | {n} |",
        f"| plain loop, ms an image | {1000 * found['loop_s'] / n:.1f} |",
        f"| on Ray, one process with the detector, ms an image | {1000 * found['ray_s'] / n:.1f} |",
        f"| of it until the first image is judged, s | {found['start_s']:.1f} |",
        f"| behind that, beside the plain loop | {(found['ray_s'] - found['start_s']) / found['loop_s']:.2f} |",
        f"| driver's memory, first and last quarter, MiB | {driver[0]:.0f}, {driver[1]:.0f} |",
        f"| memory of the process with the detector, MiB | {judge[0]:.0f}, {judge[1]:.0f} |",
        "",
        f"The default detector takes {found['default_ms']:.0f} ms an image; at {CORE_HOUR} dollars a core and hour:",
        "",
        "| images | core hours | on 64 cores, h | dollars | manifest, GB | checkpoint, GB | rows, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for millions in MILLIONS:
        hours = millions * 1e6 * found["default_ms"] / 3.6e6
        sizes = [f"{found['bytes'][part] * millions / 1e3:.2f}" for part in ("manifest", "checkpoint", "rows")]
        time_and_cost = f"{hours:,.0f} | {hours / 64:,.1f} | {hours * CORE_HOUR:,.0f}"
        lines.append(f"| {millions} million | {time_and_cost} | {' | '.join(sizes)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks archive", description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sample = load_sample()
    default = AnomalyDetector(random_state=0).fit(sample.support)
    default.predict(sample.images[:8])
    start = time.process_time()
    default.predict(sample.images)
    default_ms = 1000 * (time.process_time() - start) / len(sample.images)
    detector = AnomalyDetector(recipe=CHEAP, random_state=0).fit(sample.support)
    with TemporaryDirectory() as scratch:
        folder, out = pictures(args.images, Path(scratch) / "images"), Path(scratch) / "out"
        detector.predict(folder / "000000.png")
        start = time.perf_counter()
        wanted = detector.predict(folder)
        loop_s = time.perf_counter() - start
        manifest = archive.make_manifest(folder, Path(scratch) / "manifest.parquet").path
        memory = Memory()
        memory.start()
        begun, start = time.time(), time.perf_counter()
        archive.score(detector, manifest, out, workers=1, rows_per_file=64)
        ray_s = time.perf_counter() - start
        memory.done.set()
        first = min(path.stat().st_mtime for path in (out / "scores").rglob("*.parquet"))
        rows = pyarrow.dataset.dataset(out / "scores").to_table(columns=["id", "score"])
        assert len(set(rows["id"].to_pylist())) == len(rows) == args.images
        assert np.allclose(np.sort(rows["score"].to_numpy()), np.sort(wanted.scores))
        weights = {"manifest": Path(manifest).stat().st_size, "checkpoint": size(out / "checkpoint")}
        weights |= {"rows": size(out / "scores")}
    found = {
        "environment": environment(),
        "images": args.images,
        "loop_s": loop_s,
        "ray_s": ray_s,
        "start_s": first - begun,
        "driver_mib": quarters(memory.driver),
        "judge_mib": quarters(memory.judge),
        "default_ms": default_ms,
        "bytes": {part: weight / args.images for part, weight in weights.items()},
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(found))
