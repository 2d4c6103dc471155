"""Every Python block of the README and of the documentation runs, in order, one namespace a page.

A block is left out only where the line before it says why: ``<!-- not run: reason -->``. Translated pages must hold
the code of their originals and are not run again.
"""

import ast
import re
from pathlib import Path

import pytest
import torch

from oneshot_medad import config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TRANSLATED = {page: DOCS / page.name for page in sorted((DOCS / "zh").glob("*.md"))}
TRANSLATED[ROOT / "README.zh-CN.md"] = ROOT / "README.md"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if page not in TRANSLATED)]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [code for skipped, code in BLOCK.findall(page.read_text(encoding="utf-8")) if not skipped]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(config.RECIPES, "default", small)  # the code as printed, the fit itself shortened
    names, threads = {"__name__": "__main__"}, torch.get_num_threads()
    try:
        for code in blocks(page):
            exec(compile(code, str(page), "exec"), names)
    finally:
        torch.set_num_threads(threads)  # a page shows how to set it; another number sums in another order


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda p: str(p.relative_to(ROOT)))
def test_translations_hold_the_code_of_their_originals(page):
    """All but the comments, and every other block and heading in its place."""
    ours, theirs = ([ast.dump(ast.parse(code)) for code in blocks(p)] for p in (page, TRANSLATED[page]))
    assert ours == theirs
    ours, theirs = (
        re.findall(r"^(```\w*|#+(?= ))", p.read_text(encoding="utf-8"), re.M) for p in (page, TRANSLATED[page])
    )
    assert ours == theirs
