"""An archive scored by Ray Data: the only place that knows Ray."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib import cpu_count

from oneshot_medad import errors
from oneshot_medad.archive.manifests import ID, URI, need_pyarrow
from oneshot_medad.archive.stages import Judge, decode
from oneshot_medad.archive.store import CHECKPOINT, SCORES, Store, check_manifest, resolved
from oneshot_medad.errors import ConfigError, ExtraError, OneShotError

if TYPE_CHECKING:
    from oneshot_medad.detector import AnomalyDetector

TASK = 64
"""Images of one task: few enough that a broken one costs little, so many that Ray's own work does not show."""
BATCH = 32
"""Images that a worker holds in memory."""
ROWS, ROWS_WITH_HEATMAPS = 4096, 512
"""Rows of a result file, and with it of a step of the checkpoint."""
LIGHT = 0.25
"""Share of a core that reading the manifest and writing results take."""
LEAST = 4
"""Cores that Ray must count: its own operators (listing, filtering, dividing) hold up to two beside the workers."""


def score(
    detector: AnomalyDetector,
    manifest: str | Path,
    out: str | Path,
    *,
    heatmaps: bool = False,
    workers: int | None = None,
    rows_per_file: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Score all images of a manifest into a folder; a run that was broken off goes on where it stopped.

    Ray that runs here already is used (``ray.init(address=…)``, or ``RAY_ADDRESS``), else it is started on this machine
    and stopped afterwards. Images that were scored into the folder before are skipped, so a manifest that has grown
    costs only what is new.

    Parameters
    ----------
    detector
        A fitted `AnomalyDetector`. Every machine must have its frozen networks, if they are not the embedded ones.
    manifest
        Parquet file or folder with the columns ``id`` (int64, each once) and ``uri``, as `make_manifest` writes it.
    out
        Folder that all machines share, or an address such as ``s3://bucket/results``. ``scores`` in it holds Parquet
        files with the columns of `Predictions.to_rows` and ``id``, in any order.
    heatmaps
        Add the column ``heatmap``: 16-bit PNG, as `Predictions.save_heatmaps` writes them; null where there is none.
    workers
        Processes that hold the detector; None takes one a GPU, or else one a core.
    rows_per_file
        Rows of a result file at least; a broken run loses what is in none yet. None takes 4096, with heatmaps 512.
    progress
        Show Ray's progress bars.

    Returns
    -------
    Counts of all rows in the folder, as `Predictions.counts` gives them. An image that cannot be read has a row with
    the verdict "not read" and the reason.

    Raises
    ------
    NotFittedError
        The detector is not fitted.
    ConfigError
        A manifest that lacks a column or has an id twice, a folder with results of another detector, a number of
        workers or rows below 1, or a cluster of fewer than four cores.
    ImageFileError
        Of many images in a row nothing is there, as where a folder is not mounted on a machine.
    ExtraError
        Ray is not installed: ``pip install "oneshot-medad[ray]"``.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector
    >>> from oneshot_medad.archive import make_manifest, score
    >>> make_manifest("scans", "manifest.parquet", recursive=True)  # doctest: +SKIP
    >>> score(AnomalyDetector.from_pretrained("brain-detector"), "manifest.parquet", "results")  # doctest: +SKIP
    """
    need_pyarrow()
    fitted, window, fetch = detector._ready(), detector.intensity_range, detector.fetch == "always"
    for name, value in (("workers", workers), ("rows_per_file", rows_per_file)):
        if value is not None and value < 1:
            raise ConfigError(f"Got {name}={value}; wanted 1 or more, or None.")
    check_manifest(manifest)
    store = Store(out)
    rows = rows_per_file or (ROWS_WITH_HEATMAPS if heatmaps else ROWS)
    decoding = {"window": window, "side": fitted.networks.spec.image_px}
    judging = {"fitted": fitted.portable(), "heatmaps": heatmaps, "fetch": fetch, "device": detector.device}
    with _ray() as (ray, cores), store.taken_by(fitted, window, heatmaps, fetch), _settings(ray, store, progress):
        try:
            _run(ray, cores, manifest, store, rows, workers, decoding, judging)
        except Exception as error:
            if (ours := _ours(error)) is None:
                raise
            raise ours from error
    store.check(manifest)
    return store.counts()


def _run(
    ray: Any,
    cores: int,
    manifest: str | Path,
    store: Store,
    rows: int,
    workers: int | None,
    decoding: dict[str, Any],
    judging: dict[str, Any],
) -> None:
    system, path = resolved(manifest)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if judging["device"] != "cpu" else 0
    if gpus:
        judging = {**judging, "device": "auto"}  # each process sees one, whose number is 0
    pool = ray.data.ActorPoolStrategy(min_size=workers or 1, max_size=workers or gpus or cores)
    # without GPUs Ray runs the two stages in one process, since both ask for a core
    # the checkpoint filters what is read by its id, and records the ids of what is written: none may be lost between
    (
        ray.data.read_parquet(path, filesystem=system, partitioning=None, num_cpus=LIGHT)
        .select_columns([ID, URI])
        .repartition(target_num_rows_per_block=TASK)
        .map_batches(
            decode,
            batch_size=BATCH,
            batch_format="pyarrow",
            fn_kwargs=decoding,
            num_cpus=1,
        )
        .map_batches(
            Judge,
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=pool,
            fn_constructor_kwargs=judging,
            **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        )
        .write_parquet(store.of(SCORES), min_rows_per_file=rows, ray_remote_args={"num_cpus": LIGHT})
    )


@contextmanager
def _ray() -> Iterator[tuple[Any, int]]:
    """Ray, and the cores that may hold the detector; started here, it is stopped again, and reports nothing."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ExtraError(f"Archives need Ray ({error}): pip install 'oneshot-medad[ray]'") from error
    cores, ours, quietly = 0, not ray.is_initialized(), {"log_to_driver": False, "logging_level": logging.ERROR}
    if ours:
        try:
            ray.init("auto", **quietly)
        except ConnectionError:  # none runs here
            cores = cpu_count()
            with _environment("RAY_USAGE_STATS_ENABLED", "0"):
                ray.init("local", num_cpus=cores + 2, include_dashboard=False, **quietly)
    try:
        counted = int(ray.cluster_resources().get("CPU", 0))
        if not cores and counted < LEAST:
            raise ConfigError(
                f"Got a cluster of {counted} core(s); wanted {LEAST} or more. Where there are fewer, let Ray count "
                f"more: ray start --num-cpus={LEAST}."
            )
        yield ray, cores or counted
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, unless the user has set it."""
    known = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not known:
            del os.environ[name]


@contextmanager
def _settings(ray: Any, store: Store, progress: bool) -> Iterator[None]:
    """The checkpoint and the progress bars of this run alone; Ray says nothing below errors meanwhile."""
    from ray.data.checkpoint import CheckpointConfig

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.checkpoint_config, logger.level
    context.enable_progress_bars = progress
    # what is done stays known after success too: the same command does nothing, a longer manifest what is new
    context.checkpoint_config = CheckpointConfig(ID, store.of(CHECKPOINT), delete_checkpoint_on_success=False)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.checkpoint_config = before[:2]
        logger.setLevel(before[2])


def _ours(error: Exception) -> OneShotError | None:
    """The error of this package that a worker raised; None if it is another. Ray hands over its text alone."""
    found = re.findall(r"^oneshot_medad\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
    return getattr(errors, found[-1][0])(found[-1][1]) if found else None
