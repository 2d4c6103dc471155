"""``oneshot-medad pretrain``: new initial values from an archive of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    data: Annotated[Path, typer.Option(help="Folder with MANIFEST.csv and the images of all collections.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; a run that was broken off goes on there.")],
    rules: Annotated[Path | None, typer.Option(help="JSON file that says what is odd about which collection.")] = None,
    episodes: Annotated[int, typer.Option(help="Number of episodes, about 1 MB each.", min=1)] = 4800,
    steps: Annotated[int, typer.Option(help="Training steps of eight episodes.", min=1)] = 2000,
    labels: Annotated[bool, typer.Option(help="Use real lesions; otherwise every lesion is drawn.")] = True,
    backbone: Annotated[str, typer.Option(help="Frozen networks: a name, or a folder made by download.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Of all draws.", min=0)] = 7,
) -> None:
    """Train the detector's adapters and prompts on collections of your own, for fits that start from them."""
    from oneshot_medad.pretraining.heads import HeadRecipe
    from oneshot_medad.pretraining.pool import Rules
    from oneshot_medad.pretraining.run import pretrain as run

    said = Rules.from_dict(json.loads(rules.read_text(encoding="utf-8"))) if rules else None
    recipe = HeadRecipe(steps=steps)
    made = run(data, out, said, episodes, recipe, labels, backbone, seed=seed, progress=typer.echo)
    typer.echo(f"Use it with AnomalyDetector(backbone={str(made)!r}).")
