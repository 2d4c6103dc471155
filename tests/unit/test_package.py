import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import oneshot_medad
from oneshot_medad import Predictions
from oneshot_medad.backbones.specs import WEIGHTS
from oneshot_medad.results.regions import Region


def test_importing_loads_nothing_heavy_and_prints_nothing():
    code = (
        "import sys, oneshot_medad; print([m for m in ('torch', 'open_clip', 'medvae', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_public_name_is_there():
    for name in oneshot_medad.__all__:
        assert getattr(oneshot_medad, name) is not None
    assert set(oneshot_medad.__all__) <= set(dir(oneshot_medad))
    with pytest.raises(AttributeError, match="it offers AnomalyDetector"):
        oneshot_medad.Detector  # noqa: B018


def test_every_public_name_is_in_the_reference():
    page = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8").splitlines()
    for name in oneshot_medad.__all__:
        assert name == "__version__" or f"::: oneshot_medad.{name}" in page


def test_embedded_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 40e6


def test_predictions_are_plain_values_whose_writers_load_when_called():
    code = (
        "import sys; from oneshot_medad import Predictions; "
        "print(sorted(m for m in sys.modules if m.startswith('oneshot_medad.results.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['oneshot_medad.results.predictions', 'oneshot_medad.results.regions']"


def test_pickles_that_name_earlier_places_are_read():
    found = Predictions(np.array([0.2, 0.9]), [np.zeros((2, 2), np.float32)] * 2, 0.5, ["a", "b"])
    now = b"oneshot_medad.results.predictions"
    assert now in (pickled := pickle.dumps(found, protocol=0))
    assert pickle.loads(pickled.replace(now, b"oneshot_medad.predictions")).verdicts == found.verdicts
    region = Region(0.9, 0.9, 1, None, (0.0, 0.0), (0, 0, 1, 1))
    pickled = pickle.dumps(region, protocol=0)
    assert pickle.loads(pickled.replace(b".results.regions", b".regions")) == region


def test_the_detector_is_one_class():
    bases = [base.__module__ for base in oneshot_medad.AnomalyDetector.__mro__[1:]]
    assert not [module for module in bases if module.startswith("oneshot_medad")]
    for name, member in vars(oneshot_medad.AnomalyDetector).items():
        assert name.startswith("_") or getattr(member, "__doc__", None), name
