"""Looking into a detector: what it sees, why it scored, and what it does in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from oneshot_medad._parameters import checked
from oneshot_medad._predicting import predict_sources, read_one
from oneshot_medad.calibration import finest_rate, promises
from oneshot_medad.errors import ImageError
from oneshot_medad.explain import Explanation, coloured
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.expand import Sources
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import MedicalImage, expand
from oneshot_medad.images.sanity import Oddities, listed
from oneshot_medad.nn.redraw import expected, redrawn
from oneshot_medad.results.predictions import Predictions

if TYPE_CHECKING:
    from oneshot_medad.detector import AnomalyDetector

_RULES = {
    "none": "there is none",
    "expected": "where nine of ten further normal images are expected below; a starting point",
    "normals": "from {n} normal images given to calibrate",
    "sensitivity": "from labelled images given to calibrate, for a share of the abnormal ones; {n} of them were normal",
    "labels": "from labelled images given to calibrate, {n} of them normal",
    "manual": "set by hand",
}


def preview(self: AnomalyDetector, image: Any) -> np.ndarray:
    """What the networks see of one image, before or after a fit.

    Parameters
    ----------
    image
        One image of any kind that `predict` takes.

    Returns
    -------
    (S, S, 3) uint8: the square field after windowing, scaling and padding.

    Raises
    ------
    ImageError, ImageFileError, ImageTypeError
        An input that cannot be used, or that holds several images.

    Examples
    --------
    >>> import numpy as np
    >>> from oneshot_medad import AnomalyDetector
    >>> AnomalyDetector().preview(np.eye(20, 30)).shape
    (256, 256, 3)
    """
    spec = self._fitted.networks.spec if hasattr(self, "_fitted") else checked(self)[1]
    read = read_one(_one(image), 0, self.intensity_range)
    field = to_field(read.pixels, spec.image_px, read.aspect)
    return (field.permute(1, 2, 0) * 255).round().byte().numpy()


def explain(self: AnomalyDetector, image: Any) -> Explanation:
    """Why one image got its score: heatmap, regions, and the image as the references would have it.

    Parameters
    ----------
    image
        One image of any kind that `predict` takes.

    Raises
    ------
    NotFittedError
        `fit` has not been called.
    ImageError, ImageFileError, ImageTypeError
        An input that cannot be used, or that holds several images.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector, datasets
    >>> sample = datasets.load_sample(n_normal=1, n_abnormal=1)
    >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(sample.support)
    >>> explanation = detector.explain(sample.images[1])
    >>> explanation.normal.shape == (*sample.images[1].shape, 3)
    True
    """
    fitted, window, fetch = self._ready(), self.intensity_range, self.fetch == "always"
    source = _one(image)
    odd = Oddities()
    predictions = predict_sources(fitted, Sources([source]), odd.see, intensity_range=window, fetch=fetch)
    odd.warn(stacklevel=2)
    return _explained(fitted, predictions, read_one(source, 0, window), fetch)


def describe(self: AnomalyDetector) -> str:
    """What this detector does with an image: networks, field, intensities, threshold, and what a score means.

    Raises
    ------
    NotFittedError
        `fit` has not been called.
    """
    return _described(self._ready(), self.recipe, self.intensity_range)


def _one(image: Any) -> Any:
    """The only source that ``image`` stands for."""
    sources = expand(image)
    if len(sources) != 1:
        raise ImageError(f"Got {len(sources)} images; wanted one. Choose it first, from volumes with slices().")
    return sources[0]


def _explained(fitted: FittedDetector, predictions: Predictions, read: MedicalImage, fetch: bool) -> Explanation:
    hot = coloured(predictions.pictured(0), predictions.threshold)
    normal = _redrawn(fitted, read, hot, fetch) if hot.any() else read.pixels
    return Explanation(
        predictions.image(0),
        predictions.heatmaps[0],
        (normal.permute(1, 2, 0) * 255).round().byte().numpy(),
        (read.pixels - normal).abs().mean(dim=0).numpy(),
        float(predictions.scores[0]),
        predictions.threshold,
        predictions.verdict(0),
        predictions.regions(0),
    )


@torch.no_grad()
def _redrawn(fitted: FittedDetector, read: MedicalImage, hot: np.ndarray, fetch: bool) -> torch.Tensor:
    """(3, H, W): the image with its (H, W) hot places redrawn."""
    backbone = fitted.networks.load(fetch)
    device, side = backbone.device, backbone.spec.image_px
    normal: torch.Tensor | None = None
    field = to_field(read.pixels, side, read.aspect).to(device)
    features = backbone.vision(torch.stack([field, field.flip(-1)]))
    references = fitted.scorer.references()
    if references is not None:
        normal = expected(features, references.near(math.nan if read.position is None else read.position))
    cells = features[0].shape[-1]
    places = to_field(torch.from_numpy(hot).float()[None], side, read.aspect).to(device)
    places = F.adaptive_max_pool2d(places, cells)[0] > 0.5
    field = to_field(read.pixels, cells * max(2, 2 * round(side / cells / 2)), read.aspect).to(device)
    change = (redrawn(field, features[0], normal, places) - field).cpu()
    return (read.pixels + torch.stack([from_field(c, side, read.size, read.aspect) for c in change])).clamp(0, 1)


HASHES = 20
"""Images whose hashes `describe` lists."""


def _described(fitted: FittedDetector, recipe: Any, window: tuple[float, float] | None) -> str:
    """What a fitted detector does with an image, line by line."""
    spec, known, found = fitted.networks.spec, fitted.calibration_scores, fitted.stated()
    if window is None:
        intensities = (
            "8-bit and 16-bit pixels span their whole range, floats lie in [0, 1], DICOM files take their first window "
            "and NIfTI volumes their cal_min and cal_max"
        )
    else:
        intensities = (
            f"{window[0]:g} is black and {window[1]:g} white; beyond that, DICOM and NIfTI values are cut, all others "
            "refused"
        )
    recipe = recipe if isinstance(recipe, str) else "custom"
    lines = {
        "Networks": f"backbone {spec.name!r}, recipe {recipe!r}",
        "Field": f"{spec.image_px} x {spec.image_px} pixels; the longer edge of an image is scaled to it, in true "
        "proportions where the file says how wide and high a pixel is, the rest black",
        "Intensities": intensities,
        "Fitted on": f"{fitted.n_support} normal image{'s' * (fitted.n_support != 1)}",
        "Threshold": f"{fitted.threshold:.3f}, " + _RULES[found["rule"]].format(n=found["n_normal"]),
        "Score": "higher is more abnormal; 0 is the median augmented view of the normal images, 1 what nine of ten "
        "further ones are expected to stay below, values may lie outside; it is no probability of disease",
        "P-values": "none before calibrate has seen normal images" if known is None else finest_rate(len(known)),
    }
    if found["uncertain_from"] is not None:
        lines["Uncertain"] = f"from {found['uncertain_from']:.3f} to the threshold"
    if promises(found):
        lines["False positives"] = " ".join(promises(found)).removesuffix(".")
    if found["images"]:
        hashes = listed([image[:12] for image in found["images"]], HASHES)
        lines["Calibrated on"] = f"{len(found['images'])} images, whose pixels have the SHA-256 {hashes}"
    if (volumes := found["volumes"]) is not None:
        rule = _RULES[volumes["rule"]].format(n=volumes["n_normal"]).replace("images", "volumes")
        said = " ".join(promises(volumes, "volume")).removesuffix(".")
        lines["Volumes"] = f"threshold {volumes['threshold']:.3f}, {rule}" + (f". {said}" if said else "")
    return "\n".join(f"{name}: {text}." for name, text in lines.items())
