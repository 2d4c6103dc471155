"""Manifests of a picture archive, and what is fetched from it."""

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from dicomweb_server import serving

from oneshot_medad import archive
from oneshot_medad.archive import addresses, dicomweb
from oneshot_medad.archive.addresses import at_hand
from oneshot_medad.errors import ArchiveError, ConfigError, ImageFileError
from oneshot_medad.images.read import read_image
from oneshot_medad.studies.client import PREFIX

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.fixture
def pacs(tmp_path, monkeypatch):
    """Two studies: single images, a cine loop, a report and a segmentation."""
    monkeypatch.setattr(addresses, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    dicomweb._client.cache_clear()
    objects = []
    for study, series, uid, pixels, modality in (
        ("1.1", "1.1.1", "1.1.1.1", GREY, "MR"),
        ("1.1", "1.1.1", "1.1.1.2", GREY[::-1], "MR"),
        ("1.1", "1.1.2", "1.1.2.1", np.stack([GREY, GREY[:, ::-1]]), "US"),
        ("1.1", "1.1.3", "1.1.3.1", GREY, "SR"),
        ("1.2", "1.2.1", "1.2.1.1", GREY // 2, "MR"),
        ("1.2", "1.2.1", "1.2.1.2", GREY, "SEG"),
    ):
        path = write_dicom(tmp_path / f"{uid}.dcm", pixels, Modality=modality)
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, series, uid
        ds.file_meta.MediaStorageSOPInstanceUID = uid
        ds.save_as(path)
        objects.append(ds)
    with serving(objects) as service:
        service.files = tmp_path
        yield service
    dicomweb._client.cache_clear()


def uris(path):
    import pyarrow.parquet as pq

    return pq.read_table(path)["uri"].to_pylist()


def test_a_service_is_listed_in_pages_and_its_images_are_read_as_the_files(pacs, tmp_path):
    found = archive.make_manifest(pacs.url, tmp_path / "m.parquet")
    assert found.left_out == {"SEG": 1, "SR": 1}
    place = f"{pacs.url}/studies/%s/series/%s/instances/%s"
    expected = [
        place % ("1.1", "1.1.1", "1.1.1.1"),
        place % ("1.1", "1.1.1", "1.1.1.2"),
        *(place % ("1.1", "1.1.2", "1.1.2.1") + f"[frame {i}]" for i in range(2)),
        place % ("1.2", "1.2.1", "1.2.1.1"),
    ]
    assert uris(found.path) == expected
    pacs.asked.clear()
    with at_hand(expected) as places:
        assert len(pacs.asked) == 4  # the loop once
        for uri, got in zip(expected, places, strict=True):
            file = pacs.files / (uri.rsplit("/", 1)[1].split("[")[0] + ".dcm")
            wanted = read_image(f"{file}[{uri.split('[')[1]}" if "[" in uri else file)
            assert (read_image(got).pixels == wanted.pixels).all()


def test_a_study_or_series_alone(pacs, tmp_path):
    assert archive.make_manifest(f"{pacs.url}/studies/1.2/", tmp_path / "m.parquet").images == 1
    assert archive.make_manifest(f"{pacs.url}/studies/1.1/series/1.1.2", tmp_path / "m.parquet").images == 2
    with pytest.raises(ConfigError, match="https://pacs/dicom-web"):
        archive.make_manifest("https://", tmp_path / "m.parquet")
    with pytest.raises(ArchiveError, match="404"):
        archive.make_manifest(pacs.url.replace("dicom-web", "other"), tmp_path / "n.parquet")


def test_what_fails_for_a_moment_is_asked_again_and_what_is_gone_is_said(pacs):
    good = f"{pacs.url}/studies/1.2/series/1.2.1/instances/1.2.1.1"
    pacs.failures = 2
    with at_hand([good]) as places:
        assert read_image(places[0]).size == (20, 30)
    pacs.failures = 3
    with at_hand([good]) as places:
        assert isinstance(places[0], ImageFileError)
        assert "503" in str(places[0])
    pacs.asked.clear()
    with at_hand([good + "9", f"{pacs.url}/studies/1.2"]) as places:
        assert "Got no file" in str(places[0])
        assert "no address of a DICOMweb object" in str(places[1])
    assert len(pacs.asked) == 1


def test_credentials_come_from_the_environment(pacs, tmp_path, monkeypatch):
    pacs.token = "not-for-anyone"
    with pytest.raises(ArchiveError, match="401") as caught:
        archive.make_manifest(pacs.url, tmp_path / "m.parquet")
    monkeypatch.setenv(PREFIX + "TOKEN", pacs.token)
    dicomweb._client.cache_clear()
    found = archive.make_manifest(pacs.url, tmp_path / "m.parquet")
    assert found.images == 5
    assert pacs.token not in str(caught.value) + "".join(uris(found.path))
