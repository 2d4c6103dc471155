"""Saving a fitted detector, sharing it on the Hub, and reading it back."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from oneshot_medad._parameters import checked
from oneshot_medad._predicting import score
from oneshot_medad._runtime import is_writer, resolve_device, seeded
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import BACKBONES, BackboneSpec, get_spec
from oneshot_medad.calibration import uncalibrated
from oneshot_medad.errors import PersistenceError
from oneshot_medad.fitted import FittedDetector, Networks
from oneshot_medad.images.augment import normal_views
from oneshot_medad.images.read import MedicalImage
from oneshot_medad.persistence.hub import download, upload, upload_space
from oneshot_medad.persistence.mediclip import RECIPE, read_mediclip
from oneshot_medad.persistence.save import load_detector, save_detector
from oneshot_medad.provenance import provenance
from oneshot_medad.results.pictures import contact_sheet, overlay
from oneshot_medad.synthesis.lesions import add_lesions

if TYPE_CHECKING:
    from oneshot_medad.detector import AnomalyDetector

SHEET = 6
"""Drawn anomalies on the picture that a card may show."""


def save_pretrained(
    self: AnomalyDetector,
    folder: str | Path,
    *,
    license: str | None = None,  # noqa: A002
    modality: str | None = None,
    include_backbones: bool = False,
    anomaly_sheet: bool = False,
) -> Path:
    """Write the fitted detector to a folder: JSON, safetensors and a model card, whole or not at all.

    Parameters
    ----------
    folder
        New, empty, or a saved detector, which is replaced.
    license
        Of this detector, as the Hub writes licences; the card says "not stated" without it. None keeps the one of
        a detector that was read back.
    modality
        What the images are, for the card; None keeps that of a detector that was read back.
    include_backbones
        Put the frozen networks into the folder too, for a machine that has none.
    anomaly_sheet
        Add a picture of anomalies drawn into views of the normal images, and of what the detector finds there. It
        shows those images, which nothing else in the folder does.

    Returns
    -------
    The folder.

    Raises
    ------
    NotFittedError
        `fit` has not been called.
    PersistenceError
        A folder that holds other things or cannot be written; what was there before is unchanged. Or a picture
        asked of a detector that was read back, which has no images. Or a licence or modality that is no line of
        text.

    Examples
    --------
    >>> import tempfile
    >>> from oneshot_medad import AnomalyDetector, datasets
    >>> sample = datasets.load_sample()
    >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = detector.save_pretrained(f"{folder}/brain", license="cc-by-4.0", modality="brain MRI, T1")
    ...     again = AnomalyDetector.from_pretrained(path)
    >>> bool((again.predict(sample.images[:2]).scores == detector.predict(sample.images[:2]).scores).all())
    True
    """
    folder = Path(folder)
    said = {"license": license, "modality": modality}
    return _save(self, folder, folder.absolute().name, said, include_backbones, anomaly_sheet)


def push_to_hub(
    self: AnomalyDetector,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    license: str | None = None,  # noqa: A002
    modality: str | None = None,
    include_backbones: bool = False,
    anomaly_sheet: bool = False,
    commit_message: str = "Upload detector",
    space: bool = False,
) -> str:
    """Save to the Hugging Face Hub in one commit; the repository is made if it does not exist.

    Parameters
    ----------
    repo_id
        ``"owner/name"``.
    private
        Of a new repository; None takes the owner's default.
    token
        None uses the stored login.
    license, modality, include_backbones, anomaly_sheet
        As for `save_pretrained`.
    commit_message
        Of the commit.
    space
        Also write a page for the browser, a Space of the same name that loads this commit: `space.app`.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    HubError
        The Hub refused, could not be reached or broke off; passing trouble is tried again first.
    """
    if not is_writer():
        return ""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "detector"
        said = {"license": license, "modality": modality}
        _save(self, folder, repo_id, said, include_backbones, anomaly_sheet)
        address = upload(folder, repo_id, private, token, commit_message)
    if space:
        upload_space(address, self.provenance_["versions"], private, token)
    return address


def from_pretrained(
    cls: type[AnomalyDetector],
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    backbone: str | Path | BackboneSpec | None = None,
    fetch: str = "always",
    device: str = "auto",
    progress: bool = False,
) -> AnomalyDetector:
    """Read a detector back from a folder or from the Hub.

    Parameters
    ----------
    source
        A folder, or ``"owner/name"`` on the Hub; loading a folder asks no network. Or a checkpoint file of
        MediCLIP's published code, with ``backbone="medvae-vitl14"`` (`read_mediclip` says how it is converted).
    revision
        Branch, tag or commit on the Hub; pin a commit where results must not change.
    token
        None uses the stored login.
    local_files_only
        Take the Hub's cache as it is.
    backbone
        Where the frozen networks lie, if neither the package, the detector's folder nor the cache holds them: the
        folder that ``oneshot-medad download`` made, or the `BackboneSpec` that the detector was fitted on.
    fetch, device, progress
        As in the constructor.

    Returns
    -------
    A fitted detector, with predictions bit-equal to the saved one's on the same machine.

    Raises
    ------
    PersistenceError
        A folder that is missing, damaged, from another version, or fitted with other frozen networks.
    HubError
        The Hub refused or could not be reached.
    """
    folder = Path(source)
    if folder.is_file():
        detector = cls(backbone or "medvae-vitl14", recipe=RECIPE, fetch=fetch, device=device, progress=progress)
        _, spec, target, _ = checked(detector)
        networks = Networks(resolve(spec, fetch != "never"), target)
        scorer = read_mediclip(folder, networks.load())
        detector._fitted = FittedDetector(
            networks, scorer.to(target).eval(), uncalibrated(0.0, "none", 0), provenance([])
        )
        return detector
    if not folder.is_dir():
        if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            raise PersistenceError(f"Got {str(source)!r}; wanted an existing folder or 'owner/name' on the Hub.")
        folder = download(str(source), revision, token, local_files_only)
    given = get_spec(backbone) if backbone is not None else None
    fitted, parameters = load_detector(folder, resolve_device(device), given)
    spec = fitted.networks.spec
    name = spec.name if spec.name in BACKBONES else spec
    detector = cls(name, fetch=fetch, device=device, progress=progress, **parameters)
    detector._fitted = fitted
    return detector


def export(self: AnomalyDetector, form: str, path: str | Path) -> Path:
    """Write the fitted detector as one file that runs without torch; `load_exported` reads it.

    It holds everything from the square field to heatmap, score and similarity: frozen networks, references, fusion,
    thresholds. A fit or a calibration is not possible with it.

    Parameters
    ----------
    form
        ``"onnx"`` or ``"openvino"``: ONNX of opset 18 either way, whose answers onnxruntime or openvino has to give.
    path
        The file; one that is there is replaced.

    Returns
    -------
    The file.

    Raises
    ------
    NotFittedError
        `fit` has not been called.
    ConfigError
        Another format, or a detector fitted on slices of volumes.
    ExtraError
        The packages of the extra ``[onnx]``, or openvino, are missing.
    PersistenceError
        Eight probe images get other scores or heatmaps than from torch in single precision, by more than 1e-4 on the
        shown scale; nothing is written then.
    """
    from oneshot_medad.export.write import write

    fitted, fetch = self._ready(), self.fetch == "always"
    window = self.intensity_range
    return write(Path(path), form, fitted, fetch, None if window is None else (float(window[0]), float(window[1])))


def _save(
    detector: AnomalyDetector,
    folder: Path,
    location: str,
    said: dict[str, str | None],
    include_backbones: bool,
    anomaly_sheet: bool,
) -> Path:
    fitted, fetch = detector._ready(), detector.fetch == "always"
    if not is_writer():
        return folder
    return save_detector(
        fitted,
        detector.get_params(deep=False),
        folder,
        location,
        said=said,
        include_backbones=include_backbones,
        fetch=fetch,
        sheet=_anomaly_sheet(fitted, fetch) if anomaly_sheet else None,
    )


def _anomaly_sheet(fitted: FittedDetector, fetch: bool) -> bytes:
    """A PNG of anomalies drawn into views of the images fitted on, with heatmaps and scores."""
    if fitted.examples is None:
        raise PersistenceError("Got anomaly_sheet=True for a detector without its images; ask for it after fit.")
    generator = seeded(0)
    views = normal_views(fitted.examples, len(fitted.examples) + SHEET, generator)[len(fitted.examples) :]
    images, masks = add_lesions(views[:SHEET], generator, fitted.scorer.recipe.max_area)
    found = list(score(fitted, [MedicalImage(image, "") for image in images], fetch))
    pictures = [
        overlay((image.permute(1, 2, 0) * 255).round().byte().numpy(), heatmap, fitted.threshold, mask.bool().numpy())
        for image, mask, (_, heatmap, *_) in zip(images, masks, found, strict=True)
    ]
    file = BytesIO()
    contact_sheet(pictures, [f"drawn anomaly, score {value:.2f}" for value, *_ in found]).save(file, "PNG")
    return file.getvalue()
