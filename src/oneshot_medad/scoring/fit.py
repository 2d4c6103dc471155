"""All of a fit that comes behind the frozen networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oneshot_medad._runtime import Drawing, process_count
from oneshot_medad.backbones import Backbone
from oneshot_medad.config import Recipe
from oneshot_medad.nn.matching import References
from oneshot_medad.scoring.distances import Subspace
from oneshot_medad.scoring.scorer import Scorer
from oneshot_medad.scoring.trust import reach, trust_in_distance
from oneshot_medad.training.cache import Views
from oneshot_medad.training.joint import JointModel
from oneshot_medad.training.loop import train


@dataclass(frozen=True)
class Fitted:
    """A calibrated scorer, the losses of every step, and the image scores of the held-out normal and lesion views."""

    scorer: Scorer
    history: list[dict[str, float]]
    normal: torch.Tensor
    lesion: torch.Tensor


def fit_scorer(
    recipe: Recipe,
    backbone: Backbone,
    views: Views,
    generator: torch.Generator,
    init: str = "pretrained",
    progress: bool = False,
) -> Fitted:
    """Train on encoded views and fix scale and fusion."""
    device, tower = backbone.device, backbone.text
    with Drawing(generator.initial_seed()):
        model = JointModel.build(recipe, backbone, views.normal, init).to(device)
    half = backbone.dtype == torch.bfloat16
    if process_count() == 1:  # several processes average gradients in the other layout
        model.to(memory_format=torch.channels_last)
    history = train(model, views, tower, generator, device, progress, half)
    model.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        text = model.text_features(tower)
        scorer = assemble(model, text, views, device).to(device).eval()
    trust = {}
    if init == "pretrained" and views.reference.kinds is not None:
        seen = views.reference.kinds[: views.n_images]
        patients, goods = (reach(seen, backbone.pool_kinds(group)) for group in ("patients", "goods"))
        trust["distance"] = trust_in_distance(patients, goods)
    return Fitted(scorer, history, *scorer.calibrate(views, device, trust))


def assemble(model: JointModel, text: torch.Tensor, views: Views, device: torch.device) -> Scorer:
    """What a trained model needs of the views; `Scorer.calibrate` must follow."""
    recipe, seen = model.recipe, views.reference
    references = subspace = latent = None
    if views.compared is not None:
        references = views.compared.to(device)
    if recipe.context and "latent" in recipe.branches:
        latent = References.of(model.projection(seen.z.to(device)), seen.positions)
    if "distance" in recipe.branches:
        assert views.turned is not None
        owner = torch.cat([torch.arange(len(part)) % views.n_images for part in (seen, views.normal)])
        both = [torch.cat(pair) for pair in zip(seen.features, views.normal.features, strict=True)]
        subspace = Subspace.of(both, views.turned, owner)
    return Scorer(model, text, references, latent, subspace, seen.kinds, views.layouts, views.n_images)
