"""The command line: ``oneshot-medad``."""

from __future__ import annotations

import csv
import json
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
"""Images that `predict` holds in memory at a time."""

Images = Annotated[list[str], typer.Argument(help="Image files, folders or glob patterns.", show_default=False)]
Detector = Annotated[
    str, typer.Argument(help="Folder of a saved detector, or owner/name on the Hub.", show_default=False)
]
Backbone = Annotated[str, typer.Option(help="Frozen networks: a name, or a folder made by download.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Pixel values that mean black and white, where the type does not say."),
]


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
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and heatmaps.")],
    heatmaps: Annotated[bool, typer.Option(help="Write each heatmap as a 16-bit PNG.")] = True,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score images and say where they are abnormal; a run that was broken off goes on where it stopped.

    Images that cannot be read are recorded with the reason, and the exit code is then 2.
    """
    from tqdm.auto import tqdm

    from oneshot_medad.images.read import expand

    table = out / "scores.csv"
    out.mkdir(parents=True, exist_ok=True)
    found = _load(detector, backbone)
    done = _rows_of(table, found.threshold_)
    paths = [str(path) for path in expand(images)]
    rest = [path for path in paths if path not in done]
    with table.open("a", newline="", encoding="utf-8") as file, tqdm(total=len(rest), disable=as_json) as bar:
        for start in range(0, len(rest), CHUNK):
            predictions = found.predict(rest[start : start + CHUNK], on_error="record")
            rows = predictions.to_rows()
            files = predictions.save_heatmaps(out / "heatmaps", len(done)) if heatmaps else [None] * len(rows)
            for row, path in zip(rows, files, strict=True):
                row["heatmap"] = str(path.relative_to(out)) if path else ""
            writer = csv.DictWriter(file, rows[0])
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            done |= {row["name"]: {k: str(v) for k, v in row.items()} for row in rows}
            bar.update(len(rows))
    chosen = [done[path] for path in paths]
    counts = {
        "images": len(chosen),
        "flagged": sum(row["flag"] == "True" for row in chosen),
        "failed": sum(bool(row["reason"]) for row in chosen),
        "table": str(table),
    }
    _tell(
        f"{counts['images']} images, {counts['flagged']} flagged, {counts['failed']} not readable: {table}",
        counts,
        as_json,
    )
    if counts["failed"]:
        raise typer.Exit(2)


def _rows_of(table: Path, threshold: float) -> dict[str, dict[str, str]]:
    """Rows that an earlier run wrote, without one that it left unfinished."""
    from oneshot_medad.errors import ConfigError

    if not table.exists():
        return {}
    text = table.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        table.write_text(whole, encoding="utf-8")
    rows = {row["name"]: row for row in csv.DictReader(whole.splitlines())}
    if any(row["threshold"] != str(threshold) for row in rows.values()):
        raise ConfigError(f"{table} holds the scores of a detector with another threshold. Give another --out.")
    return rows


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
        visualize.overlay(image, heatmap, mask=mask)
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
