"""``oneshot-medad search``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from oneshot_medad.cli.screen import AsJson, tell


def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="All of these, in names and tags.", show_default=False)
    ] = None,
    owner: Annotated[str | None, typer.Option(help="User or organisation.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Detectors listed at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Published detectors on the Hugging Face Hub, the most downloaded first."""
    from oneshot_medad.persistence.gallery import search as find

    found = find(*(words or []), owner=owner, limit=limit)
    text = "\n".join(map(str, found)) or "No published detector has all of these words."
    tell(text, {"detectors": [asdict(one) for one in found]}, as_json)
