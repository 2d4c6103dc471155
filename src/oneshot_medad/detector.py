"""`AnomalyDetector`: fit on normal images, predict what is abnormal and where."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from oneshot_medad._inspection import Inspectable
from oneshot_medad._runtime import process_count, resolve_device, seeded
from oneshot_medad.backbones import load_backbone
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import BackboneSpec, get_spec
from oneshot_medad.calibration import (
    labelled_threshold,
    lowest_similarity,
    normal_threshold,
    synthetic_threshold,
    uncalibrated,
)
from oneshot_medad.config import Recipe
from oneshot_medad.errors import BlankImageError, ConfigError, ImageError
from oneshot_medad.evaluation import summary
from oneshot_medad.images.files import Slice
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import BLANK, MedicalImage, expand, name_of
from oneshot_medad.persistence.describe import provenance, stamp
from oneshot_medad.predictions import Predictions
from oneshot_medad.scoring import fit_scorer
from oneshot_medad.training.cache import ENCODE_BATCH, make_views

FAINT = 0.1
"""Share of the intensity range; normal images that use less are warned about, as 12 bits in a 16-bit file do."""


class AnomalyDetector(Inspectable):
    """One-shot anomaly detector for medical images: higher scores are more abnormal.

    The constructor stores its arguments; `fit` checks them.

    Parameters
    ----------
    backbone
        Frozen networks to build on: ``"tiny"`` is embedded in the package; ``"medvae-vitl14"`` and
        ``"medvae-vitl14-336"`` are MedVAE and OpenAI's ViT-L/14, taken from the cache or the Hub; a folder made by
        ``oneshot-medad download``; or a `BackboneSpec`.
    recipe
        ``"default"``, ``"reference"`` (the joint training exactly as designed, latent anomalies only), or a
        `Recipe`.
    init
        ``"pretrained"`` starts the trained parts from the backbone's initial values, ``"random"`` from noise.
    n_steps
        Training steps; None takes the recipe's.
    fetch
        When frozen networks that are not here may be fetched from the Hub: ``"always"``, ``"fit_only"`` (a prediction
        never asks the network) or ``"never"``. Without a network set ``HF_HUB_OFFLINE=1`` as well.
    intensity_range
        (low, high) pixel values that mean black and white, for types whose range is not known (int16, floats outside
        [0, 1], NIfTI), or in place of the window of DICOM files, in the unit they are rescaled to.
    random_state
        Seed of every random draw of a fit: two fits with one seed are bit-equal on the same CPU machine.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    progress
        Show progress bars.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector, datasets
    >>> sample = datasets.load_sample()
    >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
    >>> scores, heatmaps = detector.predict(sample.images[:2])
    >>> scores.shape, heatmaps[0].shape == sample.images[0].shape
    ((2,), True)
    """

    def __init__(
        self,
        backbone: str | Path | BackboneSpec = "tiny",
        *,
        recipe: str | Recipe = "default",
        init: str = "pretrained",
        n_steps: int | None = None,
        fetch: str = "always",
        intensity_range: tuple[float, float] | None = None,
        random_state: int | None = None,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.backbone = backbone
        self.recipe = recipe
        self.init = init
        self.n_steps = n_steps
        self.fetch = fetch
        self.intensity_range = intensity_range
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, images: Any, y: Any = None, *, recursive: bool = False) -> AnomalyDetector:
        """Learn what normal looks like from one or a few normal images.

        Parameters
        ----------
        images
            Path, folder, glob pattern, zip archive, PIL image, array (H, W), (H, W, 3) or (N, H, W), torch tensor, or a
            list. Choose slices of a volume with `oneshot_medad.slices`.
        y
            Ignored; present for scikit-learn.
        recursive
            Search folders to any depth.

        Returns
        -------
        The detector itself. If anything fails it is left as it was before.

        Raises
        ------
        ConfigError
            A parameter that cannot be used.
        ImageError, ImageFileError, ImageTypeError
            An input that cannot be used, before any weight is loaded.
        WeightsError, HubError
            Frozen networks that are missing, damaged or cannot be fetched.
        """
        recipe, spec, device, seed = self._checked()
        support = list(self._read(images, recursive))
        for image in support:
            used = float(image.pixels.max() - image.pixels.min())
            if used < FAINT:
                warnings.warn(
                    f"Got {image.name}, which uses {used:.1%} of its intensity range and looks nearly uniform to the "
                    "networks; wanted contrast. Look at preview(image), and pass intensity_range=(low, high).",
                    stacklevel=2,
                )
        fields = torch.stack([to_field(image.pixels, spec.image_px, image.aspect) for image in support])
        spec = resolve(spec, self.fetch != "never")
        backbone = load_backbone(spec, device)
        with seeded(seed) as generator:
            views = make_views(backbone, fields, recipe, generator)
            fitted = fit_scorer(recipe, backbone, views, generator, self.init, self.progress)
        calibration = uncalibrated(
            synthetic_threshold(fitted.normal, fitted.lesion), "synthetic", len(support), backbone.least_similarity
        )
        self._take(spec, device, fitted.scorer, calibration, provenance(support))
        self.history_, self._examples = fitted.history, fields[:4]
        return self

    def predict(self, images: Any, *, on_error: str = "raise", recursive: bool = False) -> Predictions:
        """Score images and locate what is abnormal in them.

        Parameters
        ----------
        images
            As for `fit`; a NIfTI volume gives one prediction a slice.
        on_error
            What an image that cannot be read does: ``"raise"`` ends the call, ``"record"`` gives it the score NaN, an
            empty heatmap and the reason. Slices with one value everywhere, as there are at both ends of most volumes,
            are recorded either way.
        recursive
            Search folders to any depth.

        Returns
        -------
        `Predictions`, which unpacks into ``(scores, heatmaps)``.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ImageError, ImageFileError, ImageTypeError
            An input that cannot be used.
        """
        self._check_fitted()
        if on_error not in ("raise", "record"):
            raise ConfigError(f"Got on_error={on_error!r}; wanted 'raise' or 'record'.")
        sources = expand(images, recursive=recursive)
        bar = tqdm(total=len(sources), desc="predict", disable=not self.progress)
        scores, similarities = np.full((2, len(sources)), np.nan)
        heatmaps = [np.zeros((0, 0), np.float32)] * len(sources)
        names, reasons = [""] * len(sources), [""] * len(sources)
        spacings: list[tuple[float, float] | None] = [None] * len(sources)
        with bar:
            for start in range(0, len(sources), ENCODE_BATCH):
                chunk: dict[int, MedicalImage] = {}
                for i in range(start, min(start + ENCODE_BATCH, len(sources))):
                    try:
                        chunk[i] = self._read_one(sources[i], i)
                    except ImageError as error:
                        blank = isinstance(error, BlankImageError) and isinstance(sources[i], Slice)
                        if on_error == "raise" and not blank:
                            raise
                        names[i], reasons[i] = name_of(sources[i], i), BLANK if blank else str(error)
                    else:
                        names[i], spacings[i] = chunk[i].name, chunk[i].spacing
                for i, found in zip(chunk, self._score(list(chunk.values())), strict=True):
                    scores[i], heatmaps[i], similarities[i] = found
                bar.update(min(ENCODE_BATCH, len(sources) - start))
        return Predictions(
            scores,
            heatmaps,
            self.threshold_,
            names,
            reasons,
            self.calibration_scores_,
            spacings,
            sources,
            self.intensity_range,
            {
                "detector_sha256": self.fingerprint_,
                "backbone": self._spec.name,
                "n_support": self.n_support_,
                "threshold_rule": self._calibration["rule"],
                "evaluation": self.evaluation_,
                **stamp(),
            },
            self._calibration["uncertain_from"],
            similarities,
            self._calibration["least_similarity"],
            dict(sources.left_out),
        )

    def decision_function(self, images: Any) -> np.ndarray:
        """(N,) scores alone, higher for more abnormal, for scikit-learn's ``scoring="roc_auc"``."""
        return self.predict(images).scores

    def evaluate(
        self,
        images: Any,
        labels: Sequence[int],
        masks: Sequence[np.ndarray] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> dict[str, Any]:
        """Measure this detector on labelled images and keep the result for its card.

        Parameters
        ----------
        images
            As for `predict`; none that the detector was fitted on or tuned to.
        labels
            0 for normal, 1 for abnormal, one per image; both must occur.
        masks
            (H, W) per image on its own grid, true on the lesion; all false for normal images.
        groups
            For example the patient of each image; intervals are drawn over groups.

        Returns
        -------
        Image AUROC and average precision, sensitivity and specificity at the threshold, pixel AUROC and AUPRO with
        masks, 95 % bootstrap intervals, and counts.
        """
        predictions = self.predict(images)
        if np.isnan(predictions.scores).any():
            blank = [name for name, reason in zip(predictions.names, predictions.reasons, strict=True) if reason]
            raise ImageError(
                f"Got {len(blank)} blank slices ({blank[0]} …); wanted content. Leave them and labels out."
            )
        self.evaluation_ = summary(predictions.scores, predictions.flags, labels, predictions.heatmaps, masks, groups)
        return self.evaluation_

    def calibrate(
        self,
        normals: Any,
        labels: Sequence[int] | None = None,
        *,
        target_fpr: float = 0.05,
        uncertain_fpr: float | None = None,
    ) -> AnomalyDetector:
        """Set the threshold on images of one's own, without fitting again.

        Parameters
        ----------
        normals
            Normal images that the detector was not fitted on; with ``labels``, normal and abnormal ones. Blank slices
            of volumes do not count.
        labels
            0 for normal, 1 for abnormal: the threshold then has the highest sum of sensitivity and specificity on them,
            and ``target_fpr`` is not used.
        target_fpr
            Share of further normal images that may be flagged (`calibration.normal_threshold`), and share of images of
            this kind that may be called too unlike them to judge (`calibration.lowest_similarity`); without ``labels``
            the latter never becomes stricter than the backbone's own limit, or lesions would fall below it.
        uncertain_fpr
            Above ``target_fpr``: images that only a threshold for this larger share would flag are called uncertain.
            None calls none so.

        Returns
        -------
        The detector itself. Predictions then carry percentiles and p-values against the normal images given here.

        Raises
        ------
        ConfigError
            A rate that the images do not support, or labels that do not fit; nothing has changed then.

        Examples
        --------
        >>> from oneshot_medad import AnomalyDetector, datasets
        >>> sample = datasets.load_sample(n_normal=5, n_abnormal=1)
        >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
        >>> predictions = detector.calibrate(sample.images[:4], target_fpr=0.25).predict(sample.images[4:])
        >>> predictions.p_values.shape
        (2,)
        """
        if uncertain_fpr is not None and (labels is not None or not target_fpr < uncertain_fpr):
            raise ConfigError(
                f"Got uncertain_fpr={uncertain_fpr!r}; wanted a rate above target_fpr={target_fpr:g}, without labels."
            )
        predictions = self.predict(normals)
        read = ~np.isnan(predictions.scores)
        if labels is not None and len(labels) == len(read):
            labels = np.asarray(labels)[read].tolist()
        scores, similarities = predictions.scores[read], np.asarray(predictions.similarities)[read]
        found: dict[str, Any] = {"uncertain_from": None}
        if labels is None:
            found |= {"threshold": normal_threshold(scores, target_fpr), "rule": "normals"}
            if uncertain_fpr is not None:
                found["uncertain_from"] = normal_threshold(scores, uncertain_fpr)
        else:
            found |= {"threshold": labelled_threshold(scores, labels), "rule": "labels"}
            scores = scores[np.asarray(labels) == 0]
        if self._scorer.knows_kind:
            limits = [lowest_similarity(similarities, target_fpr)]
            if labels is None and self._backbone.least_similarity is not None:  # lesions make images less alike too
                limits.append(self._backbone.least_similarity)
            found["least_similarity"] = min(limits)
        return self._recalibrated(**found, normal_scores=np.sort(scores).tolist())

    def set_threshold(self, threshold: float) -> AnomalyDetector:
        """Flag images that score above ``threshold``, on the raw scale of `Predictions.scores`; none is uncertain."""
        self._check_fitted()
        if not isinstance(threshold, Real) or not np.isfinite(threshold):
            raise ConfigError(f"Got threshold={threshold!r}; wanted a finite number.")
        return self._recalibrated(threshold=float(threshold), rule="manual", uncertain_from=None)

    def _recalibrated(self, **found: Any) -> AnomalyDetector:
        """Take another threshold, and forget what was measured at the old one."""
        self._calibration = {**self._calibration, **found}
        measured = self.evaluation_ or {}
        kept = {k: v for k, v in measured.items() if not k.startswith(("sensitivity", "specificity"))}
        self.evaluation_ = kept or None
        return self

    def __sklearn_tags__(self) -> Any:
        """An outlier detector to scikit-learn: ``scoring="roc_auc"`` then reads `decision_function`."""
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"
        return tags

    @torch.no_grad()
    def _score(self, images: list[MedicalImage]) -> Iterator[tuple[float, np.ndarray, float]]:
        """Score, heatmap on its own grid and similarity of each image."""
        if not images:
            return
        backbone = self._backbone
        side = backbone.spec.image_px
        fields = torch.stack([to_field(image.pixels, side, image.aspect) for image in images])
        fields = fields.to(self._device)
        z = backbone.latents.encode(fields) if self._scorer.recipe.reads_latents else None
        features, gists = backbone.vision.with_gist(fields)
        mirrored = backbone.vision(fields.flip(-1)) if self._scorer.recipe.mirror else None
        scores, maps = self._scorer(z, features, mirrored)
        similar = self._scorer.similarity(gists)
        for image, score, heatmap, like in zip(images, scores.tolist(), maps.cpu(), similar.tolist(), strict=True):
            yield score, from_field(heatmap, side, image.size, image.aspect).numpy(), like

    def _checked(self) -> tuple[Recipe, BackboneSpec, torch.device, int | None]:
        """Every parameter in the form that `fit` uses, or a `ConfigError`."""
        spec = get_spec(self.backbone)
        named = spec.recipe if self.recipe == "default" else self.recipe
        recipe = Recipe.named(named) if isinstance(named, str) else named
        if not isinstance(recipe, Recipe):
            raise ConfigError(f"Got recipe of type {type(recipe).__name__}; wanted a name or a Recipe.")
        if self.n_steps is not None:
            if not isinstance(self.n_steps, Integral):
                raise ConfigError(f"Got n_steps={self.n_steps!r}; wanted a whole number or None.")
            recipe = replace(recipe, n_steps=int(self.n_steps))
        for name, known in (("init", ("pretrained", "random")), ("fetch", ("always", "fit_only", "never"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"Got {name}={getattr(self, name)!r}; wanted one of {', '.join(map(repr, known))}.")
        seed = self.random_state
        if seed is not None and (not isinstance(seed, Integral) or seed < 0):
            raise ConfigError(f"Got random_state={seed!r}; wanted a whole number from 0, or None.")
        if seed is None and process_count() > 1:
            raise ConfigError("Got random_state=None in a distributed run; wanted a number, so that all draw the same.")
        window = self.intensity_range
        if window is not None and not (np.shape(window) == (2,) and window[0] < window[1]):
            raise ConfigError(f"Got intensity_range={window!r}; wanted (low, high) with low < high.")
        return recipe, spec, resolve_device(self.device), None if seed is None else int(seed)
