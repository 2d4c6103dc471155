"""A detector's configuration as plain values, and back, with every value checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from oneshot_medad._hub import sha256
from oneshot_medad.backbones.specs import BACKBONES, NETWORKS, STATISTICS, BackboneSpec
from oneshot_medad.config import RECIPES, Recipe
from oneshot_medad.errors import ConfigError, PersistenceError
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.persistence.folder import BACKBONE, CONFIG
from oneshot_medad.persistence.read import is_number, take
from oneshot_medad.persistence.store import SCHEMA
from oneshot_medad.training.joint import Shapes

LIMITS = {"channels": 256, "grid": 512, "embed_dim": 4096, "text_width": 4096}
"""Largest sizes that a configuration may ask for; far above every known network, far below what exhausts memory."""


def pack(parameters: Mapping[str, Any], recipe: Recipe, shapes: Shapes, spec: BackboneSpec) -> dict[str, Any]:
    """Content of ``config.json``."""
    named = parameters["recipe"] if isinstance(parameters["recipe"], str) else "custom"
    kept = {name: parameters[name] for name in ("init", "n_steps", "intensity_range", "random_state")}
    if kept["intensity_range"] is not None:
        kept["intensity_range"] = [float(v) for v in kept["intensity_range"]]
    for name in ("n_steps", "random_state"):
        kept[name] = None if kept[name] is None else int(kept[name])
    return {
        "schema": SCHEMA,
        "package_version": version("oneshot-medad"),
        "backbone": _packed(spec),
        "shapes": asdict(shapes),
        "recipe": recipe.to_dict(),
        "parameters": {"recipe": named, **kept},
    }


def _packed(spec: BackboneSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "image_px": spec.image_px,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "levels": list(spec.levels),
        "half": spec.half,
        "license": spec.license,
        "files": {path.name: sha256(path) for path in spec.files},
        "sources": spec.sources,
    }


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over all that a detector's scores depend on: frozen networks, shapes, recipe and tensors.

    A detector that is saved and read back keeps it. The threshold and the intensity range, which can change without
    another fit, are not in it: predictions state them beside it.
    """
    frozen = {k: config["backbone"][k] for k in ("image_px", "mean", "std", "levels", "half", "files")}
    described = {"backbone": frozen, "shapes": config["shapes"], "recipe": config["recipe"]}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(fitted: FittedDetector, fetch: bool = True) -> str:
    """`fingerprint` of a fitted detector, computed once; ``fetch`` as for `fitted.Networks.load`."""
    scorer = fitted.scorer
    if not scorer.sha256:
        config = {
            "backbone": _packed(fitted.networks.load(fetch).spec),
            "shapes": asdict(scorer.model.shapes),
            "recipe": scorer.recipe.to_dict(),
        }
        scorer.sha256 = fingerprint(config, scorer.to_tensors())
    return scorer.sha256


def unpack(config: Mapping[str, Any], where: str) -> tuple[Recipe, Shapes, dict[str, Any]]:
    """Recipe, shapes and constructor parameters of a ``config.json``; anything odd in it is an error."""
    try:
        recipe = Recipe.from_dict(config["recipe"])
    except (ConfigError, TypeError) as error:
        raise PersistenceError(f"{where} has a recipe that cannot be used: {error}") from error
    shapes = _shapes(config["shapes"], where)
    none = type(None)
    parameters = take(
        config["parameters"],
        f"{where} parameters",
        recipe=str,
        init=str,
        n_steps=(int, none),
        intensity_range=(list, none),
        random_state=(int, none),
    )
    window = parameters["intensity_range"]
    if window is not None:
        if len(window) != 2 or not all(is_number(v) for v in window) or not window[0] < window[1]:
            raise PersistenceError(f"{where} has intensity_range={window!r}; wanted [low, high] with low < high.")
        parameters["intensity_range"] = tuple(window)
    name = parameters["recipe"]
    steps = parameters["n_steps"]
    known = {"n_steps": recipe.n_steps} if steps is not None else {}
    if name not in RECIPES or Recipe.from_dict({**RECIPES[name].to_dict(), **known}) != recipe:
        parameters["recipe"] = recipe  # one of the user's own, or the named one of another version
    return recipe, shapes, parameters


def _shapes(values: Mapping[str, Any], where: str) -> Shapes:
    values = take(values, f"{where} shapes", channels=int, levels=list, grid=int, embed_dim=int, text_width=int)
    pairs = values["levels"]
    fits = 1 <= len(pairs) <= 8 and all(
        isinstance(p, list)
        and len(p) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) for v in p)
        and 1 <= p[0] <= 8192
        and 1 <= p[1] <= 512
        for p in pairs
    )
    if not fits or not all(1 <= values[name] <= limit for name, limit in LIMITS.items()):
        raise PersistenceError(f"{where} has shapes {values!r}; wanted positive sizes of at most {LIMITS}.")
    return Shapes(**{**values, "levels": tuple((c, side) for c, side in pairs)})


def stored_spec(stored: Mapping[str, Any], folder: Path, given: BackboneSpec | None) -> BackboneSpec:
    """The frozen networks of a saved detector: given by the caller, included in its folder, or known by their name.

    `fitted.check_files` must follow once they are at hand.
    """
    where = str(folder / CONFIG)
    values = take(
        stored,
        f"{where} backbone",
        name=str,
        image_px=int,
        mean=list,
        std=list,
        levels=list,
        half=bool,
        license=str,
        files=dict,
        sources=dict,
    )
    if not (
        16 <= values["image_px"] <= 4096
        and all(isinstance(level, str) for level in values["levels"])
        and all(len(values[k]) == 3 and all(is_number(v) for v in values[k]) for k in ("mean", "std"))
        and all(v > 0 for v in values["std"])
    ):
        raise PersistenceError(f"{where} describes a backbone that cannot be: {values!r}.")
    if not {*NETWORKS} <= values["files"].keys() <= {*NETWORKS, STATISTICS}:
        raise PersistenceError(f"{where} hashes the files {sorted(values['files'])}; wanted {[*NETWORKS, STATISTICS]}.")
    records = values["sources"].values()
    if not all(isinstance(r, dict) and all(isinstance(v, str) for v in r.values()) for r in records):
        raise PersistenceError(f"{where} has sources {values['sources']!r}; wanted repository, commit, file and hash.")
    described: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in ("files", "sources")
    }
    if given is not None:
        spec = given
    elif (folder / BACKBONE).is_dir():
        spec = BackboneSpec(**described, folder=folder / BACKBONE)
    elif values["name"] in BACKBONES:
        spec = BACKBONES[values["name"]]
    else:
        raise PersistenceError(
            f"{where} was fitted on backbone {values['name'][:80]!r}, which neither the folder nor this version holds. "
            "Pass backbone= with the folder that `oneshot-medad download` made of it, or its BackboneSpec."
        )
    for name in ("image_px", "mean", "std", "levels", "half"):
        if getattr(spec, name) != described[name]:
            raise PersistenceError(
                f"{where} was fitted with {name}={described[name]!r}; {spec.name!r} has {getattr(spec, name)!r}."
            )
    return spec
