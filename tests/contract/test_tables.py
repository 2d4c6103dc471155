"""The pages show what the results say: tables from the stored JSON files, marked where they stand."""

import json
import re

import pytest

from benchmarks import run, size, tables, transfer

RESULTS = {path.stem: path for path in sorted(tables.RESULTS.glob("*.json"))}
RUNS = sorted(name for name, path in RESULTS.items() if "runs" in json.loads(path.read_text(encoding="utf-8")))


def read(name):
    return json.loads(RESULTS[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: str(page.relative_to(tables.ROOT)))
def test_pages_hold_the_tables_of_the_results(page):
    """If this fails: ``python -m benchmarks tables``."""
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text
    assert "--8<--" not in text
    assert len(re.findall("<!-- table:", text)) == len(tables.MARKED.findall(text)) == text.count("<!-- end of table")


@pytest.mark.parametrize("name", RUNS)
def test_tables_of_runs_are_those_of_their_json(name):
    assert run.table(read(name)) == tables.made(name)


def test_the_table_of_transfer_is_that_of_its_json():
    found = read("transfer")["found"]
    columns = list(dict.fromkeys(c for rows in found.values() for c in rows if c != "probe"))
    methods, shots = zip(*(column.rsplit(" ", 1) for column in columns), strict=True)
    shots, methods = [int(k) for k in dict.fromkeys(shots)], list(dict.fromkeys(methods))
    assert transfer.table(found, shots, methods) == tables.made("transfer")


def test_the_table_of_sizes_is_that_of_its_json():
    assert size.table(read("size")) == tables.made("size")


def test_an_overview_shows_every_collection_once_and_what_the_pool_held_of_it():
    draws = {"draws": [{"image_auroc": 0.5}, {"image_auroc": 0.7}]}
    found = {
        "covidx": {"probe": {"image_auroc": 0.9}, "default 1": draws, "default 4": draws, "new 1": draws},
        "headct": {"probe": {"image_auroc": 0.7}, "default 1": draws},
    }
    lines = tables.overview(found).splitlines()
    assert lines[0] == (
        "| collection | its kind in the pre-training | **this package** | new | linear probe **with** labels |"
    )
    assert lines[2].endswith("| yes: same source, other images, labels used | 0.600 ± 0.100 | 0.600 ± 0.100 | 0.900 |")
    assert lines[3] == "| head CT, haemorrhage | no | 0.600 ± 0.100 |  | 0.700 |"
    assert lines[4] == "| mean (1) | | 0.600 | 0.600 | 0.900 |"
    assert len(tables.overview(found, chinese=True).splitlines()) == len(lines)


def test_a_page_is_filled_between_its_marks_alone(monkeypatch):
    monkeypatch.setattr(tables, "made", lambda name: f"| {name} |\n|---|\n")
    page = "a\n<!-- table: one -->\nold\n<!-- end of table -->\nb\n"
    wanted = "a\n<!-- table: one -->\n\n| one |\n|---|\n\n<!-- end of table -->\nb\n"
    assert tables.filled(page) == tables.filled(wanted) == wanted
