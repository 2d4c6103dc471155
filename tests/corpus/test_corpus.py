import csv
from collections import Counter

import pytest
from corpus.table import TABLE, files, outcome

ROWS = {(row["package"], row["file"]): row for row in csv.DictReader(TABLE.open(encoding="utf-8"))}
DECODERS = "refused: cannot be decoded"
"""What another set of decoders may read."""


@pytest.mark.filterwarnings("ignore")  # of the other packages on their own files
@pytest.mark.parametrize("package", sorted({package for package, _ in ROWS}))
def test_every_file_is_right_or_refused_with_its_cause(package):
    found = {name: outcome(path) for owner, name, path in files() if owner == package}
    assert not {name: said for name, (_, said) in found.items() if "wrong" in said}
    rows = {name: row for (owner, name), row in ROWS.items() if owner == package}
    known = {name: (int(rows[name]["images"]), rows[name]["outcome"]) for name in found if name in rows}
    assert len(known) > len(rows) / 2  # of other versions some are missing
    changed = {name: (found[name], row) for name, row in known.items() if found[name] != row and row[1] != DECODERS}
    assert not changed


def test_the_table_holds_right_files_and_refused_ones():
    kinds = Counter(row["outcome"].split(":")[0] for row in ROWS.values())
    assert set(kinds) == {"right", "refused"}
    assert min(kinds.values()) > 100
