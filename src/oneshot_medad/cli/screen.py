"""What the commands share: what they take, and what they print."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from oneshot_medad._names import printable

Images = Annotated[
    list[str], typer.Argument(help="Image files, volumes, folders, zip archives or glob patterns.", show_default=False)
]
Detector = Annotated[
    str, typer.Argument(help="Folder of a saved detector, or owner/name on the Hub.", show_default=False)
]
Backbone = Annotated[str, typer.Option(help="Frozen networks: a name, or a folder made by download.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Search folders to any depth.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

VOLUMES = 20
"""Volumes whose verdicts are named on the screen; the table has them all."""


def tell(text: str, values: dict[str, Any], as_json: bool) -> None:
    """Print printable lines, or the values as one JSON object."""
    lines = [json.dumps(values)] if as_json else map(printable, text.splitlines())
    typer.echo("\n".join(lines))


def load(detector: str, backbone: str | None, progress: bool = False) -> Any:
    """A detector from a folder or the Hub."""
    from oneshot_medad import AnomalyDetector

    return AnomalyDetector.from_pretrained(detector, backbone=backbone, progress=progress)


def labelled(
    normal: list[str], abnormal: list[str] | None, recursive: bool, by: str = "image"
) -> tuple[Any, list[int]]:
    """What `expand` finds of both kinds, and 0 or 1 for each image or volume."""
    from oneshot_medad.images.expand import expand
    from oneshot_medad.images.files import volumes_of

    groups = {label: expand(some, recursive=recursive) for label, some in enumerate((normal, abnormal)) if some}
    units = {label: volumes_of(group) if by == "volume" else group for label, group in groups.items()}
    return expand(groups.values()), [label for label, group in units.items() for _ in group]


def summary(counts: dict[str, Any], where: Any) -> str:
    """What a run found, and where it lies, in one line."""
    words = {"uncertain": "uncertain", "cannot_judge": "not for this detector to judge", "blank": "blank"}
    some = "".join(f"{counts[name]} {word}, " for name, word in words.items() if counts[name])
    read = f"{counts['images']} images, {counts['flagged']} flagged, {some}{counts['failed']} not readable"
    return f"{read}{beside(counts.get('left_out', {}))}: {printable(str(where))}"


def beside(left_out: dict[str, int]) -> str:
    """What was passed over, to be put behind a count; nothing if nothing was."""
    from oneshot_medad.images.folders import said

    return f", {printable(said(left_out))}" if left_out else ""


def verdicts(volumes: list[dict[str, str]]) -> list[str]:
    """A line for each of the first volumes."""
    lines = []
    for row in volumes[:VOLUMES]:
        said = f", score {float(row['score']):.3f}, threshold {float(row['threshold']):.3f}" if row["score"] else ""
        lines.append(f"{row['name']}: {row['verdict'].replace('abnormal', 'ABNORMAL')}{said}")
    more = len(volumes) - VOLUMES
    return lines + [f"and {more} more volumes"] * (more > 0)


REASONS = 3
"""Images that could not be read which are named on the screen; the table has them all."""
INCOMPLETE = 3
"""Exit code when all is done but some images could not be read; 2 is typer's, for a command it does not understand."""


def not_read(reasons: dict[str, str], count: int, where: Any) -> None:
    """Say what could not be read, the first ones by name, and end with `INCOMPLETE`, if anything could not."""
    for name, reason in list(reasons.items())[:REASONS]:
        typer.secho(f"not read: {name}: {reason}", fg="red", err=True)
    if count > REASONS:
        typer.secho(printable(f"and {count - REASONS} more, in {where}"), fg="red", err=True)
    if count:
        raise typer.Exit(INCOMPLETE)
