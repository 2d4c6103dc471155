"""The model card: what was fitted, on what, what was measured, and what it is not for."""

from __future__ import annotations

import json
from string import Template
from typing import Any

from oneshot_medad._names import printable
from oneshot_medad.backbones.specs import BACKBONES
from oneshot_medad.calibration import RULES, promises, stated
from oneshot_medad.evaluation import MEASURES
from oneshot_medad.persistence.folder import SHEET
from oneshot_medad.persistence.gallery import card_data
from oneshot_medad.persistence.store import Stored

TEXT = Template("""---
$metadata
---

# $title

A one-shot anomaly detector for medical images, fitted with `oneshot-medad`. It scores how abnormal an
image is and shows where; higher is more abnormal.

**Research use only. This is not a medical device and must not be used for diagnosis.**

## Use

```python
from oneshot_medad import AnomalyDetector

detector = AnomalyDetector.from_pretrained($location)
scores, heatmaps = detector.predict(["image.png"])
```

## What it was fitted on

| | |
|---|---|
| normal images | $count |
| modality | $modality |
| frozen networks | $backbone$networks |
| recipe | $recipe |
| fitted | $created with oneshot-medad $version, seed $seed |

Hashes of the normal images (SHA-256 of their pixels; the images themselves are not in this repository):

$hashes

## What was measured

$evaluation
$sheet
## Threshold

Images that score above $threshold are flagged. $rule

$promises
## Limits

- It knows the normal variation of $count image(s) and nothing of your scanner, protocol or population. Evaluate it on
  your own labelled images before you rely on a number.
- Images of another anatomy, view or modality get a score too; that score means nothing.
- The model file holds features of the normal images. They are not images, but some of an image may be guessed
  from them: share the file only if you may share what it was fitted on.

## Licence

$license
""")

NETWORKS = {
    "tiny": ": an autoencoder of MedVAE's architecture and an EfficientNet-Lite0 in open_clip's frame, in place of "
    "MedVAE and CLIP as published. The tower was adapted with **real lesion masks and labels** of public research "
    "images whose terms differ and are often unstated; `WEIGHTS.md` in the package says whose, and `NOTICE` where "
    "weights and code come from"
}
"""What stands behind the name of embedded networks, as it must be known before results are compared."""

ANOMALIES = f"""
## Drawn anomalies

Anomalies drawn into views of the normal images (outlined), and what the detector makes of them. Real ones look
different.

![image, heatmap, and both]({SHEET})
"""


def model_card(stored: Stored, location: str, sheet: bool = False) -> str:
    """README.md of a detector in the Hub's format.

    Parameters
    ----------
    stored
        The detector; its provenance has the author's licence and modality, which are never invented.
    location
        Folder or repository that the loading example names.
    sheet
        Whether the picture of drawn anomalies lies beside it.
    """
    backbone, provenance = stored.config["backbone"]["name"], stored.provenance
    title = printable(location).rstrip("/").split("/")[-1] or "detector"
    metadata = card_data(
        title, provenance["license"], provenance["modality"], base_models(backbone), provenance.get("evaluation")
    )
    return TEXT.substitute(
        metadata=metadata.to_yaml().strip(),
        title=title,
        location=json.dumps(location, ensure_ascii=False).encode("utf-8", "backslashreplace").decode(),
        count=stored.calibration["n_support"],
        modality=provenance["modality"] or "not stated",
        backbone=backbone,
        networks=NETWORKS.get(backbone, ""),
        recipe=stored.config["parameters"]["recipe"],
        created=provenance["created"],
        version=stored.config["package_version"],
        seed=stored.config["parameters"]["random_state"],
        hashes="\n".join(f"- `{image['sha256']}`" for image in provenance["support"]),
        sheet=ANOMALIES if sheet else "",
        evaluation=_evaluation(provenance.get("evaluation")),
        threshold=f"{stored.calibration['threshold']:.4g}",
        rule=RULES[stored.calibration["rule"]],
        promises=_calibration(stated(stored.calibration)) + _volumes(stored.calibration["volumes"]),
        license=provenance["license"] or "Not stated by the author.",
    )


def _calibration(found: dict[str, Any]) -> str:
    """What the threshold promises, and what it was found on; empty before `AnomalyDetector.calibrate`."""
    if not found["images"] and not found["n_normal"]:
        return ""
    lines = [f"- {sentence}" for sentence in promises(found)]
    total = len(found["images"]) or found["n_normal"]  # older ones know no hashes
    lines.append(f"- Calibrated on {total} images, {found['n_normal']} of them normal.")
    hashes = [f"- `{image}`" for image in found["images"]]
    if hashes:
        head = "<summary>Hashes of these images (SHA-256 of their pixels)</summary>"
        lines += ["", f"<details>{head}", "", *hashes, "", "</details>"]
    return "\n".join([*lines, ""])


def _volumes(calibration: dict[str, Any] | None) -> str:
    """The threshold of volumes, and what it promises; empty before a calibration on volumes."""
    if calibration is None:
        return ""
    found = stated(calibration)
    lines = [f"Volumes that score above {found['threshold']:.4g} are abnormal. {RULES[found['rule']]}", ""]
    lines += [f"- {sentence}" for sentence in promises(found, "volume")]
    total = len(found["images"])
    return "\n".join([*lines, f"- Calibrated on {total} volumes, {found['n_normal']} of them normal.", ""])


def base_models(backbone: str) -> list[str] | None:
    """Hub repositories of a preset's frozen networks; the embedded ones have none."""
    spec = BACKBONES.get(backbone)
    return [part.repo_id for part in (spec.autoencoder, spec.clip) if part] or None if spec else None


def _evaluation(found: dict[str, Any] | None) -> str:
    """A table of the numbers that `AnomalyDetector.evaluate` stored."""
    if not found:
        return "Not measured."
    lines = [
        f"On {found['n_normal']} normal and {found['n_abnormal']} abnormal images chosen by the author:",
        "",
        "| measure | value | 95 % interval |",
        "|---|---|---|",
    ]
    for key, name in MEASURES.items():
        if key in found:
            low_high = found.get(f"{key}_interval")
            interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""
            lines.append(f"| {name} | {found[key]:.3f} | {interval} |")
    return "\n".join(lines)
