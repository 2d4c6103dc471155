"""A page in the browser for a fitted detector: what a Hugging Face Space runs, and what runs on one's own machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_medad.calibration import RULES
from oneshot_medad.detector import AnomalyDetector
from oneshot_medad.errors import ExtraError, OneShotError
from oneshot_medad.images.expand import expand

if TYPE_CHECKING:
    from oneshot_medad.results.predictions import Predictions

MOST = 200
"""Images, slices or frames that the page takes at a time; whoever has more is better served by the command line."""
PICTURES = 24
"""Of them drawn; the table has all."""
KEPT_S = 3600
"""Seconds after which files that were uploaded are removed."""
HEAD = ["image", "verdict", "score", "shown"]

RESEARCH = (
    "**Research use only. This is not a medical device and must not be used for diagnosis.** Upload no image from "
    "which a patient could be known."
)


def app(source: str | Path | AnomalyDetector, *, revision: str | None = None) -> Any:
    """The page: upload images, see heatmaps, scores and verdicts, move the threshold.

    Parameters
    ----------
    source
        A fitted detector, the folder of a saved one, or ``"owner/name"`` on the Hub.
    revision
        Branch, tag or commit on the Hub.

    Returns
    -------
    ``gradio.Blocks``; its ``launch()`` serves it, on this machine alone unless told otherwise.

    Raises
    ------
    ExtraError
        gradio is not installed: ``pip install "oneshot-medad[space]"``.
    PersistenceError, HubError, NotFittedError
        As of `AnomalyDetector.from_pretrained`, or a detector that is not fitted.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector, datasets
    >>> detector = AnomalyDetector(random_state=0, n_steps=2).fit(datasets.load_sample().support)
    >>> page = app(detector)  # page.launch() opens it
    """
    try:
        import gradio
    except ImportError as error:
        raise ExtraError('The page needs gradio: pip install "oneshot-medad[space]".') from error
    if isinstance(source, AnomalyDetector):
        detector, place = source, "A detector"
    else:
        detector = AnomalyDetector.from_pretrained(source, revision=revision)
        on_hub = not Path(source).is_dir()
        place = f"[{source}](https://huggingface.co/{source})" if on_hub else f"`{Path(source).name}`"
    rule, threshold = RULES[detector.calibration_["rule"]], float(detector.threshold_)

    def judge(files: list[str] | None, limit: float) -> tuple[Predictions | None, list, list, str]:
        try:
            found = _predict(detector, files or [])
        except OneShotError as error:
            raise gradio.Error(str(error)) from error
        return found, *_told(found, limit)

    def move(found: Predictions | None, limit: float) -> tuple[list, list, str]:
        return _told(found, limit) if found is not None else ([], [], "")

    with gradio.Blocks(title="oneshot-medad", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gradio.Markdown(
            f"# What differs from normal?\n\n{place}, fitted on {detector.n_support_} normal image(s) "
            f"({detector.provenance_.get('modality') or 'modality not stated'}). {rule}\n\n{RESEARCH}"
        )
        kept = gradio.State()
        files = gradio.File(file_count="multiple", label="Images: PNG, JPEG, TIFF, DICOM, NIfTI, zip", elem_id="images")
        button = gradio.Button("Judge", variant="primary", elem_id="judge")
        low, high = min(-1.0, threshold - 1), max(3.0, threshold + 2)
        slider = gradio.Slider(low, high, threshold, step=0.01, label="Threshold of the score", elem_id="threshold")
        said = gradio.Markdown(elem_id="said")
        table = gradio.Dataframe(headers=HEAD, interactive=False, elem_id="table")
        label = "Image, heatmap, both; the threshold has the middle of the colours"
        gallery = gradio.Gallery(label=label, columns=2, object_fit="contain", format="png", elem_id="gallery")
        shown = [table, gallery, said]
        button.click(judge, [files, slider], [kept, *shown])
        slider.input(move, [kept, slider], shown, trigger_mode="always_last")
    return page


def _predict(detector: AnomalyDetector, files: list[str]) -> Predictions:
    """Of all images in the files, under their own names alone, not those of the folder that they were uploaded to."""
    if not files:
        raise OneShotError("Got no file; wanted one or more images.")
    sources = expand(files)
    if len(sources) > MOST:
        raise OneShotError(
            f"Got {len(sources)} images; this page takes {MOST} at a time. Use the command line for more."
        )
    found = detector.predict(sources, on_error="record")
    folders = {f"{Path(file).parent}{os.sep}" for file in files}

    def bare(text: str) -> str:
        for folder in folders:
            text = text.replace(folder, "")
        return text

    return replace(found, names=[*map(bare, found.names)], reasons=[*map(bare, found.reasons)])


def _told(found: Predictions, threshold: float) -> tuple[list, list, str]:
    """Rows of the table, captioned pictures, and one line, for a threshold."""
    band = found.uncertain_from if found.uncertain_from is not None and found.uncertain_from < threshold else None
    found = replace(found, threshold=float(threshold), uncertain_from=band)
    listed = found.to_rows()
    rows = [[row["name"], row["verdict"], _number(row["score"]), _number(row["shown"])] for row in listed]
    pictured = [i for i, score in enumerate(found.scores) if score == score][:PICTURES]
    pictures = [(found.overlay(i), f"{rows[i][0]}: {rows[i][1]}, score {rows[i][2]}") for i in pictured]
    counts = {name.replace("_", " "): n for name, n in found.counts().items() if n}
    failed = "".join(f"\n\n{row['name']}: {row['reason']}" for row in listed if row["reason"])
    return rows, pictures, ", ".join(f"{n} {name}" for name, n in counts.items()) + failed


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
