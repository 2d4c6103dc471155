"""Saving a fitted detector, sharing it on the Hub, and reading it back."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from oneshot_medad._copying import Copyable
from oneshot_medad._parameters import Parameters
from oneshot_medad._runtime import is_writer, resolve_device, seeded
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.resolve import cache_folder, resolve
from oneshot_medad.backbones.specs import BACKBONES, SPEC, STATISTICS, BackboneSpec, get_spec
from oneshot_medad.calibration import uncalibrated
from oneshot_medad.errors import NotFittedError, PersistenceError
from oneshot_medad.images.augment import normal_views
from oneshot_medad.images.read import MedicalImage
from oneshot_medad.operating import with_points
from oneshot_medad.persistence.card import model_card
from oneshot_medad.persistence.describe import check_files, fingerprint, pack, provenance, stored_spec, unpack
from oneshot_medad.persistence.folder import CONFIG, MODEL
from oneshot_medad.persistence.hub import download, upload
from oneshot_medad.persistence.mediclip import RECIPE, read_mediclip
from oneshot_medad.persistence.store import Stored, check_said, read_folder, write_folder
from oneshot_medad.results.pictures import contact_sheet, overlay
from oneshot_medad.scoring import Scorer
from oneshot_medad.synthesis.lesions import add_lesions

if TYPE_CHECKING:
    from typing_extensions import Self

SHEET = 6
"""Drawn anomalies on the picture that a card may show."""


class Shareable(Parameters, Copyable):
    """The part of `AnomalyDetector` that knows folders and the Hub."""

    fetch: str
    history_: list[dict[str, float]]
    "Losses of every training step."
    evaluation_: dict[str, Any] | None
    "What `evaluate` measured last; None if nothing was."
    provenance_: dict[str, Any]
    "Time, versions and hashes of the images fitted on."

    _calibration: dict[str, Any]
    _examples: torch.Tensor | None

    def save_pretrained(
        self,
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
        return self._save(folder, folder.absolute().name, license, modality, include_backbones, anomaly_sheet)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        license: str | None = None,  # noqa: A002
        modality: str | None = None,
        include_backbones: bool = False,
        anomaly_sheet: bool = False,
        commit_message: str = "Upload detector",
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
            self._save(folder, repo_id, license, modality, include_backbones, anomaly_sheet)
            return upload(folder, repo_id, private, token, commit_message)

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged."""
        return float(self._calibrated("threshold"))

    @property
    def n_support_(self) -> int:
        """Number of normal images fitted on."""
        return int(self._calibrated("n_support"))

    @property
    def calibration_scores_(self) -> np.ndarray | None:
        """(n,) sorted scores of the normal images given to `calibrate`; None before."""
        scores = self._calibrated("normal_scores")
        return np.array(scores, dtype=float) if scores else None

    @property
    def calibration_(self) -> dict[str, Any]:
        """How the threshold was found, on which images, and what false-positive rate that promises.

        ``rule``, ``threshold``, ``target_fpr``, ``uncertain_from``, ``uncertain_fpr``, ``n_normal``, ``images`` (their
        SHA-256, of the pixels of all that were given to `calibrate`); ``expected_fpr`` and ``fpr_bound`` (at 95 %
        confidence) of the threshold, ``expected_uncertain`` and ``uncertain_bound`` of the lower end of the reject
        band; None where normal images did not set it. After a calibration with labels also ``n_abnormal``,
        ``target_sensitivity``, ``expected_sensitivity`` and ``sensitivity_bound``, and ``operating_points``: what
        false-positive rate buys what sensitivity (`operating.operating_points`). ``volumes`` holds the same of a
        calibration on volumes; None before.
        """
        self._calibrated("threshold")
        own, volumes = self._calibration, self._calibration["volumes"]
        return {**with_points(own), "volumes": None if volumes is None else with_points(volumes)}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        backbone: str | Path | BackboneSpec | None = None,
        fetch: str = "always",
        device: str = "auto",
        progress: bool = False,
    ) -> Self:
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
            _, spec, target, _ = detector._checked()
            spec = resolve(spec, fetch != "never")
            scorer = read_mediclip(folder, load_backbone(spec, target))
            detector._take(spec, target, scorer, uncalibrated(0.0, "none", 0), provenance([]))
            return detector
        if not folder.is_dir():
            if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
                raise PersistenceError(f"Got {str(source)!r}; wanted an existing folder or 'owner/name' on the Hub.")
            folder = download(str(source), revision, token, local_files_only)
        stored = read_folder(folder)
        where = str(folder / CONFIG)
        spec = stored_spec(stored.config["backbone"], folder, get_spec(backbone) if backbone is not None else None)
        if spec.folder is None and (cache_folder(spec) / SPEC).is_file():
            spec = resolve(spec)
        if spec.folder is not None:
            check_files(stored.config["backbone"], spec.folder, where)
        recipe, shapes, parameters = unpack(stored.config, where)
        name = spec.name if spec.name in BACKBONES else spec
        detector = cls(name, fetch=fetch, device=device, progress=progress, **parameters)
        try:
            scorer = Scorer.from_tensors(recipe, shapes, stored.tensors)
        except ValueError as error:
            raise PersistenceError(f"{folder / MODEL} does not fit its configuration: {error}") from error
        scorer.sha256 = fingerprint(stored.config, stored.tensors)
        detector._take(spec, resolve_device(device), scorer, stored.calibration, stored.provenance)
        detector._stored_backbone = stored.config["backbone"]
        return detector

    def _take(
        self,
        spec: BackboneSpec,
        device: torch.device,
        scorer: Scorer,
        calibration: dict[str, Any],
        provenance: dict[str, Any],
        history: Sequence[dict[str, float]] = (),
        examples: torch.Tensor | None = None,
    ) -> None:
        """Become a fitted detector, in one step; ``calibration`` and ``provenance`` are what these files hold."""
        fitted = {
            "_spec": spec,
            "_device": device,
            "_scorer": scorer.to(device).eval(),
            "_calibration": calibration,
            "_examples": examples,
            "provenance_": {k: v for k, v in provenance.items() if k != "evaluation"},
            "evaluation_": provenance.get("evaluation"),
            "history_": list(history),
        }
        self.__dict__.update(fitted)

    def _save(
        self, folder: Path, location: str, license_: str | None, modality: str | None, include: bool, sheet: bool
    ) -> Path:
        self._check_fitted()
        self = self._as_it_is()  # another thread may fit or calibrate meanwhile
        if not is_writer():
            return folder
        said = {"license": license_, "modality": modality}
        said = {name: self.provenance_.get(name) if text is None else text for name, text in said.items()}
        check_said(said)
        spec = self._backbone.spec
        config = pack(self.get_params(deep=False), self._scorer.recipe, self._scorer.model.shapes, spec)
        stored = Stored(
            config,
            self._scorer.to_tensors(),
            self._calibration,
            {**self.provenance_, **said, "evaluation": self.evaluation_},
        )
        files = {p.name: p for p in {*spec.files, self._backbone.folder / STATISTICS}} if include else None
        picture = self._anomaly_sheet() if sheet else None
        write_folder(folder, stored, model_card(stored, location, sheet), files, picture)
        return folder

    @property
    def fingerprint_(self) -> str:
        """SHA-256 over all that the scores depend on; the same after saving and reading back."""
        if not self._scorer.sha256:
            config = pack(
                self.get_params(deep=False), self._scorer.recipe, self._scorer.model.shapes, self._backbone.spec
            )
            self._scorer.sha256 = fingerprint(config, self._scorer.to_tensors())
        return self._scorer.sha256

    def _anomaly_sheet(self) -> bytes:
        """A PNG of anomalies drawn into views of the images fitted on, with heatmaps and scores."""
        if self._examples is None:
            raise PersistenceError("Got anomaly_sheet=True for a detector without its images; ask for it after fit.")
        generator = seeded(0)
        views = normal_views(self._examples, len(self._examples) + SHEET, generator)[len(self._examples) :]
        images, masks = add_lesions(views[:SHEET], generator, self._scorer.recipe.max_area)
        found = list(self._score([MedicalImage(image, "") for image in images]))
        pictures = [
            overlay(
                (image.permute(1, 2, 0) * 255).round().byte().numpy(), heatmap, self.threshold_, mask.bool().numpy()
            )
            for image, mask, (_, heatmap, _) in zip(images, masks, found, strict=True)
        ]
        file = BytesIO()
        contact_sheet(pictures, [f"drawn anomaly, score {score:.2f}" for score, _, _ in found]).save(file, "PNG")
        return file.getvalue()

    def _calibrated(self, name: str) -> Any:
        """One entry of the calibration; before a fit it is missing like any other fitted attribute."""
        if "_calibration" not in vars(self):
            raise AttributeError(f"{name} is known after fit; this detector is not fitted.")
        return self._calibration[name]

    def _check_fitted(self) -> None:
        if not hasattr(self, "_scorer"):
            raise NotFittedError("This AnomalyDetector is not fitted. Call fit(normal_images) first.")

    @property
    def _backbone(self) -> Backbone:
        if self._spec.folder is None:  # read back where its networks were not at hand
            spec = resolve(self._spec, self.fetch == "always")
            assert spec.folder is not None
            check_files(self._stored_backbone, spec.folder, "This detector")
            self._spec = spec
        return load_backbone(self._spec, self._device)
