"""``oneshot-medad study``: a study of a picture archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneshot_medad.cli.screen import AsJson, Detector, load, tell


def study(
    detector: Detector,
    dicomweb: Annotated[str, typer.Option(help="Address of the archive, such as https://pacs.example/dicom-web.")],
    study: Annotated[str, typer.Option(help="StudyInstanceUID.")],
    store: Annotated[bool, typer.Option("--store", help="Store maps and segmentations in the archive.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for study.csv and heatmaps of volumes as NIfTI.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a study from a picture archive (DICOMweb) and judge each of its series that the detector can judge.

    Credentials come from ONESHOT_MEDAD_DICOMWEB_TOKEN, or _USER and _PASSWORD, or ~/.netrc.
    """
    from oneshot_medad._listing import write_rows
    from oneshot_medad.studies.dicomweb import judge_study

    found = load(detector, backbone, progress=not as_json)
    rows, lines = [], []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for one in judge_study(found, dicomweb, study, store=store):
        row = one.to_row()
        rows.append(row)
        for number, volume in enumerate(one.volumes if out is not None else [], 1):
            volume.save(Path(str(out), f"{one.series}-{number}.nii.gz"))
        score = "" if row["score"] is None else f", score {row['score']:.3f}"
        p_value = "" if row["p_value"] is None else f", p-value {row['p_value']:.3g}"
        said = f": {one.reason}" if one.reason else f"{score}{p_value}, {row['regions']} region(s)" * bool(one.volumes)
        kept = f", {row['stored']} object(s) stored" if store else ""
        head = f"series {one.number or one.series} ({one.modality}, {row['images']} images) {row['description']}"
        lines.append(f"{head.strip()}: {one.verdict.replace('abnormal', 'ABNORMAL')}{said}{kept}")
    if out is not None:
        (out / "study.csv").unlink(missing_ok=True)
        write_rows(out / "study.csv", rows)
    tell("\n".join(lines), {"study": study, "series": rows}, as_json)
