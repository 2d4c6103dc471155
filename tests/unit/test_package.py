import subprocess
import sys
from pathlib import Path

import pytest

import oneshot_medad
from oneshot_medad.backbones.specs import WEIGHTS


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
