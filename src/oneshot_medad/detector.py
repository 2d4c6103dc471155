"""`AnomalyDetector`: fit on normal images, predict what is abnormal and where."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from oneshot_medad._measuring import Measurable
from oneshot_medad._runtime import process_count, resolve_device, seeded
from oneshot_medad.backbones import load_backbone
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import BackboneSpec, get_spec
from oneshot_medad.calibration import expected_threshold, uncalibrated
from oneshot_medad.config import Recipe
from oneshot_medad.errors import BlankImageError, ConfigError, ImageError
from oneshot_medad.images.expand import Sources
from oneshot_medad.images.files import Slice, is_part_of_volume
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import BLANK, MedicalImage, expand, name_of
from oneshot_medad.images.sanity import Oddities, Watcher, copies, faint, saturated
from oneshot_medad.model_selection import normal_rows
from oneshot_medad.persistence.describe import provenance, stamp
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.scoring import fit_scorer
from oneshot_medad.studies.limits import Limits
from oneshot_medad.training.cache import ENCODE_BATCH, make_views


class AnomalyDetector(Measurable):
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
            list. A NIfTI volume or DICOM series counts as its slices, without blank ones; choose some as in
            ``"t1.nii.gz[axial 40:80]"``, or with `oneshot_medad.slices`.
        y
            0 for normal, 1 for abnormal, one per image: only the normal ones are fitted on, so that a cross-validation
            of scikit-learn never fits on abnormal images, however it divides them. None takes all for normal.
        recursive
            Search folders to any depth.

        Returns
        -------
        The detector itself. If anything fails it is left as it was before.

        Raises
        ------
        ConfigError
            A parameter that cannot be used, or labels that do not fit.
        ImageError, ImageFileError, ImageTypeError
            An input that cannot be used, before any weight is loaded.
        WeightsError, HubError
            Frozen networks that are missing, damaged or cannot be fetched.
        """
        recipe, spec, device, seed = self._checked()
        sources = expand(images, recursive=recursive)
        support = self._with_content(sources, normal_rows(y, len(sources)))
        made = provenance(support)
        for said in filter(None, [faint(image) or saturated(image) for image in support]):
            warnings.warn(said, stacklevel=2)
        doubled = copies([image.name for image in support], [image["sha256"] for image in made["support"]])
        if doubled:
            warnings.warn(f"Got {doubled}; wanted different images. They add nothing but their number.", stacklevel=2)
        fields = torch.stack([to_field(image.pixels, spec.image_px, image.aspect) for image in support])
        spec = resolve(spec, self.fetch != "never")
        backbone = load_backbone(spec, device)
        generator = seeded(seed)
        views = make_views(backbone, fields, recipe, generator, _positions(support))
        fitted = fit_scorer(recipe, backbone, views, generator, self.init, self.progress)
        calibration = uncalibrated(
            expected_threshold(fitted.normal), "expected", len(support), backbone.least_similarity
        )
        self._take(spec, device, fitted.scorer, calibration, made, fitted.history, fields[:4])
        return self

    def _with_content(self, sources: list[Any], rows: Iterable[int]) -> list[MedicalImage]:
        """The images of some sources without the blank slices of volumes, as there are at both ends of most."""
        found, blank = [], None
        for i in rows:
            try:
                found.append(self._read_one(sources[i], i))
            except BlankImageError as error:
                if not is_part_of_volume(sources[i]):
                    raise
                blank = blank or error
        if blank is not None and not found:
            raise blank
        return found

    def predict(self, images: Any, *, on_error: str = "raise", recursive: bool = False) -> Predictions:
        """Score images and locate what is abnormal in them.

        Parameters
        ----------
        images
            As for `fit`; a NIfTI volume or DICOM series gives one prediction a slice, in order of their position.
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
        odd = Oddities()
        found = self._predict(expand(images, recursive=recursive), on_error, odd.see)
        odd.warn(stacklevel=2)
        return found

    def _predict(self, sources: Sources, on_error: str, *watchers: Watcher) -> Predictions:
        """`predict` of what `expand` found; the watchers see every image that was read."""
        self = self._as_it_is()  # another thread may fit or calibrate meanwhile
        scores, similarities = np.full((2, len(sources)), np.nan)
        heatmaps = [np.zeros((0, 0), np.float32)] * len(sources)
        names, reasons = [""] * len(sources), [""] * len(sources)
        spacings: list[tuple[float, float] | None] = [None] * len(sources)
        positions: list[float | None] = [None] * len(sources)
        # without a bar no tqdm either, which starts a thread
        with tqdm(total=len(sources), desc="predict") if self.progress else nullcontext() as bar:
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
                        names[i], spacings[i], positions[i] = chunk[i].name, chunk[i].spacing, chunk[i].position
                        for watcher in watchers:
                            watcher(i, sources[i], chunk[i])
                images = list(chunk.values())
                if len(sources) > ENCODE_BATCH:  # batches of one size: the same bits whatever else is in the call
                    images += images[-1:] * (ENCODE_BATCH - len(images))
                for i, found in zip(chunk, self._score(images), strict=False):
                    scores[i], heatmaps[i], similarities[i] = found
                if bar is not None:
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
                "calibration": self.calibration_,
                "evaluation": self.evaluation_,
                **stamp(),
            },
            self._calibration["uncertain_from"],
            similarities,
            self._calibration["least_similarity"],
            dict(sources.left_out),
            positions,
            Limits.of(self._calibration),
            self._scorer.span,
        )

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
        features = backbone.vision(fields)
        mirrored = backbone.vision(fields.flip(-1)) if self._scorer.recipe.mirror else None
        places = torch.tensor([math.nan if image.position is None else image.position for image in images])
        scores, maps = self._scorer(z, features, mirrored, places)
        similar = self._scorer.similarity(backbone.kind(features))
        for image, score, heatmap, like in zip(images, scores.tolist(), maps.cpu(), similar.tolist(), strict=True):
            yield score, from_field(heatmap, side, image.size, image.aspect).numpy(), like

    def _checked(self) -> tuple[Recipe, BackboneSpec, torch.device, int | None]:
        """Every parameter in the form that `fit` uses, or a `ConfigError`."""
        spec = get_spec(self.backbone)
        recipe = self._named_recipe()
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


def _positions(images: list[MedicalImage]) -> torch.Tensor | None:
    """(K,) positions in their volumes; None unless all images are slices."""
    known = [image.position for image in images if image.position is not None]
    return torch.tensor(known) if len(known) == len(images) else None
