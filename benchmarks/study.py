"""A study of one long series, end to end: fetched from a picture archive, judged, and what was found stored back.

python -m benchmarks study --out benchmarks/results/study.json

Orthanc with its DICOMweb plugin (Debian's orthanc and orthanc-dicomweb) is started on loopback; what is measured is the
process of ``oneshot-medad study DETECTOR --dicomweb URL --study UID --store`` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import zoom

from benchmarks.run import environment
from oneshot_medad import AnomalyDetector
from oneshot_medad._brain import load_template
from oneshot_medad.studies import dicomweb

ORTHANC = shutil.which("Orthanc") or shutil.which("orthanc", path="/usr/sbin:/usr/bin")
PLUGIN = next(iter(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")), None)
SIDE = 512
"""Rows and columns of each image."""


@contextmanager
def orthanc(folder: Path, users: dict[str, str] | None = None) -> Iterator[str]:
    """The address of an archive that keeps its data in ``folder``, on loopback, until the end of the block."""
    assert ORTHANC, "Debian's orthanc is not installed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": users or {},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}/dicom-web"
        finally:
            process.terminate()
            process.wait(20)


def write_series(folder: Path, count: int) -> str:
    """A series of the packaged brain with a bright ball in it, enlarged to ``count`` axial images; its study's UID."""
    folder.mkdir()
    brain = load_template()
    x, y, z = np.indices(brain.shape) - np.array([120, 110, 90])[:, None, None, None]
    brain[np.sqrt(x**2 + y**2 + z**2) < 18] = 1
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for place, level in enumerate(np.linspace(10, 145, count)):
        plane = zoom(brain[:, ::-1, round(level)].T, [SIDE / n for n in (brain.shape[1], brain.shape[0])], order=1)
        values = (4000 * plane.clip(0, 1)).astype("<u2")
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.PatientID = "CT", 2, place + 1, "P"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0.5 * place], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.Rows, ds.Columns, ds.SliceThickness = [0.4, 0.4], SIDE, SIDE, 0.5
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
        ds.WindowCenter, ds.WindowWidth = 2000, 4000
        ds.add_new("PixelData", "OW", values.tobytes())
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{place:04d}.dcm", enforce_file_format=True)
    return study


def measure(count: int) -> dict[str, object]:
    """Seconds and peak memory of the command, and what it said."""
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        study = write_series(place / "scan", count)
        AnomalyDetector(random_state=0).fit(f"{place}/scan[axial 0:{count}:10]").save_pretrained(place / "detector")
        (place / "archive").mkdir()
        with orthanc(place / "archive") as url:
            dicomweb.store(url, sorted((place / "scan").iterdir()))
            command = [sys.executable, "-c", "from oneshot_medad.cli import main; main()", "study"]
            command += [str(place / "detector"), "--dicomweb", url, "--study", study, "--store", "--json"]
            start = time.perf_counter()
            with (place / "said").open("w") as said:
                process = subprocess.Popen(command, stdout=said)
                _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            (row,) = json.loads((place / "said").read_text())["series"]
    return {
        "images": count,
        "seconds": round(seconds, 1),
        "seconds of processors": round(used.ru_utime + used.ru_stime, 1),
        "peak memory, GiB": round(used.ru_maxrss / 2**20, 2),
        "verdict": row["verdict"],
        "objects stored": row["stored"],
    }


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks study", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help=f"images of {SIDE} x {SIDE}")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found = measure(args.count)
    args.out.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(
        "| what | measured |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in found.items())
    )
