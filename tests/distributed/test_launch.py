"""A fitting script under ``accelerate launch`` with two processes on the CPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from oneshot_medad import AnomalyDetector

pytestmark = [pytest.mark.slow]
SCRIPT = """
import json, os, sys
from oneshot_medad import AnomalyDetector, Recipe, datasets
folder, fault = sys.argv[1:3]
if fault == "rank 1" and os.environ["RANK"] == "1":
    raise RuntimeError("rank 1 has no image")
recipe = Recipe.from_dict(json.loads(sys.argv[3]))
sample = datasets.load_sample(n_normal=4, n_abnormal=4)
detector = AnomalyDetector(recipe=recipe, random_state=None if fault == "no seed" else 0)
detector.fit(sample.support).save_pretrained(folder)
print("rank", os.environ["RANK"], "history", detector.history_[-1]["loss"])
"""


def launch(tmp_path, recipe, fault="none", processes=2, parts=1):
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(script), str(tmp_path / "detector"), fault, json.dumps(recipe.to_dict()),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": str(parts)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def recipe(small):
    return replace(small, batch_size=4, n_steps=3, learning_rate=1e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_give_the_detector_of_one(tmp_path, recipe, sample, parts):
    done = launch(tmp_path, recipe, parts=parts)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [line.split()[-1] for line in done.stdout.splitlines() if "history" in line]
    assert len(losses) == 2
    assert losses[0] == losses[1]
    together = AnomalyDetector.from_pretrained(tmp_path / "detector")
    alone = AnomalyDetector(recipe=recipe, random_state=0).fit(sample.support)
    assert float(losses[0]) == pytest.approx(alone.history_[-1]["loss"], rel=1e-3)
    got, wanted = together.predict(sample.images).scores, alone.predict(sample.images).scores
    assert np.abs(got - wanted).max() < 0.02 * np.ptp(wanted)


@pytest.mark.parametrize(
    ("fault", "message"), [("rank 1", "rank 1 has no image"), ("no seed", "random_state=None in a distributed run")]
)
def test_no_process_hangs_when_one_fails(tmp_path, recipe, fault, message):
    start = time.monotonic()
    done = launch(tmp_path, recipe, fault)
    assert done.returncode != 0
    assert message in done.stderr
    assert time.monotonic() - start < 120
    assert not (tmp_path / "detector").exists()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, recipe):
    done = launch(tmp_path, replace(recipe, batch_size=3))
    assert done.returncode != 0
    assert "batch_size=3 in 2 processes" in done.stderr
    done = launch(tmp_path, replace(recipe, batch_size=2), parts=2)
    assert done.returncode != 0
    assert "batch_size=2 in 2 processes of 2 steps each" in done.stderr
