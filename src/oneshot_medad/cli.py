"""The command line: ``oneshot-medad``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from oneshot_medad._cli_archive import archive, manifest
from oneshot_medad._cli_calibrate import calibrate
from oneshot_medad._cli_pretrain import pretrain
from oneshot_medad._cli_study import study
from oneshot_medad._names import printable
from oneshot_medad._screen import (
    AsJson,
    Backbone,
    Detector,
    Images,
    Recursive,
    beside,
    labelled,
    load,
    not_read,
    summary,
    tell,
    verdicts,
)

app = typer.Typer(
    help="One-shot medical anomaly detection. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CHUNK = 32
"""Images that `predict` holds in memory at a time; a volume is held as a whole."""

Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Pixel values that mean black and white, where the type does not say."),
]


class Format(str, Enum):
    """File formats of heatmaps."""

    overlay = "overlay"
    png = "png"
    npz = "npz"
    nifti = "nifti"
    dicom = "dicom"


def _version(wanted: bool) -> None:
    if wanted:
        from oneshot_medad import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


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
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Learn what normal looks like from one or a few normal images."""
    from oneshot_medad import AnomalyDetector
    from oneshot_medad.images.read import expand
    from oneshot_medad.persistence.folder import check_target

    check_target(out.absolute())  # before the fit, which takes a minute
    detector = AnomalyDetector(
        backbone, recipe=recipe, random_state=seed, intensity_range=intensity_range, progress=not as_json
    )
    sources = expand(images, recursive=recursive)
    folder = detector.fit(sources).save_pretrained(out, license=license, modality=modality)
    left_out, threshold = dict(sources.left_out), detector.threshold_
    values = {"detector": str(folder), "n_support": detector.n_support_, "threshold": threshold, "left_out": left_out}
    place = printable(str(folder))
    text = f"Fitted on {detector.n_support_} image(s){beside(left_out)}: {place}, threshold {threshold:.3f}"
    tell(text, values, as_json)


@app.command()
def predict(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, audit.jsonl, volumes.csv and heatmaps.")],
    heatmaps: Annotated[bool, typer.Option(help="Write each heatmap to a file, and those of volumes as NIfTI.")] = True,
    format: Annotated[Format, typer.Option(help="Of the heatmaps.")] = Format.png,  # noqa: A002
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Pictures with regions too, in a folder overlays.")
    ] = False,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and say where they are abnormal; a run that was broken off goes on where it stopped.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    from tqdm.auto import tqdm

    from oneshot_medad._listing import alone_in
    from oneshot_medad.images.read import expand
    from oneshot_medad.results.heatmaps import check_format
    from oneshot_medad.results.runs import Run

    form = format.value if heatmaps else "overlay" if overlay else None
    if form:
        check_format(form)
    out.mkdir(parents=True, exist_ok=True)
    found = load(detector, backbone)
    sources = expand(images, recursive=recursive)
    left_out = {"left_out": dict(sources.left_out)}
    with alone_in(out):
        run = Run(found, sources, out, form, CHUNK, overlay and form != "overlay")
        with _going_on(run), tqdm(total=len(run), disable=as_json or not len(run)) as bar:
            for count in run:
                bar.update(count)
        counts, reasons = _counts(run.rows())
        volumes = run.volumes()
    text = "\n".join([*verdicts(volumes), summary(counts | left_out, run.table)])
    tell(text, {**counts, **left_out, "table": str(run.table), **({"volumes": volumes} if volumes else {})}, as_json)
    not_read(reasons, len(reasons), run.table)


@contextmanager
def _going_on(run: Any) -> Iterator[None]:
    """On Ctrl-C, say what is written and that the same command goes on there."""
    try:
        yield
    except KeyboardInterrupt:
        said = f"Broken off: {run.listed} images are in {run.table}. The same command goes on there."
        typer.echo(printable(said), err=True)
        raise


def _counts(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, int], dict[str, str]]:
    """What `summary` says of rows, and why images could not be read, by name; blank slices are no failures."""
    from oneshot_medad.images.read import BLANK
    from oneshot_medad.verdicts import NOT_READ, count

    failures: dict[str, str] = {}

    def said() -> Iterator[tuple[str, str]]:
        for row in rows:
            if row["verdict"] == NOT_READ and row["reason"] != BLANK:
                failures[row["name"]] = row["reason"]
            yield row["verdict"], row["reason"]

    return count(said()), failures


@app.command()
def report(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and write a report with pictures: one HTML file that needs no network.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    out = out / "report.html" if out.is_dir() else out
    predictions = load(detector, backbone, progress=not as_json).predict(images, on_error="record", recursive=recursive)
    out.parent.mkdir(parents=True, exist_ok=True)
    counts, reasons = _counts(predictions.to_rows())
    values = {**counts, "left_out": predictions.left_out}
    tell(summary(values, out), {**values, "report": str(predictions.to_html(out, title))}, as_json)
    not_read(reasons, len(reasons), out)


@app.command()
def evaluate(
    detector: Detector,
    normal: Annotated[list[str], typer.Option(help="Normal images; may be given several times.")],
    abnormal: Annotated[list[str], typer.Option(help="Abnormal images; may be given several times.")],
    save: Annotated[bool, typer.Option(help="Write the numbers onto the card of the detector's folder.")] = False,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Measure a detector on images with known labels."""
    found = load(detector, backbone, progress=not as_json)
    sources, labels = labelled(normal, abnormal, recursive)
    values = {**found.evaluate(sources, labels), "left_out": dict(sources.left_out)}
    if save:
        found.save_pretrained(detector)
    tell("\n".join(f"{name}: {value}" for name, value in values.items()), values, as_json)


@app.command()
def info(detector: Detector, as_json: AsJson = False) -> None:
    """What a saved detector was fitted on, and what was measured."""
    found = load(detector, None)
    stated = found.calibration_
    n, images = stated.pop("n_normal"), stated.pop("images")
    values = {
        "backbone": found.backbone if isinstance(found.backbone, str) else found.backbone.name,
        "n_support": found.n_support_,
        "intensity_range": found.intensity_range,
        "threshold": stated.pop("threshold"),
        "threshold_rule": stated.pop("rule"),
        "n_calibration": n,
        "finest_rate": 1 / (n + 1) if n else None,
        **stated,
        "calibration_images": images,
        "sha256": found.fingerprint_,
        **found.provenance_,
        "evaluation": found.evaluation_,
    }
    tell("\n".join(f"{name}: {value}" for name, value in values.items()), values, as_json)


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
    address = load(detector, None).push_to_hub(repo, private=private, license=license, modality=modality)
    tell(address, {"commit": address}, as_json)


@app.command()
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


@app.command()
def download(
    backbone: Annotated[str, typer.Option(help="Name of the frozen networks, for example medvae-vitl14.")],
    to: Annotated[Path, typer.Option(help="New or empty folder.")],
    as_json: AsJson = False,
) -> None:
    """Fetch frozen networks into a folder that serves a machine without a network."""
    from oneshot_medad.backbones import resolve
    from oneshot_medad.backbones.specs import get_spec

    spec = get_spec(backbone)
    if spec.folder is not None:
        values = {"backbone": backbone, "folder": str(spec.folder)}
        tell(f"{backbone} needs no download: it is in {spec.folder}.", values, as_json)
        return
    folder = resolve.download(spec, to)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    text = f"{backbone} is in {folder} ({size:.0f} MB). Use it with AnomalyDetector(backbone={str(folder)!r})."
    tell(text, {"backbone": backbone, "folder": str(folder)}, as_json)


app.command()(calibrate)
app.command()(study)
app.command()(pretrain)


app.command()(manifest)
app.command()(archive)


def main() -> None:
    """Run the command line; errors of this package and of the disk end it with one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names may hold what the screen's encoding cannot
            stream.reconfigure(errors="backslashreplace")

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if Path(filename).is_relative_to(Path(__file__).parent):  # libraries underneath talk to their callers
            typer.secho(printable(f"Warning: {message}"), fg="yellow", err=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            app()
    except Exception as error:
        from oneshot_medad.errors import OneShotError  # takes a second, which --help need not wait for

        if not isinstance(error, (OneShotError, OSError)):
            raise
        typer.secho(printable(f"{type(error).__name__}: {error}"), fg="red", err=True)
        raise SystemExit(1) from error
