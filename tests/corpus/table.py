"""What every file that other packages ship gives, as rows; run as a program it writes them to the table."""

from __future__ import annotations

import csv
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from corpus import independent

from oneshot_medad.errors import BlankImageError, ImageError
from oneshot_medad.images.read import expand, read_image

TABLE = Path(__file__).with_name("packages.csv")
FOLDERS = {
    "pydicom": "data",
    "nibabel": "tests/data",
    "skimage": "data",
    "sklearn": "datasets/images",
    "matplotlib": "mpl-data/sample_data",
    "nilearn": "datasets/data",
}
CODE = (".py", ".pyc", ".pyi", ".so", ".pyd")
CAUSES = re.compile(
    r"without a picture \([^)]*\)|no pixel data|no usable Rows|no 'DICM'|compressed pixels of|cannot be decoded"
    r"|less than expected \(\d+ vs \d+|four_to_three|format Cifti2Image|NIfTI header without pixels|NaN or infinite"
    r"|ANALYZE 7\.5|is constant|Got [A-Za-z ]+ \(\.[\w.]+\), no image|content that is no image|not a TIFF"
)
"""Of a message, what tells the cause."""


def files():
    """Package, name in its folder, and path of every file."""
    for package, folder in FOLDERS.items():
        spec = find_spec(package)
        root = Path(spec.origin).parent / folder if spec and spec.origin else None
        for path in sorted(root.rglob("*")) if root else []:
            if path.is_file() and not path.name.endswith(CODE):
                yield package, path.relative_to(root).as_posix(), path


def outcome(path):
    """How many images a file gives, and ``right``, the causes for which they are refused, or what is wrong."""
    expected, window = independent.read(path) or (None, None)
    sources = expand(path)
    if path.name == "DICOMDIR":  # stands for the files beside it, which have rows of their own
        return len(sources), "right" if sources == expand(path.parent) else "wrong: not what lies beside it"
    places = {0, len(sources) // 2, len(sources) - 1}
    said = {_compare(sources[i], expected, i, len(sources), window) for i in places}
    return len(sources), "; ".join(sorted(said))


def _compare(source, expected, i, count, window):
    try:
        found = read_image(source, intensity_range=window).pixels.permute(1, 2, 0).numpy()
    except ImageError as error:
        cause = CAUSES.search(str(error))
        if isinstance(error, BlankImageError) and expected is not None and np.ptp(expected[i]) > 1e-5:
            return "wrong: not blank"
        return f"refused: {cause[0]}" if cause else f"wrong: no cause in {error}"
    if expected is None:
        return "wrong: nothing else reads it"
    if len(expected) != count or expected[i].shape != found.shape:
        return f"wrong: {count} of {found.shape}, not {len(expected)} of {expected[min(i, len(expected) - 1)].shape}"
    largest = float(np.abs(expected[i] - found).max())
    return "right" if largest < 1e-5 else f"wrong: differs by {largest:.3g}"


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["package", "file", "images", "outcome"])
        writer.writerows([package, name, *outcome(path)] for package, name, path in files())
