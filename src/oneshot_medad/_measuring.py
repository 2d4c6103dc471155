"""A fitted detector's threshold and quality, on images of one's own, and the names that scikit-learn asks for."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import replace
from hashlib import sha256
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad._parameters import Detector
from oneshot_medad._predicting import predict_sources
from oneshot_medad.calibration import BY_HAND, lowest_similarity
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.evaluation import summary
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.expand import Sources, expand, name_of
from oneshot_medad.images.files import is_part_of_volume, volumes_of
from oneshot_medad.images.sanity import Fingerprints, Oddities, copies, listed
from oneshot_medad.operating import check_wishes, choose
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.studies.limits import check_unit
from oneshot_medad.verdicts import CANNOT_JUDGE

if TYPE_CHECKING:
    from oneshot_medad.detector import AnomalyDetector


def decision_function(self: AnomalyDetector, images: Any) -> np.ndarray:
    """(N,) scores alone, higher for more abnormal, for scikit-learn's ``scoring="roc_auc"``.

    scikit-learn's own outlier detectors have the opposite sign here; PyOD's have this one, and labels of 1 for
    abnormal need it. The name with scikit-learn's sign is `score_samples`.
    """
    return self.predict(images).scores


def score_samples(self: AnomalyDetector, images: Any) -> np.ndarray:
    """(N,) scores with scikit-learn's sign: **higher for more normal**, the negative of `decision_function`."""
    return -self.decision_function(images)


def predict_labels(self: AnomalyDetector, images: Any) -> np.ndarray:
    """(N,) int: 1 for a flagged image, 0 for any other, also for one that cannot be judged."""
    return np.asarray(self.predict(images))


def fit_predict(self: AnomalyDetector, images: Any, y: Any = None) -> Predictions:
    """``fit(images, y).predict(images)``, as in scikit-learn.

    The images fitted on are among those scored, lower than further normal images would be.
    """
    return self.fit(images, y).predict(images)


def evaluate(
    self: AnomalyDetector,
    images: Any,
    labels: Sequence[int],
    masks: Sequence[np.ndarray] | None = None,
    groups: Sequence[Hashable] | None = None,
    *,
    recursive: bool = False,
) -> dict[str, Any]:
    """Measure this detector on labelled images and keep the result for its card.

    Parameters
    ----------
    images
        As for `predict`; none that the detector was fitted on or tuned to. Those fitted on are refused, those
        calibrated on and copies of one image warned about.
    labels
        0 for normal, 1 for abnormal, one per image; both must occur.
    masks
        (H, W) per image on its own grid, true on the lesion; all false for normal images.
    groups
        For example the patient of each image; intervals are drawn over groups.
    recursive
        Search folders to any depth.

    Returns
    -------
    Image AUROC and average precision, sensitivity and specificity at the threshold, pixel AUROC and AUPRO with
    masks, 95 % intervals, and counts: `evaluation.summary` says how.

    Raises
    ------
    ImageError
        Images that the detector was fitted on, or blank slices.
    ValueError
        Labels, masks or groups that do not fit.
    """
    fitted = self._ready()
    sources = expand(images, recursive=recursive)
    predictions, seen = _predict_new(fitted, sources, self._options(), stacklevel=3)
    tuned = set(fitted.calibration["images"])
    known = [name for name, found in zip(seen.names, seen.hashes, strict=True) if found in tuned]
    if known:
        warnings.warn(
            f"Got {listed(known)}, which the threshold was calibrated on; wanted other images. Sensitivity and "
            "specificity on them say little.",
            stacklevel=2,
        )
    if doubled := seen.copies():
        warnings.warn(f"Got {doubled}; wanted each image once. The intervals are too narrow.", stacklevel=2)
    if np.isnan(predictions.scores).any():
        blank = [name for name, reason in zip(predictions.names, predictions.reasons, strict=True) if reason]
        raise ImageError(f"Got {len(blank)} blank slices ({blank[0]} …); wanted content. Leave them and labels out.")
    found = summary(predictions.scores, predictions.flags, labels, predictions.heatmaps, masks, groups)
    self._fitted = replace(self._fitted, evaluation=found)
    return found


def calibrate(
    self: Detector,
    normals: Any,
    labels: Sequence[int] | None = None,
    *,
    target_fpr: float = 0.05,
    uncertain_fpr: float | None = None,
    target_sensitivity: float | None = None,
    by: str = "image",
    accept_unlike: bool = False,
    recursive: bool = False,
) -> Detector:
    """Set the threshold on images or volumes of one's own, without fitting again.

    Parameters
    ----------
    normals
        Normal images that the detector was not fitted on, each once; with ``labels``, normal and abnormal ones.
        Slices of volumes do not count where they are blank or lie outside the references.
    labels
        0 for normal, 1 for abnormal: the threshold then has the highest sum of sensitivity and specificity on them,
        or the sensitivity that is asked for, and ``target_fpr`` is not used. One per image, or per volume.
    target_fpr
        Share of further normal images that may be flagged (`calibration.normal_threshold`), and share of images of
        this kind that may be called too unlike them to judge (`calibration.lowest_similarity`); without ``labels``
        the latter never becomes stricter than the backbone's own limit, or lesions would fall below it.
    uncertain_fpr
        Above ``target_fpr``: images that only a threshold for this larger share would flag are called uncertain.
        None calls none so.
    target_sensitivity
        Share of further abnormal images that must be flagged (`operating.sensitive_threshold`), with ``labels``;
        ``calibration_["operating_points"]`` says what it costs.
    by
        ``"image"``, or ``"volume"``: every NIfTI volume and DICOM series counts as one and gets a threshold of its
        own; that for images and slices stays as it is.
    accept_unlike
        Take images that the detector calls "cannot judge" all the same: they are of the right kind, and its limit
        is lowered to them. False refuses them, because they would not be flagged either.
    recursive
        Search folders to any depth.

    Returns
    -------
    The detector itself. Predictions then carry percentiles and p-values against the normal images given here, and
    `calibration_` says what the threshold promises.

    Raises
    ------
    ConfigError
        A rate that the images do not support, or labels that do not fit.
    ImageError
        Images that the detector was fitted on, copies of one image, or images that it cannot judge. Nothing has
        changed then, as after any error.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector, datasets
    >>> sample = datasets.load_sample(n_normal=5, n_abnormal=1)
    >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
    >>> predictions = detector.calibrate(sample.images[:4], target_fpr=0.25).predict(sample.images[4:])
    >>> predictions.p_values.shape
    (2,)
    """
    check_unit(by)
    wishes: dict[str, Any] = {
        "target_fpr": target_fpr,
        "uncertain_fpr": uncertain_fpr,
        "target_sensitivity": target_sensitivity,
    }
    check_wishes(labels is not None, **wishes)
    fitted, sources = self._ready(), expand(normals, recursive=recursive)
    if by == "volume":
        volumes = _on_volumes(fitted, sources, labels, wishes, self._options())
        self._fitted = self._fitted.recalibrated(volumes=volumes)
    else:
        found = _on_images(fitted, sources, labels, wishes, accept_unlike, self._options())
        self._fitted = self._fitted.recalibrated(**found)
    return self


def _on_images(
    fitted: FittedDetector,
    sources: Sources,
    labels: Sequence[int] | None,
    wishes: dict[str, Any],
    accept_unlike: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What changes in the calibration of images; see `AnomalyDetector.calibrate`.

    Parameters
    ----------
    fitted
        The detector as it is.
    sources, labels, accept_unlike
        As for `AnomalyDetector.calibrate`.
    wishes
        Its ``target_fpr``, ``uncertain_fpr`` and ``target_sensitivity``.
    options
        Of `predict_sources`.
    """
    predictions, seen = _predict_new(fitted, sources, options)
    if doubled := seen.copies():
        raise ImageError(f"Got {doubled}; wanted each image once. Leave them out: copies promise nothing.")
    inside = np.array([not predictions.outside(i) for i in range(len(predictions))], dtype=bool)
    if not accept_unlike:
        said = (seen.names, seen.hashes, predictions.verdicts)
        _check_kind(fitted, *([values[i] for i in np.flatnonzero(inside)] for values in said))
    read = inside & ~np.isnan(predictions.scores)
    if labels is not None and len(labels) == len(read):
        labels = np.asarray(labels)[read].tolist()
    scores, similarities = predictions.scores[read], np.asarray(predictions.similarities)[read]
    found = choose(scores, labels, **wishes)
    found["images"] = [image for image in seen.hashes if image]
    if fitted.scorer.knows_kind:
        least = fitted.networks.load(options["fetch"]).least_similarity
        limits = [lowest_similarity(similarities, wishes["target_fpr"])]
        if labels is None and least is not None:  # lesions make images less alike too
            limits.append(least)
        found["least_similarity"] = min(limits)
    return found


def _on_volumes(
    fitted: FittedDetector,
    sources: Sources,
    labels: Sequence[int] | None,
    wishes: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The calibration of volumes; parameters as for `_on_images`."""
    alone = [name_of(source, i) for i, source in enumerate(sources) if not is_part_of_volume(source)]
    if alone:
        raise ImageError(f"Got {listed(alone)}, no slice of a volume; wanted volumes alone. Give their files.")
    volumes = volumes_of(sources)
    scores, hashes = [], []
    for (place, _), slices in volumes.items():  # one at a time: heatmaps of many volumes fill the memory
        predictions, seen = _predict_new(fitted, Sources(slices), options, near=False)  # slices lie close to each other
        hashes.append(sha256("".join(seen.hashes).encode()).hexdigest())
        (volume,) = predictions.volumes()
        if np.isnan(volume.score):
            raise ImageError(f"Got {place}, which has no slice that can be judged; wanted others. Leave it out.")
        scores.append(volume.score)
    if doubled := copies([str(place) for place, _ in volumes], hashes):
        raise ImageError(f"Got {doubled}; wanted each volume once. Leave them out: copies promise nothing.")
    found = choose(np.array(scores), labels, **wishes)
    return {**found, "images": hashes}


def _predict_new(
    fitted: FittedDetector, sources: Sources, options: dict[str, Any], near: bool = True, stacklevel: int = 4
) -> tuple[Predictions, Fingerprints]:
    """Predictions of images that this detector was not fitted on, and what tells copies among them.

    Raises
    ------
    ImageError
        Images that the detector was fitted on. Near copies, if they are looked for, saturated and faint images are
        warned about.
    """
    seen, odd = Fingerprints([name_of(source, i) for i, source in enumerate(sources)]), Oddities()
    predictions = predict_sources(fitted, sources, seen.see, odd.see, **options)
    odd.warn(stacklevel)
    seen.check_new([image["sha256"] for image in fitted.provenance["support"]])
    if near and (alike := seen.near_copies()):
        warnings.warn(f"Got {alike}; wanted each image once. Copies count for nothing.", stacklevel=stacklevel)
    return predictions, seen


def _check_kind(fitted: FittedDetector, names: Sequence[str], hashes: Sequence[str], verdicts: Sequence[str]) -> None:
    """Raise an `ImageError` if any image cannot be judged."""
    before = set(fitted.calibration["images"])  # they set the limit, and a share of them lies below it
    found = zip(names, hashes, verdicts, strict=True)
    unlike = [name for name, image, verdict in found if verdict == CANNOT_JUDGE and image not in before]
    if unlike:
        raise ImageError(
            f"Got {listed(unlike)}, which this detector cannot judge; wanted images like those it was fitted on. "
            "Leave them out, or pass accept_unlike=True if they are of the right kind."
        )


def set_threshold(self: Detector, threshold: float, by: str = "image") -> Detector:
    """Flag what scores above ``threshold``, on the raw scale of `Predictions.scores`; none is uncertain.

    Parameters
    ----------
    threshold
        The score.
    by
        ``"image"`` or ``"volume"``, as for `calibrate`.
    """
    fitted = self._ready()
    check_unit(by)
    if not isinstance(threshold, Real) or not np.isfinite(threshold):
        raise ConfigError(f"Got threshold={threshold!r}; wanted a finite number.")
    if by == "volume":
        before = fitted.calibration["volumes"] or {"normal_scores": [], "abnormal_scores": [], "images": []}
        found: dict[str, Any] = {"volumes": {**before, **BY_HAND, "threshold": float(threshold)}}
    else:
        found = {**BY_HAND, "threshold": float(threshold)}
    self._fitted = self._fitted.recalibrated(**found)
    return self
