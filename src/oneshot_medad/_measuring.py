"""A fitted detector's threshold and quality, on images of one's own, and the names that scikit-learn asks for."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import OutlierMixin

from oneshot_medad._inspection import Inspectable
from oneshot_medad.calibration import BY_HAND, labelled_threshold, lowest_similarity, normal_threshold
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.evaluation import summary
from oneshot_medad.images.expand import Sources, expand, name_of
from oneshot_medad.images.sanity import Fingerprints, Oddities, Watcher, listed
from oneshot_medad.results.verdicts import CANNOT_JUDGE

if TYPE_CHECKING:
    from typing_extensions import Self

    from oneshot_medad.predictions import Predictions


class Measurable(OutlierMixin, Inspectable):
    """The part of `AnomalyDetector` that scores further images to set its threshold or to say how good it is."""

    if TYPE_CHECKING:

        def fit(self, images: Any, y: Any = None) -> Self: ...
        def _predict(self, sources: Sources, on_error: str, *watchers: Watcher) -> Predictions: ...

    def decision_function(self, images: Any) -> np.ndarray:
        """(N,) scores alone, higher for more abnormal, for scikit-learn's ``scoring="roc_auc"``.

        scikit-learn's own outlier detectors have the opposite sign here; PyOD's have this one, and labels of 1 for
        abnormal need it. The name with scikit-learn's sign is `score_samples`.
        """
        return self.predict(images).scores

    def score_samples(self, images: Any) -> np.ndarray:
        """(N,) scores with scikit-learn's sign: **higher for more normal**, the negative of `decision_function`."""
        return -self.decision_function(images)

    def predict_labels(self, images: Any) -> np.ndarray:
        """(N,) int: 1 for a flagged image, 0 for any other, also for one that cannot be judged."""
        return np.asarray(self.predict(images))

    def fit_predict(self, images: Any, y: Any = None) -> Predictions:
        """``fit(images, y).predict(images)``, as in scikit-learn.

        The images fitted on are among those scored, lower than further normal images would be.
        """
        return self.fit(images, y).predict(images)

    def evaluate(
        self,
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
        self._check_fitted()
        sources = expand(images, recursive=recursive)
        predictions, seen = self._predict_new(sources)
        tuned = set(self._calibration["images"])
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
            raise ImageError(
                f"Got {len(blank)} blank slices ({blank[0]} …); wanted content. Leave them and labels out."
            )
        found = summary(predictions.scores, predictions.flags, labels, predictions.heatmaps, masks, groups)
        self.evaluation_ = found
        return found

    def calibrate(
        self,
        normals: Any,
        labels: Sequence[int] | None = None,
        *,
        target_fpr: float = 0.05,
        uncertain_fpr: float | None = None,
        accept_unlike: bool = False,
        recursive: bool = False,
    ) -> Self:
        """Set the threshold on images of one's own, without fitting again.

        Parameters
        ----------
        normals
            Normal images that the detector was not fitted on, each once; with ``labels``, normal and abnormal ones.
            Blank slices of volumes do not count.
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
        if uncertain_fpr is not None and (labels is not None or not target_fpr < uncertain_fpr):
            raise ConfigError(
                f"Got uncertain_fpr={uncertain_fpr!r}; wanted a rate above target_fpr={target_fpr:g}, without labels."
            )
        self._check_fitted()
        predictions, seen = self._predict_new(expand(normals, recursive=recursive))
        if doubled := seen.copies():
            raise ImageError(f"Got {doubled}; wanted each image once. Leave them out: copies promise nothing.")
        if not accept_unlike:
            self._check_kind(seen.names, seen.hashes, predictions.verdicts)
        read = ~np.isnan(predictions.scores)
        if labels is not None and len(labels) == len(read):
            labels = np.asarray(labels)[read].tolist()
        scores, similarities = predictions.scores[read], np.asarray(predictions.similarities)[read]
        found: dict[str, Any] = {**BY_HAND, "images": [image for image in seen.hashes if image]}
        if labels is None:
            found |= {"rule": "normals", "threshold": normal_threshold(scores, target_fpr)}
            found["target_fpr"] = float(target_fpr)
            if uncertain_fpr is not None:
                found["uncertain_from"] = normal_threshold(scores, uncertain_fpr)
                found["uncertain_fpr"] = float(uncertain_fpr)
        else:
            found |= {"rule": "labels", "threshold": labelled_threshold(scores, labels)}
            scores = scores[np.asarray(labels) == 0]
        if self._scorer.knows_kind:
            limits = [lowest_similarity(similarities, target_fpr)]
            if labels is None and self._backbone.least_similarity is not None:  # lesions make images less alike too
                limits.append(self._backbone.least_similarity)
            found["least_similarity"] = min(limits)
        return self._recalibrated(**found, normal_scores=np.sort(scores).tolist())

    def _predict_new(self, sources: Sources) -> tuple[Predictions, Fingerprints]:
        """Predictions of images that this detector was not fitted on, and what tells copies among them.

        Raises
        ------
        ImageError
            Images that the detector was fitted on. Near copies, saturated and faint images are warned about.
        """
        seen, odd = Fingerprints([name_of(source, i) for i, source in enumerate(sources)]), Oddities()
        predictions = self._predict(sources, "raise", seen.see, odd.see)
        odd.warn(stacklevel=3)
        seen.check_new([image["sha256"] for image in self.provenance_["support"]])
        if alike := seen.near_copies():
            warnings.warn(f"Got {alike}; wanted each image once. Copies count for nothing.", stacklevel=3)
        return predictions, seen

    def _check_kind(self, names: Sequence[str], hashes: Sequence[str], verdicts: Sequence[str]) -> None:
        """Raise an `ImageError` if any image cannot be judged."""
        before = set(self._calibration["images"])  # they set the limit, and a share of them lies below it
        found = zip(names, hashes, verdicts, strict=True)
        unlike = [name for name, image, verdict in found if verdict == CANNOT_JUDGE and image not in before]
        if unlike:
            raise ImageError(
                f"Got {listed(unlike)}, which this detector cannot judge; wanted images like those it was fitted on. "
                "Leave them out, or pass accept_unlike=True if they are of the right kind."
            )

    def set_threshold(self, threshold: float) -> Self:
        """Flag images that score above ``threshold``, on the raw scale of `Predictions.scores`; none is uncertain."""
        self._check_fitted()
        if not isinstance(threshold, Real) or not np.isfinite(threshold):
            raise ConfigError(f"Got threshold={threshold!r}; wanted a finite number.")
        return self._recalibrated(**BY_HAND, threshold=float(threshold))

    def _recalibrated(self, **found: Any) -> Self:
        """Take another threshold, and forget what was measured at the old one."""
        self._calibration = {**self._calibration, **found}
        measured = self.evaluation_ or {}
        kept = {k: v for k, v in measured.items() if not k.startswith(("sensitivity", "specificity"))}
        self.evaluation_ = kept or None
        return self
