"""``oneshot-medad demo``: a fit on the packaged sample, and what it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from oneshot_medad.cli.screen import AsJson, tell


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output"),
    as_json: AsJson = False,
) -> None:
    """Fit on one slice of the packaged brain, score others, and draw where they are abnormal."""
    from oneshot_medad import AnomalyDetector, datasets, evaluation
    from oneshot_medad.results.pictures import contact_sheet, overlay

    sample = datasets.load_sample()
    detector = AnomalyDetector(random_state=0, progress=not as_json).fit(sample.support)
    found = detector.predict(sample.images)
    table = replace(found, names=sample.names)
    auroc = evaluation.auroc(sample.labels, found.scores)
    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        overlay(image, found.pictured(i), found.threshold, mask)
        for i, (image, mask) in enumerate(zip(sample.images, sample.masks, strict=True))
    ]
    contact_sheet(pictures, sample.names).save(out / "contact-sheet.png")
    sheet = str(out / "contact-sheet.png")
    values = {**table.counts(), "image_auroc": auroc, "pictures": sheet}
    tell(f"{table}\nimage-level AUROC {auroc:.3f}\npictures: {sheet}", values, as_json)
