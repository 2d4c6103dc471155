"""Parametric maps and segmentations of a series: right in every reader, and to the standard's checker."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import PIL.Image
import pydicom
import pytest
from dicom_files import write_dicom
from pydicom.uid import DigitalXRayImageStorageForPresentation
from series_files import CORONAL, FRAME, STUDY, write_enhanced, write_series

from oneshot_medad import Predictions, slices
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.images.expand import expand, name_of
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import assemble

SHAPE = (6, 20, 16)  # planes, rows, columns
ABOUT = {
    **{"PatientID": "P-7", "PatientName": "Test^Case", "PatientBirthDate": "", "PatientSex": "O", "StudyID": "1"},
    **{"StudyDate": "20200101", "StudyTime": "120000", "AccessionNumber": "", "ReferringPhysicianName": ""},
    **{"ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "InstanceNumber": 1},
}


def judged(place, threshold=0.5, score=1.0):
    sources = slices(place)
    maps = [np.full((SHAPE[1], SHAPE[2]), 0.01 * source.index, np.float32) for source in sources]
    for plane in maps[2:4]:
        plane[4:9, 5:8] = 1.25
    (volume,) = assemble(
        sources, np.full(len(sources), score), maps, Limits(threshold), provenance={"detector_sha256": "a" * 64}
    )
    return volume, maps


@pytest.fixture(params=["series", "enhanced"])
def scan(request, tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    if request.param == "series":
        paths = write_series(tmp_path / "scan", planes, spacing=(1, 1))
        return tmp_path / "scan", [pydicom.dcmread(path) for path in paths]
    path = write_enhanced(tmp_path / "scan.dcm", planes, spacing=(1, 1), order=[3, 1, 0, 2, 5, 4], **ABOUT)
    return path, [pydicom.dcmread(path)]


def test_a_parametric_map_holds_the_raw_heatmap(scan, tmp_path):
    place, sources = scan
    volume, maps = judged(place)
    path = volume.save_parametric_map(tmp_path / "map.dcm")
    ds = pydicom.dcmread(path)
    assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.PatientID) == (STUDY, FRAME, "P-7")
    assert ds.pixel_array.dtype == np.float32
    found = hd.pm.ParametricMap.from_dataset(ds)
    stack = found.get_volume(apply_real_world_transform=False)
    # by position, so whatever the order of the frames
    for index, plane in enumerate(maps):
        at = stack.map_reference_to_indices(np.array([[0.0, 0.0, 3.0 * index]]), round_output=True)[0, 0]
        assert np.array_equal(stack.array[at], plane)
    (mapping,) = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    window = ds.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    assert (float(window.WindowCenter), float(window.WindowWidth)) == (0.5, 1.0)
    referred = {
        image.ReferencedSOPInstanceUID
        for frame in ds.PerFrameFunctionalGroupsSequence
        for image in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert referred == {source.SOPInstanceUID for source in sources}
    assert "abnormal: score 1, threshold 0.5" in ds.ImageComments


@pytest.mark.parametrize("fractional", [False, True])
def test_a_segmentation_holds_the_regions(scan, tmp_path, fractional):
    place, sources = scan
    volume, _ = judged(place)
    ds = pydicom.dcmread(volume.save_segmentation(tmp_path / "seg.dcm", fractional=fractional))
    assert ds.SegmentationType == ("FRACTIONAL" if fractional else "BINARY")
    found = hd.seg.Segmentation.from_dataset(ds)
    expected = np.zeros(SHAPE)
    expected[2:4, 4:9, 5:8] = 1 / (1 + np.exp(-4 * 0.75)) if fractional else 1
    if len(sources) > 1:
        values = found.get_pixels_by_source_instance([one.SOPInstanceUID for one in sources])[..., 0]
    else:
        values = found.get_pixels_by_source_frame(
            sources[0].SOPInstanceUID, [3, 2, 4, 1, 6, 5], assert_missing_frames_are_empty=True
        )[..., 0]
    assert np.allclose(values, expected, atol=1 / 255)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_objects_pass_the_standards_checker(scan, tmp_path):
    volume, _ = judged(scan[0])
    for path, kind in (
        (volume.save_parametric_map(tmp_path / "map.dcm"), "ParametricMap"),
        (volume.save_segmentation(tmp_path / "seg.dcm"), "Segmentation"),
        (volume.save_segmentation(tmp_path / "frac.dcm", fractional=True), "Segmentation"),
    ):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert kind in said
        assert "Error" not in said, said


def test_what_gets_no_object(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    write_series(tmp_path / "scan", planes, spacing=(1, 1))
    volume, _ = judged(tmp_path / "scan", score=0.1)
    with pytest.raises(ImageError, match=r"no place stands out \(it is called normal\)"):
        volume.save_segmentation(tmp_path / "seg.dcm")
    object.__setattr__(volume, "place", tmp_path / "scan.nii")
    with pytest.raises(ConfigError, match="no DICOM series"):
        volume.save_parametric_map(tmp_path / "map.dcm")


def test_a_series_with_a_gap_and_without_thickness(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    write_series(tmp_path / "scan", planes, spacing=(1, 1), orientation=CORONAL)[4].unlink()
    volume, _ = judged(tmp_path / "scan")
    ds = pydicom.dcmread(volume.save_parametric_map(tmp_path / "map.dcm"))
    assert ds.NumberOfFrames == 5
    assert ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 3


def captures(sources, folder):
    predictions = Predictions(
        np.full(len(sources), 0.7),
        [np.full((SHAPE[1], SHAPE[2]), 0.7, np.float32)] * len(sources),
        0.5,
        [name_of(source, 0) for source in sources],
        sources=list(sources),
    )
    return [pydicom.dcmread(path) for path in predictions.save_heatmaps(folder, format="dicom")]


def test_captures_are_numbered_as_the_slices_lie(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    paths = write_series(tmp_path / "scan", planes, spacing=(1, 1))
    found = captures(expand(sorted(paths)), tmp_path / "captures")
    order = sorted(found, key=lambda ds: ds.InstanceNumber)
    assert [ds.InstanceNumber for ds in order] == [1, 2, 3, 4, 5, 6]
    assert [ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in order] == [
        pydicom.dcmread(path).SOPInstanceUID for path in paths
    ]
    assert len({ds.SeriesInstanceUID for ds in found}) == 1


def test_captures_say_how_a_radiograph_was_calibrated(tmp_path):
    image = np.arange(SHAPE[1] * SHAPE[2], dtype=np.uint16).reshape(SHAPE[1:])
    path = write_dicom(
        tmp_path / "a.dcm", image, ImagerPixelSpacing=[0.2, 0.2], EstimatedRadiographicMagnificationFactor=1.25
    )
    predictions = Predictions(
        np.array([0.7]), [np.ones(SHAPE[1:], np.float32)], 0.5, [str(path)], sources=[path], spacings=[(0.16, 0.16)]
    )
    ds = pydicom.dcmread(predictions.save_heatmaps(tmp_path / "captures", format="dicom")[0])
    assert [float(value) for value in ds.PixelSpacing] == [0.16, 0.16]
    assert ds.PixelSpacingCalibrationType == "GEOMETRY"
    assert "1.25" in ds.PixelSpacingCalibrationDescription


@pytest.mark.filterwarnings("ignore")  # pydicom's, on what is wrong
def test_headers_that_no_object_can_be_made_of_say_so(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    for path in write_series(tmp_path / "scan", planes, spacing=(1, 1)):
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID
        ds.save_as(path)
    volume, _ = judged(tmp_path / "scan")
    with pytest.raises(ImageError, match=r"no DICOM object can be made.*Frame Of Reference.*Write NIfTI"):
        volume.save_parametric_map(tmp_path / "map.dcm")


def test_one_of_several_volumes_in_a_file_is_refused_by_name(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, (12, *SHAPE[1:])).astype(np.uint16)
    path = write_enhanced(tmp_path / "scan.dcm", planes, spacing=(1, 1), **ABOUT)
    ds = pydicom.dcmread(path)
    frames = ds.PerFrameFunctionalGroupsSequence
    for first, second in zip(frames[:6], frames[6:], strict=True):  # two stacks in one place
        second.PlanePositionSequence = first.PlanePositionSequence
        second.FrameContentSequence[0].StackID = "2"
    ds.save_as(path)
    sources, maps = expand(path), [np.ones(SHAPE[1:], np.float32)] * 12
    volumes = list(assemble(sources, np.ones(12), maps, Limits(0.5), provenance={"detector_sha256": "a" * 64}))
    assert len(volumes) == 2
    for volume in volumes:
        for save in (volume.save_parametric_map, volume.save_segmentation):
            with pytest.raises(ConfigError, match=r"one of several volumes in a file of 12 frames.*NIfTI"):
                save(tmp_path / "object.dcm")
        assert volume.save(tmp_path / "heat.nii.gz").is_file()


def single(path, score=1.0, frame=None):
    """The prediction of one image of ``SHAPE``, with a bright patch in its heatmap."""
    heatmap = np.full(SHAPE[1:], 0.01, np.float32)
    heatmap[4:9, 5:8] = 1.25
    about = {"detector_sha256": "a" * 64, "threshold_rule": "expected"}
    (source,) = expand(path) if frame is None else [expand(path)[frame]]
    return Predictions(
        np.array([score]), [heatmap], 0.5, [name_of(source, 0)], sources=[source], provenance=about
    ), heatmap


@pytest.fixture
def lone_slice(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, (1, *SHAPE[1:])).astype(np.uint16)
    (path,) = write_series(tmp_path / "scan", planes, spacing=(1, 1), SliceThickness=3, Laterality="L")
    return path


@pytest.fixture
def radiograph(tmp_path):
    image = np.random.default_rng(0).integers(0, 4000, SHAPE[1:]).astype(np.uint16)
    about = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": STUDY + ".9", "Modality": "DX", "PixelSpacing": [1, 1]}
    kind = {"SOPClassUID": DigitalXRayImageStorageForPresentation, "ImageType": ["ORIGINAL", "PRIMARY"]}
    return write_dicom(tmp_path / "x.dcm", image, **{**ABOUT, **about, **kind})


def test_a_lone_slice_gets_a_map_and_a_segmentation(lone_slice, tmp_path):
    predictions, heatmap = single(lone_slice)
    ds = pydicom.dcmread(predictions.save_parametric_map(0, tmp_path / "map.dcm"))
    assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.NumberOfFrames) == (STUDY, FRAME, 1)
    assert np.array_equal(hd.pm.ParametricMap.from_dataset(ds).get_volume().array[0], heatmap)
    assert "abnormal: score 1, threshold 0.5 (expected)" in ds.ImageComments
    files = predictions.save_objects(0, tmp_path / "both")
    assert [path.name for path in files] == ["both.map.dcm", "both.seg.dcm"]
    found = hd.seg.Segmentation.from_dataset(pydicom.dcmread(files[1]))
    uid = pydicom.dcmread(lone_slice).SOPInstanceUID
    assert np.array_equal(found.get_pixels_by_source_instance([uid])[0, ..., 0], heatmap > 0.5)


def test_a_radiograph_gets_a_segmentation_alone(radiograph, tmp_path):
    predictions, heatmap = single(radiograph)
    with pytest.raises(ConfigError, match=r"no frame of reference.*standard wants one.*segmentation"):
        predictions.save_parametric_map(0, tmp_path / "map.dcm")
    (path,) = predictions.save_objects(0, tmp_path / "both")
    found = hd.seg.Segmentation.from_dataset(pydicom.dcmread(path))
    uid = pydicom.dcmread(radiograph).SOPInstanceUID
    assert np.array_equal(found.get_pixels_by_source_instance([uid])[0, ..., 0], heatmap > 0.5)
    assert "FrameOfReferenceUID" not in found


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_objects_of_single_images_pass_the_standards_checker(lone_slice, radiograph, tmp_path):
    files = single(lone_slice)[0].save_objects(0, tmp_path / "slice") + single(radiograph)[0].save_objects(
        0, tmp_path / "radiograph"
    )
    files.append(single(radiograph)[0].save_segmentation(0, tmp_path / "fractions.dcm", fractional=True))
    assert len(files) == 4
    for path in files:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stdout + done.stderr, (path.name, done.stderr)


def test_single_images_that_get_no_object_say_why(lone_slice, radiograph, tmp_path, sample):
    def refused(predictions, match, error=ConfigError):
        with pytest.raises(error, match=match):
            predictions.save_segmentation(0, tmp_path / "seg.dcm")

    refused(single(lone_slice, score=0.1)[0], r"no place stands out \(it is called normal\)", ImageError)
    refused(single(lone_slice, score=np.nan)[0], "nothing can be said.*not read", ImageError)
    movie = write_dicom(tmp_path / "us.dcm", np.zeros((3, *SHAPE[1:]), np.uint8) + 7, Modality="US")
    refused(single(movie, frame=1)[0], r"one of 3 frames that have no place")
    predictions, heatmap = single(lone_slice)
    refused(Predictions(np.ones(1), [heatmap], 0.5, ["0"], sources=[sample.images[0]]), "read from no file")
    PIL.Image.fromarray(np.zeros(SHAPE[1:], np.uint8)).save(tmp_path / "a.png")
    refused(Predictions(np.ones(1), [heatmap], 0.5, ["a"], sources=[tmp_path / "a.png"]), "no DICOM file")
    refused(Predictions(np.ones(1), [heatmap[1:]], 0.5, ["a"], sources=[lone_slice]), "20 x 16 pixels", ImageError)
    ds = pydicom.dcmread(lone_slice)
    del ds.SliceThickness
    ds.save_as(lone_slice)
    refused(predictions, "does not say how thick")
    write_series(tmp_path / "volume", np.zeros(SHAPE, np.uint8), spacing=(1, 1))
    refused(single(tmp_path / "volume", frame=2)[0], "a slice of a volume.*volumes()")
