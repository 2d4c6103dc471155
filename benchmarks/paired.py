"""Predictions of two checkouts of this repository in turn, each in a process of its own with as many threads.

python -m benchmarks paired --before ../other-checkout --times 15

Each side fits one detector on the sample's image in two steps, then both predict the same eight images again and again,
one after the other. Processor time counts beside the clock, since it knows nothing of what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

BATCH = 8
SIDE = """
import json, sys, time
from oneshot_medad import AnomalyDetector, datasets
sample = datasets.load_sample()
detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
images = sample.images[: int(sys.argv[1])]
detector.predict(images)
print("ready", flush=True)
for _ in sys.stdin:
    clock, cpu = time.perf_counter(), time.process_time()
    detector.predict(images)
    print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]), flush=True)
"""


def start(checkout: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-c", SIDE, str(BATCH)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def answer(side: subprocess.Popen[str]) -> str:
    assert side.stdout is not None
    line = side.stdout.readline()
    if not line:
        sys.exit(f"One side ended with status {side.wait()}; its message stands above.")
    return line


def measure(before: Path, times: int) -> dict[str, list[list[float]]]:
    """Seconds by the clock and of the processors of every prediction of both sides."""
    sides = {"before": start(before), "now": start(Path(__file__).parents[1])}
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for side in sides.values():
        answer(side)
    for _ in range(times):
        for name, side in sides.items():
            assert side.stdin is not None
            side.stdin.write("again\n")
            side.stdin.flush()
            found[name].append(json.loads(answer(side)))
    for side in sides.values():
        side.communicate()
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks paired", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--times", type=int, default=15)
    args = parser.parse_args(arguments)
    found = measure(args.before, args.times)
    for i, what in enumerate(("by the clock", "of the processors")):
        ratios = sorted(b[i] / n[i] for b, n in zip(found["before"], found["now"], strict=True))
        medians = [1000 * statistics.median(row[i] for row in rows) / BATCH for rows in found.values()]
        print(
            f"{what}: {medians[0]:.0f} ms an image before, {medians[1]:.0f} now; ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
