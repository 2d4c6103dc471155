"""The folder that an archive is scored into: what it holds, and of which detector."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_medad._listing import alone_in
from oneshot_medad.archive.addresses import file_system, is_remote
from oneshot_medad.archive.manifests import ID, URI, repeated
from oneshot_medad.errors import ConfigError, ImageFileError
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.read import BLANK
from oneshot_medad.persistence.describe import fingerprint_of
from oneshot_medad.provenance import stamp
from oneshot_medad.verdicts import ABNORMAL, CANNOT_JUDGE, NORMAL, NOT_READ, UNCERTAIN

if TYPE_CHECKING:
    from pyarrow import dataset

SCORES, CHECKPOINT, RUN = "scores", "checkpoint", "run.json"
"""Parquet files of results, Ray Data's record of the ids that are done, and what made them."""


def resolved(place: str | Path) -> tuple[Any, str]:
    """File system and path of a folder or file, which may be remote."""
    from pyarrow import fs

    text = str(place)
    if is_remote(text):
        return file_system(text.rstrip("/"))
    return fs.LocalFileSystem(), str(Path(text.removeprefix("file://")).absolute())


class Store:
    """A folder of results.

    Parameters
    ----------
    out
        Path, or an address such as ``s3://bucket/results``. It must be the same folder for all machines.
    """

    def __init__(self, out: str | Path) -> None:
        self._system, self._root = resolved(out)
        self._local = not is_remote(str(out))
        self.address = self._root if self._local else str(out).rstrip("/")

    def of(self, name: str) -> str:
        """Address of a part."""
        return posixpath.join(self.address, name)

    @contextmanager
    def taken_by(
        self, fitted: FittedDetector, window: tuple[float, float] | None, heatmaps: bool, fetch: bool = True
    ) -> Iterator[None]:
        """Write here alone; what is here already must be of the same detector, calibration and columns.

        Raises
        ------
        ConfigError
            It is not, or another run writes here (noticed in folders, not in object stores).
        """
        self._system.create_dir(self._root, recursive=True)
        with alone_in(Path(self._root)) if self._local else nullcontext():
            calibration = json.dumps(fitted.calibration, sort_keys=True).encode()
            wanted = {
                "detector_sha256": fingerprint_of(fitted, fetch),
                "calibration_sha256": hashlib.sha256(calibration).hexdigest(),
                "intensity_range": window and [float(v) for v in window],
                "heatmaps": heatmaps,
            }
            found = self._run()
            for name, value in wanted.items():
                if found and found.get(name) != value:
                    raise ConfigError(
                        f"Got {self.address}, whose results have {name} {found.get(name)}; wanted {value}. "
                        "Give another --out."
                    )
            if not found:
                said = {
                    **wanted,
                    "threshold": fitted.threshold,
                    "backbone": fitted.networks.spec.name,
                    **stamp(),
                }
                with self._system.open_output_stream(posixpath.join(self._root, RUN)) as file:
                    file.write(json.dumps(said, indent=2).encode())
            yield

    def _run(self) -> dict[str, Any]:
        from pyarrow import fs

        path = posixpath.join(self._root, RUN)
        if self._system.get_file_info(path).type == fs.FileType.NotFound:
            return {}
        with self._system.open_input_stream(path) as file:
            return dict(json.loads(file.read()))

    def scores(self) -> dataset.Dataset:
        """All rows, as a pyarrow dataset."""
        from pyarrow import dataset

        return dataset.dataset(posixpath.join(self._root, SCORES), format="parquet", filesystem=self._system)

    def check(self, manifest: str | Path) -> None:
        """Make sure that every image of a manifest has exactly one row.

        Raises
        ------
        ImageFileError
            Rows are missing or double: somebody else changed the folder.
        """
        import numpy as np
        from pyarrow import dataset

        system, path = resolved(manifest)
        wanted = dataset.dataset(path, filesystem=system).to_table(columns=[ID])[ID].to_numpy()
        found = np.sort(self.scores().to_table(columns=[ID])[ID].to_numpy())
        double, missing = int((found[1:] == found[:-1]).sum()), int((~np.isin(wanted, found)).sum())
        if double or missing:
            raise ImageFileError(
                f"Got {self.address} with {double} rows twice and {missing} of {len(wanted)} missing; wanted each "
                "once. The folder was changed from outside: start anew in another one."
            )

    def counts(self) -> dict[str, int]:
        """How many images got which verdict, as `Predictions.counts` says it, of all rows."""
        import pyarrow.compute as pc

        found: dict[str, int] = {}
        blank = 0
        for batch in self.scores().to_batches(columns=["verdict", "reason"]):
            for one in pc.value_counts(batch["verdict"]).to_pylist():
                found[one["values"]] = found.get(one["values"], 0) + one["counts"]
            blank += pc.sum(pc.equal(batch["reason"], BLANK)).as_py() or 0
        return {
            "images": sum(found.values()),
            "flagged": found.get(ABNORMAL, 0),
            "uncertain": found.get(UNCERTAIN, 0),
            "normal": found.get(NORMAL, 0),
            "cannot_judge": found.get(CANNOT_JUDGE, 0),
            "blank": blank,
            "failed": found.get(NOT_READ, 0) - blank,
        }

    def failures(self, most: int) -> dict[str, str]:
        """Why images could not be read, by name, of the first ones."""
        import pyarrow.compute as pc

        failed = (pc.field("verdict") == NOT_READ) & (pc.field("reason") != BLANK)
        rows = self.scores().scanner(columns=["name", "reason"], filter=failed).head(most)
        return dict(zip(rows["name"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def check_manifest(manifest: str | Path) -> None:
    """Refuse a manifest without the two columns, or with an id twice.

    Raises
    ------
    ConfigError
        So it is.
    ImageFileError
        It is no Parquet file.
    """
    import pyarrow
    from pyarrow import dataset

    system, path = resolved(manifest)
    try:
        found = dataset.dataset(path, filesystem=system).schema
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ImageFileError(f"Cannot read the manifest {manifest}: {error}. Make it with make_manifest.") from error
    types = {name: str(found.field(name).type) if name in found.names else "missing" for name in (ID, URI)}
    if types[ID] != "int64" or types[URI] not in ("string", "large_string"):
        raise ConfigError(
            f"Got manifest {manifest} with id {types[ID]} and uri {types[URI]}; wanted int64 and string. Make it with "
            "make_manifest."
        )
    if not dataset.dataset(path, filesystem=system).count_rows():
        raise ConfigError(f"Got manifest {manifest} without rows; wanted one an image.")
    if again := repeated(path, system):
        raise ConfigError(f"Got manifest {manifest} with {len(again)} ids more than once; wanted each once.")
