"""``oneshot-medad predict`` and ``report``: what a detector finds in images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from oneshot_medad._names import printable
from oneshot_medad.cli.screen import AsJson, Detector, Images, Recursive, load, not_read, summary, tell, verdicts

CHUNK = 32
"""Images that `predict` holds in memory at a time; a volume is held as a whole."""


class Format(str, Enum):
    """File formats of heatmaps."""

    overlay = "overlay"
    png = "png"
    npz = "npz"
    nifti = "nifti"
    dicom = "dicom"


def predict(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, audit.jsonl, volumes.csv and heatmaps.")],
    heatmaps: Annotated[bool, typer.Option(help="Write each heatmap to a file, and those of volumes as NIfTI.")] = True,
    format: Annotated[Format, typer.Option(help="Of the heatmaps.")] = Format.png,  # noqa: A002
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Pictures with regions too, in a folder overlays.")
    ] = False,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and say where they are abnormal; a run that was broken off goes on where it stopped.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    from tqdm.auto import tqdm

    from oneshot_medad._listing import alone_in
    from oneshot_medad.images.read import expand
    from oneshot_medad.results.heatmaps import check_format
    from oneshot_medad.results.runs import Run

    form = format.value if heatmaps else "overlay" if overlay else None
    if form:
        check_format(form)
    out.mkdir(parents=True, exist_ok=True)
    found = load(detector, backbone)
    sources = expand(images, recursive=recursive)
    left_out = {"left_out": dict(sources.left_out)}
    with alone_in(out):
        run = Run(found, sources, out, form, CHUNK, overlay and form != "overlay")
        with _going_on(run), tqdm(total=len(run), disable=as_json or not len(run)) as bar:
            for count in run:
                bar.update(count)
        counts, reasons = _counts(run.rows())
        volumes = run.volumes()
    text = "\n".join([*verdicts(volumes), summary(counts | left_out, run.table)])
    tell(text, {**counts, **left_out, "table": str(run.table), **({"volumes": volumes} if volumes else {})}, as_json)
    not_read(reasons, len(reasons), run.table)


@contextmanager
def _going_on(run: Any) -> Iterator[None]:
    """On Ctrl-C, say what is written and that the same command goes on there."""
    try:
        yield
    except KeyboardInterrupt:
        said = f"Broken off: {run.listed} images are in {run.table}. The same command goes on there."
        typer.echo(printable(said), err=True)
        raise


def _counts(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, int], dict[str, str]]:
    """What `summary` says of rows, and why images could not be read, by name; blank slices are no failures."""
    from oneshot_medad.images.read import BLANK
    from oneshot_medad.verdicts import NOT_READ, count

    failures: dict[str, str] = {}

    def said() -> Iterator[tuple[str, str]]:
        for row in rows:
            if row["verdict"] == NOT_READ and row["reason"] != BLANK:
                failures[row["name"]] = row["reason"]
            yield row["verdict"], row["reason"]

    return count(said()), failures


def report(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and write a report with pictures: one HTML file that needs no network.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    out = out / "report.html" if out.is_dir() else out
    predictions = load(detector, backbone, progress=not as_json).predict(images, on_error="record", recursive=recursive)
    out.parent.mkdir(parents=True, exist_ok=True)
    counts, reasons = _counts(predictions.to_rows())
    values = {**counts, "left_out": predictions.left_out}
    tell(summary(values, out), {**values, "report": str(predictions.to_html(out, title))}, as_json)
    not_read(reasons, len(reasons), out)
