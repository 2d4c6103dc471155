"""What is written goes into a real picture archive and comes back: Orthanc with its DICOMweb plugin, on loopback."""

import base64
import csv
import re
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from dicom_files import write_dicom
from pydicom.uid import generate_uid
from series_files import SERIES, STUDY, write_series

from benchmarks.study import ORTHANC, PLUGIN
from benchmarks.study import orthanc as serving
from oneshot_medad import AnomalyDetector, archive
from oneshot_medad.archive.addresses import at_hand
from oneshot_medad.cli import main
from oneshot_medad.errors import ArchiveError, ConfigError
from oneshot_medad.images.read import read_image
from oneshot_medad.studies import dicomweb
from oneshot_medad.studies.client import client_of

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.skipif(not ORTHANC or not PLUGIN, reason="Debian's orthanc and orthanc-dicomweb are not installed"),
]
SECRET = "not-for-anyone"
MAP, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("orthanc"), {"reader": SECRET}) as url:
        yield url


@pytest.fixture
def credentials(monkeypatch):
    monkeypatch.setenv(dicomweb.PREFIX + "USER", "reader")
    monkeypatch.setenv(dicomweb.PREFIX + "PASSWORD", SECRET)


def write_scan(folder, **about):
    """Twelve slices of noise; in the middle of some lies something bright."""
    rng = np.random.default_rng(0)
    planes = rng.integers(20, 40, (12, 32, 24)).astype(np.uint8)
    planes[4:8, 10:20, 8:16] = 250
    window = {"WindowCenter": 128, "WindowWidth": 256}
    return write_series(folder, planes, step=4.0, spacing=(1.5, 1.5), **window, **about)


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan")


@pytest.fixture
def saved(fitted, stub, tmp_path):
    detector = AnomalyDetector()
    detector.__dict__.update({**fitted.__dict__, "intensity_range": None})
    detector.set_threshold(0.2)
    return str(detector.save_pretrained(tmp_path / "detector"))


def instances(url):
    client = client_of(url)
    return client, client.search_for_instances(study_instance_uid=STUDY)


def test_a_study_is_judged_and_what_was_found_stored_beside_it(
    orthanc, credentials, scan, saved, tmp_path, capsys, monkeypatch
):
    assert len(dicomweb.store(orthanc, scan)) == 12
    arguments = ["oneshot-medad", "study", saved, "--dicomweb", orthanc, "--study", STUDY]
    monkeypatch.setattr("sys.argv", [*arguments, "--store", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as done:
        main()
    said = capsys.readouterr()
    assert done.value.code == 0, said
    assert "series 2 (CT, 12 images): ABNORMAL" in said.out
    assert "2 object(s) stored" in said.out
    assert SECRET not in said.out + said.err
    (row,) = csv.DictReader((tmp_path / "out/study.csv").open())
    assert (row["series"], row["verdict"], row["regions"]) == (SERIES, "abnormal", "1")
    assert (tmp_path / f"out/{SERIES}-1.nii.gz").exists()
    client, found = instances(orthanc)
    kinds = [one["00080016"]["Value"][0] for one in found]
    assert kinds.count(MAP) == kinds.count(SEGMENTATION) == 1
    assert len(kinds) == 14

    def back(kind):
        about = next(one for one in found if one["00080016"]["Value"][0] == kind)
        uids = [about[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
        return client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),))

    from highdicom.pm import ParametricMap
    from highdicom.seg import Segmentation

    heat = ParametricMap.from_dataset(back(MAP))
    assert heat.NumberOfFrames == 12
    assert heat.FrameOfReferenceUID == pydicom.dcmread(scan[0]).FrameOfReferenceUID
    volume = heat.get_volume()
    assert volume.array.shape == (12, 32, 24)
    segments = Segmentation.from_dataset(back(SEGMENTATION))
    mask = segments.get_pixels_by_source_instance([pydicom.dcmread(path).SOPInstanceUID for path in scan])[..., 0]
    assert mask[4:8, 10:20, 8:16].all()
    assert mask.sum() == 4 * 10 * 8
    # what was stored is not judged again
    again = list(dicomweb.judge_study(AnomalyDetector.from_pretrained(saved), orthanc, STUDY))
    assert [one.reason for one in again if not one.volumes] == ["made by this package"] * 1 + ["no images (SEG)"]
    assert [one.verdict for one in again if one.volumes] == ["abnormal"]


def test_an_archive_is_listed_and_its_images_are_fetched(orthanc, credentials, saved, tmp_path):
    own = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    files = write_scan(tmp_path / "own", **own)
    dicomweb.store(orthanc, files)
    list(dicomweb.judge_study(AnomalyDetector.from_pretrained(saved), orthanc, own["StudyInstanceUID"], store=True))
    found = archive.make_manifest(f"{orthanc}/studies/{own['StudyInstanceUID']}", tmp_path / "m.parquet")
    assert found.images == 12  # and no maps or segmentations of this package
    assert sum(found.left_out.values()) == 2
    uris = pq.read_table(found.path)["uri"].to_pylist()
    there = {pydicom.dcmread(file).SOPInstanceUID: read_image(file).pixels for file in files}
    with at_hand(uris) as places:
        for uri, place in zip(uris, places, strict=True):
            assert (read_image(place).pixels == there[uri.rsplit("/", 1)[1]]).all()
    assert SECRET not in "".join(uris)


def test_what_goes_wrong_is_said_without_credentials(orthanc, saved, monkeypatch):
    detector = AnomalyDetector.from_pretrained(saved)
    monkeypatch.setenv("NETRC", "/dev/null")
    with pytest.raises(ArchiveError, match=r"401 from http://127.*_TOKEN"):
        list(dicomweb.judge_study(detector, orthanc, STUDY))
    with pytest.raises(ConfigError, match="credentials in the address of 127") as caught:
        list(dicomweb.judge_study(detector, orthanc.replace("//", f"//reader:{SECRET}@"), STUDY))
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="wanted one like"):
        list(dicomweb.judge_study(detector, "pacs.example", STUDY))
    with pytest.raises(ArchiveError, match="Cannot reach"):
        list(dicomweb.judge_study(detector, "http://127.0.0.1:9/dicom-web", STUDY))
    monkeypatch.setenv(dicomweb.PREFIX + "USER", "reader")
    monkeypatch.setenv(dicomweb.PREFIX + "PASSWORD", SECRET)
    with pytest.raises(ArchiveError, match=r"no series of study 1\.2\.3"):
        list(dicomweb.judge_study(detector, orthanc, "1.2.3"))
    assert base64.b64encode(f"reader:{SECRET}".encode()).decode() not in repr(client_of(orthanc))


def test_credentials_may_stand_in_netrc(orthanc, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login reader password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert client_of(orthanc).search_for_studies() is not None


def test_single_images_get_captures_and_segmentations(orthanc, credentials, saved, tmp_path):
    study = generate_uid()
    about = {"StudyInstanceUID": study, "SeriesInstanceUID": generate_uid(), "Modality": "DX", "PatientID": "P-8"}
    image = np.random.default_rng(0).integers(0, 255, (32, 24)).astype(np.uint8)
    dicomweb.store(orthanc, [write_dicom(tmp_path / "a.dcm", image, **about)])
    (one,) = dicomweb.judge_study(AnomalyDetector.from_pretrained(saved), orthanc, study, store=True, folder=tmp_path)
    assert (one.verdict, one.modality, one.volumes, len(one.stored)) == ("abnormal", "DX", [], 2), one.reason
    assert (tmp_path / one.series / "000000.dcm").exists()
    found = client_of(orthanc).search_for_instances(study_instance_uid=study)
    assert sorted(one["00080060"]["Value"][0] for one in found) == ["DX", "OT", "SEG"]


def test_the_page_on_archives_runs(orthanc, credentials, saved, tmp_path, monkeypatch, capsys):
    own = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    dicomweb.store(orthanc, write_scan(tmp_path / "own", **own))
    page = (Path(__file__).parents[2] / "docs/how-to/pacs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for said, meant in (
        ("https://pacs.example/dicom-web", orthanc),
        ("1.2.840.113", own["StudyInstanceUID"]),
        ("brain-detector", saved),
    ):
        assert said in code
        code = code.replace(said, meant)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "pacs.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "CT  abnormal" in said
    assert "<Volume" in said


def test_a_token_is_sent_as_bearer(monkeypatch):
    monkeypatch.setenv(dicomweb.PREFIX + "TOKEN", "abc")
    session = client_of("http://127.0.0.1:9/dicom-web")._session
    request = session.auth(urllib_request())
    assert request.headers["Authorization"] == "Bearer abc"


def urllib_request():
    found = urllib.request.Request("http://127.0.0.1:9")
    found.headers = {}
    return found
