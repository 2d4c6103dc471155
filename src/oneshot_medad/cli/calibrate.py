"""``oneshot-medad calibrate``: the threshold of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneshot_medad.cli.screen import AsJson, Detector, Recursive, beside, labelled, load, tell


def calibrate(
    detector: Detector,
    normals: Annotated[list[str], typer.Argument(help="Normal images that it was not fitted on.", show_default=False)],
    abnormal: Annotated[
        list[str] | None,
        typer.Option(help="Abnormal images; may be given several times. The threshold then separates the two best."),
    ] = None,
    reading: Annotated[
        bool, typer.Option("--reading", help="NORMALS is the file in which a report saved what a reader thinks.")
    ] = False,
    target_fpr: Annotated[float, typer.Option(help="Share of further normal images that may be flagged.")] = 0.05,
    target_sensitivity: Annotated[
        float | None, typer.Option(help="Share of further abnormal images that must be flagged; with --abnormal.")
    ] = None,
    uncertain_fpr: Annotated[
        float | None, typer.Option(help="Larger share; images that only it would flag are called uncertain.")
    ] = None,
    by: Annotated[str, typer.Option(help="image, or volume: a threshold for whole volumes.")] = "image",
    accept_unlike: Annotated[
        bool, typer.Option("--accept-unlike", help='Take images too that the detector calls "cannot judge".')
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the result, in place of the detector's own.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Set the threshold of a detector on images of your own; nothing is fitted again."""
    from oneshot_medad.calibration import finest_rate, promises
    from oneshot_medad.errors import ConfigError
    from oneshot_medad.operating import points_text
    from oneshot_medad.persistence.folder import check_target

    if out is None and not Path(detector).is_dir():
        raise ConfigError(f"Got {detector!r}, which is no folder here, and no --out; wanted a folder to save to.")
    out = out or Path(detector)
    check_target(out.absolute())
    found = load(detector, backbone, progress=not as_json)
    if reading:
        normals, abnormal = _read_by(normals, abnormal, by)
    sources, labels = labelled(normals, abnormal, recursive, by)
    left_out = dict(sources.left_out)
    found.calibrate(
        sources,
        labels if abnormal else None,
        target_fpr=target_fpr,
        uncertain_fpr=uncertain_fpr,
        target_sensitivity=target_sensitivity,
        by=by,
        accept_unlike=accept_unlike,
    )
    found.save_pretrained(out)
    stated = found.calibration_["volumes"] if by == "volume" else found.calibration_
    n = stated["n_normal"]
    head = f"Threshold {stated['threshold']:.3f}{beside(left_out)}: {out}"
    table = points_text(stated["operating_points"])
    lines = [head, *promises(stated, by), f"For p-values, {finest_rate(n, by)}.", *table.splitlines()]
    values = {"detector": str(out), **stated, "finest_rate": 1 / (n + 1), "left_out": left_out}
    tell("\n".join(lines), values, as_json)


def _read_by(files: list[str], abnormal: list[str] | None, by: str) -> tuple[list[str], list[str]]:
    """Normal and abnormal images by what readers said of them."""
    from oneshot_medad.errors import ConfigError
    from oneshot_medad.results.reading import read_reading

    if abnormal:
        raise ConfigError("Got --reading and --abnormal; wanted one of them.")
    found: tuple[list[str], list[str]] = ([], [])
    for file in files:
        for name, label in zip(*read_reading(file, by), strict=True):
            found[label].append(name)
    return found
