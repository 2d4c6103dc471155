"""How a detector is trained and scored, as frozen values that can be compared, stored and read back strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from oneshot_medad.errors import ConfigError

DEVIATIONS = ("white", "shuffle", "smooth", "shift")
BRANCHES = ("clip", "latent", "distance", "deviation")


@dataclass(frozen=True)
class Recipe:
    """Everything about a fit that is neither an image nor a backbone.

    Parameters
    ----------
    n_reference
        Views of a lone normal image, itself included, that others are compared with; several images stand for
        themselves.
    n_views
        Augmented views of the normal images whose latents and features are computed once and trained on.
    n_lesions
        Views with lesions drawn in pixel space, encoded once as well; 0 trains on latent anomalies alone.
    n_held
        Views of each sort kept from training to fix the scale, the fusion and the threshold.
    deviations
        Weight of each kind of disturbance ε in the masked forward process: ``white`` is Gaussian noise and ``shuffle``
        permutes latent patches (both DeCo-Diff's), ``smooth`` is noise with spatial structure, ``shift`` takes
        latents from another place.
        Empty switches the deviation network off.
    max_area
        Largest share of the field that one disturbance covers.
    severity
        The factor C in z_anom = z_n + C · pred_eta.
    severity_follows_time
        Multiply C by √(1−ᾱ_t), which makes z_anom equal z_noisy for a perfect network at C = 1.
    residual_transfer
        Train the CLIP branch on f(x_n) + P(z_anom) − P(z_n) instead of P(z_anom).
    detach_deviation
        Keep the detection loss from moving the deviation network.
    context
        Adapters see each place next to its normal counterparts, its surroundings and the whole image
        (`ContextAdapters`); False takes MediCLIP's 1×1 adapters.
    n_phrases
        Phrases of each class, drawn anew for every training step, that the text tower reads; 0 reads all. The finished
        detector always takes all.
    logit_scale, learn_logit_scale
        Factor on the similarities before the softmax, and whether it is trained (MediCLIP uses none: 1, fixed).
    dice_on_lesions_only
        Leave samples with an empty mask to the focal loss. Their dice loss is close to 1 unless every cell is close
        to 0, which drowns the lesions in a short training.
    weight_detection, weight_deviation, weight_alignment
        w1, w2 and the weight of P's regression to the real features of the normal views.
    branches
        What enters the score, each with its weight; all are logits or logarithms. ``clip`` reads the vision tower's
        features, ``latent`` the projected latents; ``distance`` is how far features lie from those of the normal
        images, in units of their own spread, with nothing learned (PatchCore, SubspaceAD); ``deviation`` is the size of
        the deviation that the network sees in the latent itself (DeCo-Diff). What the images
        are, beside the pool that the initial values were trained on, changes the weight of ``distance``, between a
        third and the fourfold (`trust_in_distance`).
    mirror
        Score each image together with its mirror image and average the maps of the branches that read the vision
        tower, which then runs twice.
    top_fraction
        Share of the heatmap whose mean is the image score.
    n_steps, batch_size, learning_rate, weight_decay
        Of the joint training.
    """

    n_reference: int = 3
    n_views: int = 24
    n_lesions: int = 64
    n_held: int = 12
    deviations: Mapping[str, float] = field(default_factory=lambda: {"smooth": 1.0, "shift": 1.0, "shuffle": 0.5})
    max_area: float = 0.15
    severity: float = 1.0
    severity_follows_time: bool = True
    residual_transfer: bool = True
    detach_deviation: bool = True
    context: bool = True
    n_phrases: int = 0
    logit_scale: float = 20.0
    learn_logit_scale: bool = True
    dice_on_lesions_only: bool = True
    weight_detection: float = 1.0
    weight_deviation: float = 1.0
    weight_alignment: float = 0.1
    branches: Mapping[str, float] = field(default_factory=lambda: {"clip": 1.0, "distance": 4.0})
    mirror: bool = True
    top_fraction: float = 0.01
    n_steps: int = 10
    batch_size: int = 4
    learning_rate: float = 5e-5
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        for name, known in (("deviations", DEVIATIONS), ("branches", BRANCHES)):
            object.__setattr__(self, name, _weights(name, getattr(self, name), known))
        for f in fields(self):
            if f.type in ("int", "float", "bool"):
                _check_number(f.name, getattr(self, f.name), {"int": int, "float": float, "bool": bool}[f.type])
        for name in ("n_reference", "n_views", "n_held", "n_steps", "batch_size"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "n_lesions",
            "n_phrases",
            "severity",
            "weight_detection",
            "weight_deviation",
            "weight_alignment",
            "weight_decay",
        ):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "logit_scale"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("max_area", "top_fraction"):
            _check(0 < getattr(self, name) <= 1, name, getattr(self, name), "in (0, 1]")
        _check(self.n_phrases <= 10, "n_phrases", self.n_phrases, "at most 10")
        _check(bool(self.branches), "branches", self.branches, f"at least one of {', '.join(BRANCHES)}")
        trains = bool(self.deviations) or self.n_lesions > 0
        _check(
            trains or list(self.branches) == ["distance"],
            "n_lesions",
            0,
            "more than 0 when deviations is empty, or branches={'distance': 1.0}",
        )

    @property
    def reads_latents(self) -> bool:
        """Whether any branch reads the latent of a test image; if not, the autoencoder need not run for it."""
        return bool({"latent", "deviation"} & self.branches.keys())

    @property
    def compares(self) -> bool:
        """Whether any branch compares with the features of the reference views, which are then kept."""
        return self.context or "distance" in self.branches

    @classmethod
    def named(cls, name: str) -> Recipe:
        """One of the recipes that come with the package.

        ``"default"`` is the best known; ``"scratch"`` the same with more steps and without mirror images at the
        prediction, for large frozen networks without initial values of the trained parts; ``"reference"`` the joint
        training as the method document writes it.
        """
        if name not in RECIPES:
            raise ConfigError(f"Got recipe {name!r}; wanted one of {', '.join(map(repr, RECIPES))} or a Recipe.")
        return RECIPES[name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; an unknown field is an error."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise ConfigError(
                    f"Unknown field {name!r} in recipe" + (f"; did you mean {near[0]!r}?" if near else ".")
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def _check(ok: bool, name: str, got: Any, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"Got {name}={got!r}; wanted {wanted}.")


def _check_number(name: str, got: Any, kind: type) -> None:
    """Whole numbers pass as floats; booleans pass as booleans alone; NaN and infinity never."""
    kinds: dict[type, type | tuple[type, ...]] = {int: Integral, float: (Real,), bool: bool}
    fits = isinstance(got, kinds[kind]) and (kind is bool) == isinstance(got, bool)
    _check(
        fits and (kind is not float or abs(got) < 1e300), name, got, f"a {'finite ' * (kind is float)}{kind.__name__}"
    )


def _weights(field_name: str, got: Any, known: tuple[str, ...]) -> dict[str, float]:
    """Positive weights by name, as a copy."""
    _check(isinstance(got, Mapping), field_name, got, "weights by name")
    for name, weight in got.items():
        _check(name in known, field_name, name, f"some of {', '.join(known)}")
        _check_number(f"{field_name}[{name!r}]", weight, float)
        _check(weight > 0, f"{field_name}[{name!r}]", weight, "more than 0")
    return dict(got)


_DEFAULT = Recipe()
RECIPES = {
    "default": _DEFAULT,
    "scratch": replace(
        _DEFAULT,
        n_phrases=4,
        branches={"clip": 1.0, "distance": 4.0},
        mirror=False,
        n_steps=120,
        learning_rate=1e-3,
    ),
    "reference": replace(
        _DEFAULT,
        n_lesions=0,
        deviations={"white": 1.0, "shuffle": 1.0},
        severity_follows_time=False,
        residual_transfer=False,
        detach_deviation=False,
        context=False,
        dice_on_lesions_only=False,
        weight_alignment=0.0,
        branches={"latent": 1.0},
        mirror=False,
        n_steps=150,
        learning_rate=3e-5,
    ),
}
