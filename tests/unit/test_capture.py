"""Captures say whose they are and what they show, wherever the source lies and whatever it lacks."""

import gzip
import shutil
import zipfile

import numpy as np
import pydicom
import pytest
from dicom_files import PACKAGED, write_dicom

from oneshot_medad import Predictions, slices
from oneshot_medad.images.expand import expand, name_of

IMAGE = np.arange(96, dtype=np.uint8).reshape(8, 12) * 2
WHO = {"PatientID": "P-7", "PatientName": "Test^Case", "StudyInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4"}


def capture(source, folder):
    sources = source if isinstance(source, list) else [source]
    predictions = Predictions(
        np.full(len(sources), 0.7),
        [np.full((8, 12), 0.7, np.float32)] * len(sources),
        0.5,
        [name_of(source, 0) for source in sources],
        sources=sources,
    )
    return [pydicom.dcmread(path) for path in predictions.save_heatmaps(folder, format="dicom")]


@pytest.fixture
def scan(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.stack([IMAGE, IMAGE[::-1], 255 - IMAGE]), **WHO)
    shutil.copy(path, tmp_path / "bare")
    (tmp_path / "bare").write_bytes(path.read_bytes()[132:])
    (tmp_path / "b.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(path, "deep/a.dcm")
    return path


@pytest.mark.parametrize("where", ["a.dcm", "bare", "b.dcm.gz", "c.zip"])
@pytest.mark.parametrize("as_text", [False, True])
def test_wherever_the_source_lies(scan, tmp_path, where, as_text):
    sources = expand(tmp_path / where)
    if as_text and where != "c.zip":  # the names of archives' members are no paths
        sources = [str(source) for source in sources]
    found = capture(list(sources), tmp_path / "captures")
    for frame, ds in enumerate(found, 1):
        assert {name: ds[name].value for name in ("PatientID", "PatientName", "StudyInstanceUID")} == {
            name: WHO[name] for name in ("PatientID", "PatientName", "StudyInstanceUID")
        }
        (reference,) = ds.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == "1.2.3.4"
        assert reference.ReferencedFrameNumber == frame


def test_a_file_of_one_frame_needs_no_number(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, **WHO)
    for ds in capture([path, *slices(path)], tmp_path / "captures"):
        assert "ReferencedFrameNumber" not in ds.SourceImageSequence[0]


@pytest.mark.parametrize("lacking", [*WHO, "SOPClassUID"])
def test_what_the_source_lacks_costs_that_attribute_alone(tmp_path, lacking):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, **WHO)
    ds = pydicom.dcmread(path)
    del ds[lacking]
    ds.save_as(path)
    (found,) = capture(path, tmp_path / "captures")
    kept = {"PatientID", "PatientName"} - {lacking}
    assert all(found[name].value == WHO[name] for name in kept)
    assert (found.StudyInstanceUID == "1.2.3") == (lacking != "StudyInstanceUID")
    assert ("SourceImageSequence" in found) == (lacking != "SOPInstanceUID")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("PatientBirthDate", "19700101", "1970-1-1"),
        ("StudyDate", "20200101", "tomorrow"),
        ("StudyTime", "120000", "noon  "),
        ("PatientSex", "F ", "\xff\xfe"),
        ("SpecificCharacterSet", "ISO_IR 100", "NOTHING 00"),
        ("LossyImageCompressionRatio", "10", "??"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's, on what is wrong
def test_nonsense_costs_no_capture(tmp_path, name, old, new):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, **WHO, **{name: old.strip()})
    data = path.read_bytes()
    path.write_bytes(data.replace(old.encode("latin-1"), new.encode("latin-1")))
    (found,) = capture(path, tmp_path / "captures")
    assert (found.PatientID, found.StudyInstanceUID) == ("P-7", "1.2.3")
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"


def test_names_of_every_script(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, **WHO, SpecificCharacterSet="ISO_IR 192")
    ds = pydicom.dcmread(path)
    ds.PatientName = "Müller^Jürgen=山田^太郎"
    ds.save_as(path)
    (found,) = capture(path, tmp_path / "captures")
    assert str(found.PatientName) == "Müller^Jürgen=山田^太郎"


def test_sources_that_are_gone_or_no_dicom(tmp_path):
    (found,) = capture(tmp_path / "gone.dcm", tmp_path / "captures")
    assert found.PatientID == ""
    (found,) = capture(PACKAGED / "README.txt", tmp_path / "captures")
    assert "SourceImageSequence" not in found
    (found,) = capture(IMAGE, tmp_path / "captures")
    assert found.StudyInstanceUID
