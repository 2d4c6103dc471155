"""What the command line prints."""

from __future__ import annotations

import json
from typing import Any

import typer

from oneshot_medad._names import printable


def tell(text: str, values: dict[str, Any], as_json: bool) -> None:
    """Print printable lines, or the values as one JSON object."""
    lines = [json.dumps(values)] if as_json else map(printable, text.splitlines())
    typer.echo("\n".join(lines))


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
