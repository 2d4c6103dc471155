"""Published detectors: what a card tells the Hub, and how others are found by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oneshot_medad._hub import calling
from oneshot_medad.evaluation import MEASURES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData, ModelInfo

LIBRARY = "oneshot-medad"
TASK = "image-classification"
"""Of the Hub's tasks the one that fits: an image gets a verdict. Segmentation would promise masks of named things."""
TAGS = ("anomaly-detection", "medical-imaging", "one-shot", "research-use-only")
METRICS = {"image_auroc": "roc_auc", "image_ap": "average_precision", "sensitivity": "recall"}
"""The Hub's names of measures, where it has one."""
OWN = "images chosen by the author"


@dataclass(frozen=True)
class Published:
    """A detector on the Hub.

    Attributes
    ----------
    repo_id
        What `AnomalyDetector.from_pretrained` takes.
    tags
        What its author says of the images, such as ``"brain MRI"``.
    license
        None where the author states none.
    measures
        What the author measured, by the names of `evaluation.MEASURES`; empty if nothing was.
    downloads, likes
        As the Hub counts them.
    updated
        Date of the last change, ISO 8601; empty if the Hub does not say.
    """

    repo_id: str
    tags: list[str] = field(default_factory=list)
    license: str | None = None
    measures: dict[str, float] = field(default_factory=dict)
    downloads: int = 0
    likes: int = 0
    updated: str = ""

    def __str__(self) -> str:
        measured = ", ".join(f"{MEASURES[name]} {value:.3f}" for name, value in self.measures.items())
        said = [", ".join(self.tags) or "modality not stated", measured or "not measured", self.license or "no licence"]
        return f"{self.repo_id}: {'; '.join(said)}; {self.downloads} downloads"


def search(*words: str, owner: str | None = None, limit: int = 20, token: str | bool | None = None) -> list[Published]:
    """Published detectors on the Hugging Face Hub, the most downloaded first.

    Parameters
    ----------
    *words
        All of these must occur in a detector's name or tags, whatever the case; none lists every detector.
    owner
        User or organisation that published it.
    limit
        Detectors at most.
    token
        None uses the stored login; private detectors of its owner are listed too.

    Returns
    -------
    The detectors. Their numbers are what their authors say; nobody has checked them.

    Raises
    ------
    HubError
        The Hub refused or could not be reached.

    Examples
    --------
    .. code-block:: python

        from oneshot_medad import search

        for found in search("brain", "mri"):
            print(found)
    """
    from huggingface_hub import HfApi

    api, wanted = HfApi(token=token, library_name=LIBRARY), [word.lower() for word in words]

    def listed() -> list[Published]:
        found: list[Published] = []
        for info in api.list_models(filter=LIBRARY, author=owner, sort="downloads", full=True, cardData=True):
            one = _published(info)
            text = " ".join([one.repo_id, *one.tags]).lower()
            if all(word in text for word in wanted):
                found.append(one)
            if len(found) == limit:
                break
        return found

    return calling("list detectors", listed)


def card_data(
    name: str, license_: str | None, modality: str | None, base: list[str] | None, found: Mapping[str, Any] | None
) -> ModelCardData:
    """The front matter of a card: what `search` and the Hub's own pages find a detector by.

    Parameters
    ----------
    name, license_, modality
        Of the detector; each part of the modality between commas becomes a tag.
    base
        Hub repositories of its frozen networks.
    found
        What `AnomalyDetector.evaluate` stored.
    """
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name=LIBRARY,
        license=license_,
        pipeline_tag=TASK,
        base_model=base,
        tags=[*TAGS, *_parts(modality)],
        model_name=name if found else None,
        eval_results=_results(found) if found else None,
    )


def _parts(modality: str | None) -> list[str]:
    parts = [" ".join(part.split()) for part in (modality or "").split(",")]
    return list(dict.fromkeys(part for part in parts if part and part not in TAGS))


def _results(found: Mapping[str, Any]) -> list[EvalResult]:
    """Measures as the Hub shows them beside a card."""
    from huggingface_hub import EvalResult

    counts = f"{found['n_normal']} normal, {found['n_abnormal']} abnormal"
    return [
        EvalResult(
            task_type=TASK,
            task_name="Anomaly detection",
            dataset_type="author",
            dataset_name=f"{OWN}: {counts}",
            metric_type=METRICS.get(key, key),
            metric_name=name,
            metric_value=round(float(found[key]), 4),
        )
        for key, name in MEASURES.items()
        if key in found
    ]


def _indexed(info: ModelInfo) -> list[EvalResult]:
    """Measures that the Hub lists apart from the rest of the front matter."""
    from huggingface_hub import ModelCardData

    index = {"model-index": getattr(info, "model_index", None)}
    return ModelCardData(ignore_metadata_errors=True, **index).eval_results or [] if index["model-index"] else []


def _published(info: ModelInfo) -> Published:
    """What a listing says of a detector; anybody may have written it, so whatever has another type is left out."""
    named = {name: key for key, name in MEASURES.items()}
    results = getattr(info.card_data, "eval_results", None) or _indexed(info)
    measures = {
        named[result.metric_name]: float(result.metric_value)
        for result in results
        if result.metric_name in named and isinstance(result.metric_value, int | float)
    }
    tags = getattr(info.card_data, "tags", None) or []
    license_ = getattr(info.card_data, "license", None)
    return Published(
        info.id,
        [tag for tag in tags if isinstance(tag, str) and tag not in TAGS],
        license_ if isinstance(license_, str) else None,
        measures,
        info.downloads or 0,
        info.likes or 0,
        info.last_modified.isoformat() if info.last_modified else "",
    )
