"""Every Python block of the README and of the documentation runs, in order, one namespace a page.

A block is left out only where the line before it says why: ``<!-- not run: reason -->``.
"""

import re
from pathlib import Path

import pytest

from oneshot_medad import config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [code for skipped, code in BLOCK.findall(page.read_text(encoding="utf-8")) if not skipped]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(config.RECIPES, "default", small)  # the code as printed, the fit itself shortened
    names = {"__name__": "__main__"}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)
