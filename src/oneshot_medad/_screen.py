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
