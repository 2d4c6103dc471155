"""`AnomalyDetector`: fit on normal images, predict what is abnormal and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin

from oneshot_medad import _inspection, _measuring, _parameters, _sharing
from oneshot_medad._parameters import checked
from oneshot_medad._predicting import predict_sources
from oneshot_medad._runtime import resolve_device, seeded
from oneshot_medad._support import positions_of, read_normal, warn_of
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import BackboneSpec
from oneshot_medad.calibration import expected_threshold, uncalibrated
from oneshot_medad.config import Recipe
from oneshot_medad.errors import ConfigError, NotFittedError
from oneshot_medad.fitted import FittedDetector, Networks
from oneshot_medad.images.expand import Sources
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.images.read import expand
from oneshot_medad.images.sanity import Oddities, Watcher
from oneshot_medad.model_selection import normal_rows
from oneshot_medad.persistence.describe import fingerprint_of
from oneshot_medad.provenance import provenance
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.scoring import fit_scorer
from oneshot_medad.training.cache import make_views


class AnomalyDetector(OutlierMixin, BaseEstimator):
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

    _fitted: FittedDetector
    "What the last fit gave, and all that is known since; missing before."

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
        recipe, spec, device, seed = checked(self)
        sources = expand(images, recursive=recursive)
        support = read_normal(sources, normal_rows(y, len(sources)), self.intensity_range)
        made = provenance(support)
        warn_of(support, [image["sha256"] for image in made["support"]], stacklevel=3)
        fields = torch.stack([to_field(image.pixels, spec.image_px, image.aspect) for image in support])
        networks = Networks(resolve(spec, self.fetch != "never"), device)
        backbone, generator = networks.load(), seeded(seed)
        views = make_views(backbone, fields, recipe, generator, positions_of(support))
        found = fit_scorer(recipe, backbone, views, generator, self.init, self.progress)
        threshold = expected_threshold(found.normal)
        calibration = uncalibrated(threshold, "expected", len(support), backbone.least_similarity)
        scorer = found.scorer.to(device).eval()
        self._fitted = FittedDetector(networks, scorer, calibration, made, None, found.history, fields[:4])
        return self

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
        self._ready()
        if on_error not in ("raise", "record"):
            raise ConfigError(f"Got on_error={on_error!r}; wanted 'raise' or 'record'.")
        odd = Oddities()
        found = self._predict(expand(images, recursive=recursive), on_error, odd.see)
        odd.warn(stacklevel=2)
        return found

    def _predict(self, sources: Sources, on_error: str, *watchers: Watcher) -> Predictions:
        """`predict` of what `expand` found; the watchers see every image that was read."""
        return predict_sources(self._ready(), sources, *watchers, on_error=on_error, **self._options())

    # what else it can do, each a function of the module that is named; `_ready` is what they work on
    calibrate = _measuring.calibrate
    decision_function = _measuring.decision_function
    score_samples = _measuring.score_samples
    predict_labels = _measuring.predict_labels
    fit_predict = _measuring.fit_predict
    evaluate = _measuring.evaluate
    set_threshold = _measuring.set_threshold
    preview = _inspection.preview
    explain = _inspection.explain
    describe = _inspection.describe
    save_pretrained = _sharing.save_pretrained
    push_to_hub = _sharing.push_to_hub
    export = _sharing.export
    from_pretrained = classmethod(_sharing.from_pretrained)
    get_params = _parameters.get_params
    set_params = _parameters.set_params

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged."""
        return self._ready().threshold

    @property
    def n_support_(self) -> int:
        """Number of normal images fitted on."""
        return self._ready().n_support

    @property
    def calibration_scores_(self) -> np.ndarray | None:
        """(n,) sorted scores of the normal images given to `calibrate`; None before."""
        return self._ready().calibration_scores

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
        return self._ready().stated()

    @property
    def history_(self) -> list[dict[str, float]]:
        """Losses of every training step."""
        return self._ready().history

    @property
    def evaluation_(self) -> dict[str, Any] | None:
        """What `evaluate` measured last; None if nothing was."""
        return self._ready().evaluation

    @property
    def provenance_(self) -> dict[str, Any]:
        """Time, versions and hashes of the images fitted on."""
        return self._ready().provenance

    @property
    def fingerprint_(self) -> str:
        """SHA-256 over all that the scores depend on; the same after saving and reading back."""
        return fingerprint_of(self._ready(), self.fetch == "always")

    def _ready(self) -> FittedDetector:
        """What the last fit gave; a call takes it once, whatever other threads do meanwhile."""
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("This AnomalyDetector is not fitted. Call fit(normal_images) first.")
        return self._fitted

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments that a prediction needs."""
        return {"intensity_range": self.intensity_range, "fetch": self.fetch == "always", "progress": self.progress}

    def __sklearn_is_fitted__(self) -> bool:
        return "_fitted" in vars(self)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled or copied: tensors on the CPU, and the hashes of the frozen networks in place of these."""
        state = dict(super().__getstate__())
        return {**state, "_fitted": state["_fitted"].portable()} if "_fitted" in state else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the frozen networks where they are here; they must be the same."""
        super().__setstate__(state)
        if "_fitted" in state:
            self._fitted = state["_fitted"].placed(resolve_device(self.device))
