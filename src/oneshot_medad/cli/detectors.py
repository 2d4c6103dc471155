"""``oneshot-medad fit``, ``evaluate``, ``info``, ``push`` and ``download``: detectors and their frozen networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneshot_medad._names import printable
from oneshot_medad.cli.screen import AsJson, Backbone, Detector, Images, Recursive, beside, labelled, load, tell

Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Pixel values that mean black and white, where the type does not say."),
]


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
