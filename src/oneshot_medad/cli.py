"""The command line: ``oneshot-medad``."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import chain, groupby
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

INCOMPLETE = 3
"""Exit code when all is done but some images could not be read; 2 is typer's, for a command it does not understand."""

REASONS = 3
"""Images that could not be read which are named on the screen; the table has them all."""

Images = Annotated[
    list[str], typer.Argument(help="Image files, volumes, folders, zip archives or glob patterns.", show_default=False)
]
Detector = Annotated[
    str, typer.Argument(help="Folder of a saved detector, or owner/name on the Hub.", show_default=False)
]
Backbone = Annotated[str, typer.Option(help="Frozen networks: a name, or a folder made by download.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Search folders to any depth.")]
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


def _not_read(reasons: dict[str, str], where: Path) -> None:
    """Say what could not be read, and end with `INCOMPLETE`, if anything could not."""
    for name, reason in list(reasons.items())[:REASONS]:
        typer.secho(f"not read: {name}: {reason}", fg="red", err=True)
    if len(reasons) > REASONS:
        typer.secho(f"and {len(reasons) - REASONS} more, in {where}", fg="red", err=True)
    if reasons:
        raise typer.Exit(INCOMPLETE)


def _summary(counts: dict[str, Any], where: Path) -> str:
    foreign = f"{counts['cannot_judge']} not for this detector to judge, " if counts["cannot_judge"] else ""
    read = f"{counts['images']} images, {counts['flagged']} flagged, {foreign}{counts['failed']} not readable"
    return f"{read}{_beside(counts['left_out'])}: {where}"


def _beside(left_out: dict[str, int]) -> str:
    """What was passed over, to be put behind a count; nothing if nothing was."""
    from oneshot_medad.images.folders import said

    return f", {said(left_out)}" if left_out else ""


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
    values = {"detector": str(folder), "n_support": len(sources), "threshold": threshold, "left_out": left_out}
    text = f"Fitted on {len(sources)} image(s){_beside(left_out)}: {folder}, threshold {threshold:.3f}"
    _tell(text, values, as_json)


@app.command()
def predict(
    detector: Detector,
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, audit.jsonl, volumes.csv and heatmaps.")],
    heatmaps: Annotated[bool, typer.Option(help="Write each heatmap to a file, and those of volumes as NIfTI.")] = True,
    format: Annotated[Format, typer.Option(help="Of the heatmaps.")] = Format.png,  # noqa: A002
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and say where they are abnormal; a run that was broken off goes on where it stopped.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    from tqdm.auto import tqdm

    from oneshot_medad.export import check_format
    from oneshot_medad.images.read import BLANK, expand

    if heatmaps:
        check_format(format.value)
    table, audit = out / "scores.csv", out / "audit.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    found = _load(detector, backbone)
    done = _rows_of(table, audit, found)
    sources = expand(images, recursive=recursive)
    rest = [source for source in sources if str(source) not in done]
    given = Counter(map(_volume_of, sources))
    silent = as_json or not rest
    with (
        _going_on(done, table),
        table.open("a", newline="", encoding="utf-8") as file,
        tqdm(total=len(rest), disable=silent) as bar,
    ):
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
    reasons = {row["name"]: row["reason"] for row in chosen if row["reason"] not in ("", BLANK)}
    counts = {
        "images": len(chosen),
        "flagged": sum(row["flag"] == "True" for row in chosen),
        "cannot_judge": sum(row["verdict"] == "cannot judge" for row in chosen),
        "failed": len(reasons),
        "left_out": dict(sources.left_out),
        "table": str(table),
    }
    _tell(_summary(counts, table), counts, as_json)
    _not_read(reasons, table)


@contextmanager
def _going_on(done: dict[str, Any], table: Path) -> Iterator[None]:
    """On Ctrl-C, say what is written and that the same command goes on there."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Broken off: {len(done)} images are in {table}. The same command goes on there.", err=True)
        raise


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


def _rows_of(table: Path, audit: Path, detector: Any) -> dict[str, dict[str, str]]:
    """Rows that an earlier run of this detector wrote, without one that it left unfinished."""
    from oneshot_medad.errors import ConfigError

    rows = {row["name"]: row for row in csv.DictReader(_whole_lines(table))}
    records = _whole_lines(audit)
    if any(row["threshold"] != str(detector.threshold_) for row in rows.values()):
        raise ConfigError(f"{table} holds the scores of a detector with another threshold. Give another --out.")
    if records and json.loads(records[-1])["detector_sha256"] != detector.fingerprint_:
        raise ConfigError(f"{audit} is of another detector. Give another --out.")
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
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Score images and write a report with pictures: one HTML file that needs no network.

    Images that cannot be read are recorded with the reason, and the exit code is then 3.
    """
    from oneshot_medad.images.read import BLANK

    out = out / "report.html" if out.is_dir() else out
    predictions = _load(detector, backbone, progress=not as_json).predict(
        images, on_error="record", recursive=recursive
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    reasons = {row["name"]: row["reason"] for row in predictions.to_rows() if row["reason"] not in ("", BLANK)}
    values = {
        "images": len(predictions),
        "flagged": int(predictions.flags.sum()),
        "cannot_judge": predictions.verdicts.count("cannot judge"),
        "failed": len(reasons),
        "left_out": predictions.left_out,
        "report": str(predictions.to_html(out, title)),
    }
    _tell(_summary(values, out), values, as_json)
    _not_read(reasons, out)


@app.command()
def calibrate(
    detector: Detector,
    normals: Annotated[list[str], typer.Argument(help="Normal images that it was not fitted on.", show_default=False)],
    abnormal: Annotated[
        list[str] | None,
        typer.Option(help="Abnormal images; may be given several times. The threshold then separates the two best."),
    ] = None,
    target_fpr: Annotated[float, typer.Option(help="Share of further normal images that may be flagged.")] = 0.05,
    uncertain_fpr: Annotated[
        float | None, typer.Option(help="Larger share; images that only it would flag are called uncertain.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result, in place of the detector's own.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder with the frozen networks, if not at hand.")] = None,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Set the threshold of a detector on images of your own; nothing is fitted again."""
    from oneshot_medad.calibration import finest_rate
    from oneshot_medad.errors import ConfigError
    from oneshot_medad.images.read import expand
    from oneshot_medad.persistence.folder import check_target

    if out is None and not Path(detector).is_dir():
        raise ConfigError(f"Got {detector!r}, which is no folder here, and no --out; wanted a folder to save to.")
    out = out or Path(detector)
    check_target(out.absolute())
    found = _load(detector, backbone, progress=not as_json)
    groups = [expand(some, recursive=recursive) for some in (normals, abnormal) if some]
    left_out = dict(sum((group.left_out for group in groups), Counter()))
    labels = [0] * len(groups[0]) + [1] * len(groups[1]) if abnormal else None
    found.calibrate(list(chain(*groups)), labels, target_fpr=target_fpr, uncertain_fpr=uncertain_fpr)
    found.save_pretrained(out)
    n = len(found.calibration_scores_)
    values = {"detector": str(out), "threshold": found.threshold_, "n_normal": n, "finest_rate": 1 / (n + 1)}
    text = f"Threshold {found.threshold_:.3f}{_beside(left_out)}: {out}\nFor p-values, {finest_rate(n)}."
    _tell(text, {**values, "left_out": left_out}, as_json)


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
    from oneshot_medad.images.read import expand

    found = _load(detector, backbone, progress=not as_json)
    groups = [expand(some, recursive=recursive) for some in (normal, abnormal)]
    left_out = dict(sum((group.left_out for group in groups), Counter()))
    values = found.evaluate(list(chain(*groups)), [0] * len(groups[0]) + [1] * len(groups[1]))
    if save:
        found.save_pretrained(detector)
    values = {**values, "left_out": left_out} if left_out else values
    _tell("\n".join(f"{name}: {value}" for name, value in values.items()), values, as_json)


@app.command()
def info(detector: Detector, as_json: AsJson = False) -> None:
    """What a saved detector was fitted on, and what was measured."""
    found = _load(detector, None)
    known = found.calibration_scores_
    values = {
        "backbone": found.backbone if isinstance(found.backbone, str) else found.backbone.name,
        "n_support": found.n_support_,
        "intensity_range": found.intensity_range,
        "threshold": found.threshold_,
        "threshold_rule": found._calibration["rule"],
        "n_calibration": 0 if known is None else len(known),
        "finest_rate": None if known is None else 1 / (len(known) + 1),
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
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output"),
    as_json: AsJson = False,
) -> None:
    """Fit on one slice of the packaged brain, score others, and draw where they are abnormal."""
    from oneshot_medad import AnomalyDetector, Predictions, datasets, evaluation, visualize

    sample = datasets.load_sample()
    detector = AnomalyDetector(random_state=0, progress=not as_json).fit(sample.support)
    found = detector.predict(sample.images)
    table = Predictions(found.scores, found.heatmaps, found.threshold, sample.names)
    auroc = evaluation.auroc(sample.labels, found.scores)
    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        visualize.overlay(image, heatmap, found.threshold, mask)
        for image, heatmap, mask in zip(sample.images, found.heatmaps, sample.masks, strict=True)
    ]
    visualize.contact_sheet(pictures, sample.names).save(out / "contact-sheet.png")
    sheet = str(out / "contact-sheet.png")
    values = {"images": len(table), "flagged": int(table.flags.sum()), "image_auroc": auroc, "pictures": sheet}
    _tell(f"{table}\nimage-level AUROC {auroc:.3f}\npictures: {sheet}", values, as_json)


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
        _tell(f"{backbone} needs no download: it is in {spec.folder}.", values, as_json)
        return
    folder = resolve.download(spec, to)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    text = f"{backbone} is in {folder} ({size:.0f} MB). Use it with AnomalyDetector(backbone={str(folder)!r})."
    _tell(text, {"backbone": backbone, "folder": str(folder)}, as_json)


def main() -> None:
    """Run the command line; errors of this package and of the disk end it with one line and exit code 1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries underneath, to their callers
            warnings.showwarning = lambda message, *_: typer.secho(f"Warning: {message}", fg="yellow", err=True)
            app()
    except Exception as error:
        from oneshot_medad.errors import OneShotError  # takes a second, which --help need not wait for

        if not isinstance(error, (OneShotError, OSError)):
            raise
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(1) from error
