"""The command line: ``oneshot-medad``."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="One-shot medical anomaly detection. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CHUNK = 32
"""Images that `predict` holds in memory at a time; a volume is held as a whole."""

Images = Annotated[
    list[str], typer.Argument(help="Image files, volumes, folders, zip archives or glob patterns.", show_default=False)
]
Detector = Annotated[
    str, typer.Argument(help="Folder of a saved detector, or owner/name on the Hub.", show_default=False)
]
Backbone = Annotated[str, typer.Option(help="Frozen networks: a name, or a folder made by download.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Pixel values that mean black and white, where the type does not say."),
]


class Format(str, Enum):
    """File formats of heatmaps."""

    png = "png"
    npz = "npz"
    nifti = "nifti"
    dicom = "dicom"


def _tell(text: str, values: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(values) if as_json else text)


def _load(detector: str, backbone: str | None, progress: bool = False) -> Any:
    from oneshot_medad import AnomalyDetector

    return AnomalyDetector.from_pretrained(detector, backbone=backbone, progress=progress)


@app.command()
def fit(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the detector: new, empty, or an older detector.")],
    backbone: Backbone = "tiny",
    recipe: Annotated[str, typer.Option(help="default, scratch or reference.")] = "default",
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    intensity_range: Window = None,
    license: Annotated[str | None, typer.Option(help="Of the detector, for its card.")] = None,  # noqa: A002
    modality: Annotated[str | None, typer.Option(help="What the images are, for the card.")] = None,
    as_json: AsJson = False,
) -> None:
    """Learn what normal looks like from one or a few normal images."""
    from oneshot_medad import AnomalyDetector

    detector = AnomalyDetector(
        backbone, recipe=recipe, random_state=seed, intensity_range=intensity_range, progress=not as_json
    )
    folder = detector.fit(images).save_pretrained(out, license=license, modality=modality)
    values = {"detector": str(folder), "n_support": detector.n_support_, "threshold": detector.threshold_}
    _tell(f"Fitted on {detector.n_support_} image(s): {folder}, threshold {detector.threshold_:.3f}", values, as_json)


@app.command()
def predict(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, audit.jsonl, volumes.csv and heatmaps.")],
    heatmaps: Annotated[bool, typer.Option(help="Write each heatmap to a file, and those of volumes as NIfTI.")] = True,
    format: Annotated[Format, typer.Option(help="Of the heatmaps.")] = Format.png,  # noqa: A002
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score images and say where they are abnormal; a run that was broken off goes on where it stopped.

    Images that cannot be read are recorded with the reason, and the exit code is then 2.
    """
    from tqdm.auto import tqdm

    from oneshot_medad.export import check_format
    from oneshot_medad.images.read import BLANK, expand

    if heatmaps:
        check_format(format.value)
    table, audit = out / "scores.csv", out / "audit.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    found = _load(detector, backbone)
    done = _rows_of(table, found.threshold_)
    _whole_lines(audit)
    sources = expand(images)
    rest = [source for source in sources if str(source) not in done]
    given = Counter(map(_volume_of, sources))
    with table.open("a", newline="", encoding="utf-8") as file, tqdm(total=len(rest), disable=as_json) as bar:
        for volume, chunk in _chunks(rest):
            predictions = found.predict(chunk, on_error="record")
            if volume and len(chunk) == given[volume]:  # otherwise an earlier run wrote it before it broke off
                _save_volumes(predictions, out, len(done), heatmaps)
            rows = predictions.to_rows()
            files: list[Path | None] = [None] * len(rows)
            if heatmaps:
                files = predictions.save_heatmaps(out / "heatmaps", len(done), format.value)
            predictions.to_jsonl(audit)  # before the table, whose rows say what is done
            for row, path in zip(rows, files, strict=True):
                row["heatmap"] = str(path.relative_to(out)) if path else ""
            writer = csv.DictWriter(file, rows[0])
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            done |= {row["name"]: {k: str(v) for k, v in row.items()} for row in rows}
            bar.update(len(rows))
    chosen = [done[str(source)] for source in sources]
    counts = {
        "images": len(chosen),
        "flagged": sum(row["flag"] == "True" for row in chosen),
        "failed": sum(row["reason"] not in ("", BLANK) for row in chosen),
        "table": str(table),
    }
    _tell(
        f"{counts['images']} images, {counts['flagged']} flagged, {counts['failed']} not readable: {table}",
        counts,
        as_json,
    )
    if counts["failed"]:
        raise typer.Exit(2)


def _volume_of(source: Any) -> tuple[Any, str] | None:
    """File and axis of a slice of a volume; None for every other image."""
    axis = getattr(source, "axis", "frame")
    return None if axis == "frame" else (source.path, axis)


def _chunks(sources: list[Any]) -> Iterator[tuple[tuple[Any, str] | None, list[Any]]]:
    """Slices of one volume together, other images by `CHUNK`."""
    for volume, group in groupby(sources, _volume_of):
        members = list(group)
        size = len(members) if volume else CHUNK
        for start in range(0, len(members), size):
            yield volume, members[start : start + size]


def _save_volumes(predictions: Any, out: Path, start: int, heatmaps: bool) -> None:
    """Heatmap of a volume on its own grid, and one line with its score."""
    for volume in predictions.volumes():
        path = out / "volumes" / f"{start:05d}-{Path(volume.name).name.split('.')[0]}.nii.gz"
        if heatmaps:
            path.parent.mkdir(exist_ok=True)
            volume.save(path)
        table = out / "volumes.csv"
        new = not table.exists()
        with table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["name", "score", "heatmap"])
            writer.writerow([volume.name, volume.score, path.relative_to(out) if heatmaps else ""])


def _rows_of(table: Path, threshold: float) -> dict[str, dict[str, str]]:
    """Rows that an earlier run wrote, without one that it left unfinished."""
    from oneshot_medad.errors import ConfigError

    rows = {row["name"]: row for row in csv.DictReader(_whole_lines(table))}
    if any(row["threshold"] != str(threshold) for row in rows.values()):
        raise ConfigError(f"{table} holds the scores of a detector with another threshold. Give another --out.")
    return rows


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file, none if it is not there; one that was left unfinished is cut off in the file too."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()


@app.command()
def report(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score images and write a report with pictures: one HTML file that needs no network.

    Images that cannot be read are recorded with the reason, and the exit code is then 2.
    """
    import numpy as np

    predictions = _load(detector, backbone, progress=not as_json).predict(images, on_error="record")
    out.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "images": len(predictions),
        "flagged": int(predictions.flags.sum()),
        "failed": int(np.isnan(predictions.scores).sum()),
        "report": str(predictions.to_html(out, title)),
    }
    _tell(
        f"{values['images']} images, {values['flagged']} flagged, {values['failed']} not readable: {out}",
        values,
        as_json,
    )
    if values["failed"]:
        raise typer.Exit(2)


@app.command()
def evaluate(
    detector: Detector,
    normal: Annotated[list[str], typer.Option(help="Normal images; may be given several times.")],
    abnormal: Annotated[list[str], typer.Option(help="Abnormal images; may be given several times.")],
    save: Annotated[bool, typer.Option(help="Write the numbers onto the card of the detector's folder.")] = False,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a detector on images with known labels."""
    from oneshot_medad.images.read import expand

    found = _load(detector, backbone, progress=not as_json)
    groups = [expand(normal), expand(abnormal)]
    values = found.evaluate(groups[0] + groups[1], [0] * len(groups[0]) + [1] * len(groups[1]))
    if save:
        found.save_pretrained(detector)
    _tell("\n".join(f"{name}: {value}" for name, value in values.items()), values, as_json)


@app.command()
def info(detector: Detector, as_json: AsJson = False) -> None:
    """What a saved detector was fitted on, and what was measured."""
    found = _load(detector, None)
    values = {
        "backbone": found.backbone if isinstance(found.backbone, str) else found.backbone.name,
        "n_support": found.n_support_,
        "threshold": found.threshold_,
        "sha256": found.fingerprint_,
        **found.provenance_,
        "evaluation": found.evaluation_,
    }
    _tell("\n".join(f"{name}: {value}" for name, value in values.items()), values, as_json)


@app.command()
def push(
    detector: Detector,
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    private: Annotated[bool, typer.Option(help="Of a new repository.")] = True,
    license: Annotated[str | None, typer.Option(help="Of the detector, for its card.")] = None,  # noqa: A002
    modality: Annotated[str | None, typer.Option(help="What the images are, for the card.")] = None,
    as_json: AsJson = False,
) -> None:
    """Share a detector on the Hugging Face Hub."""
    address = _load(detector, None).push_to_hub(repo, private=private, license=license, modality=modality)
    _tell(address, {"commit": address}, as_json)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output")) -> None:
    """Fit on one slice of the packaged brain, score others, and draw where they are abnormal."""
    from oneshot_medad import AnomalyDetector, Predictions, datasets, evaluation, visualize

    sample = datasets.load_sample()
    detector = AnomalyDetector(random_state=0, progress=True).fit(sample.support)
    found = detector.predict(sample.images)
    typer.echo(str(Predictions(found.scores, found.heatmaps, found.threshold, sample.names)))
    typer.echo(f"image-level AUROC {evaluation.auroc(sample.labels, found.scores):.3f}")
    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        visualize.overlay(image, heatmap, found.threshold, mask)
        for image, heatmap, mask in zip(sample.images, found.heatmaps, sample.masks, strict=True)
    ]
    visualize.contact_sheet(pictures, sample.names).save(out / "contact-sheet.png")
    typer.echo(f"pictures: {out / 'contact-sheet.png'}")


@app.command()
def download(
    backbone: Annotated[str, typer.Option(help="Name of the frozen networks, for example medvae-vitl14.")],
    to: Annotated[Path, typer.Option(help="New or empty folder.")],
) -> None:
    """Fetch frozen networks into a folder that serves a machine without a network."""
    from oneshot_medad.backbones import resolve
    from oneshot_medad.backbones.specs import get_spec

    spec = get_spec(backbone)
    if spec.folder is not None:
        typer.echo(f"{backbone} needs no download: it is in {spec.folder}.")
        return
    folder = resolve.download(spec, to)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    typer.echo(f"{backbone} is in {folder} ({size:.0f} MB). Use it with AnomalyDetector(backbone={str(folder)!r}).")


def main() -> None:
    """Run the command line; errors of this package end it with one line and exit code 1."""
    try:
        app()
    except Exception as error:
        from oneshot_medad.errors import OneShotError  # takes a second, which --help need not wait for

        if not isinstance(error, OneShotError):
            raise
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(1) from error
