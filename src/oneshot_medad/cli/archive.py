"""``oneshot-medad manifest`` and ``archive``: millions of images, on as many machines as there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneshot_medad.cli.screen import REASONS, beside, not_read, summary, tell

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def manifest(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files, zip archives, patterns, s3://bucket/folder, or https:// of a DICOMweb service.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file.")] = Path("manifest.parquet"),
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders to any depth.")] = False,
    single: Annotated[bool, typer.Option("--single", help="Every file holds one image: open none to count.")] = False,
    as_json: AsJson = False,
) -> None:
    """List all images of an archive for the command archive: one row an image, with a 64-bit id and its address."""
    from oneshot_medad.archive import make_manifest

    found = make_manifest(images, out, recursive=recursive, single=single)
    values = {"manifest": str(found.path), "images": found.images, "left_out": found.left_out}
    tell(f"{found.images} images{beside(found.left_out)}: {found.path}", values, as_json)


def archive(
    detector: Annotated[
        str, typer.Argument(help="Folder of a saved detector, or owner/name on the Hub.", show_default=False)
    ],
    manifest: Annotated[str, typer.Argument(help="Parquet file made by manifest.", show_default=False)],
    out: Annotated[
        str, typer.Option(help="Folder that all machines share, or an address such as s3://bucket/results.")
    ],
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Add the heatmaps to the rows, as 16-bit PNG.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that hold the detector; one a GPU or core without it.")
    ] = None,
    rows_per_file: Annotated[int | None, typer.Option(help="Rows of a result file at least.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score all images of a manifest with Ray, here or on a cluster; what was broken off goes on where it stopped.

    Images that cannot be read have a row with the reason, and the exit code is then 3.
    """
    from oneshot_medad import AnomalyDetector
    from oneshot_medad.archive import score
    from oneshot_medad.archive.store import SCORES, Store

    found = AnomalyDetector.from_pretrained(detector, backbone=backbone)
    try:
        counts = score(
            found,
            manifest,
            out,
            heatmaps=heatmaps,
            workers=workers,
            rows_per_file=rows_per_file,
            progress=not as_json,
        )
    except KeyboardInterrupt:
        typer.echo("Broken off. The same command goes on from there.", err=True)
        raise
    store = Store(out)
    tell(summary(counts, store.of(SCORES)), {**counts, "scores": store.of(SCORES)}, as_json)
    not_read(store.failures(REASONS), counts["failed"], store.of(SCORES))
