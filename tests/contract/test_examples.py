"""Every example and the script of every figure runs, as printed, with its fits shortened."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from oneshot_medad import config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WRITES = {
    "01_one_image": ["demo-output/contact-sheet.png"],
    "02_calibrate": ["calibrated/scores.csv", "calibrated/report.html", "calibrated/heatmaps"],
    "04_save_and_share": ["brain-detector/model.safetensors"],
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(path, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setitem(config.RECIPES, "default", small)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    for name in WRITES.get(path.stem, []):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", sorted((ROOT / "docs/figures").glob("*.py")), ids=lambda p: p.stem)
def test_figures_are_what_their_scripts_draw(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "drawn.svg")])
    runpy.run_path(str(path), run_name="__main__")
    stored = path.with_suffix(".svg")

    def words(figure):
        return re.findall(r"<text[^>]*>([^<]*)</text>", figure.read_text(encoding="utf-8"))

    assert words(stored) == words(tmp_path / "drawn.svg")
    assert len(words(stored)) > 10
