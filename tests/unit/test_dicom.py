import shutil
import sys

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import PACKAGED, dataset, table, write_dicom
from PIL import Image

from oneshot_medad import slices
from oneshot_medad.errors import ExtraError, ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

RAMP = np.array([[0, 50, 99], [100, 200, 4095]], np.uint16)


def grey(path, window=None):
    pixels = read_image(path, intensity_range=window).pixels
    assert pixels.shape[0] == 3
    assert torch.equal(pixels[0], pixels[2])
    return pixels[0].numpy().astype(float)


@pytest.fixture
def dicom(tmp_path):
    return lambda pixels=RAMP, **attributes: write_dicom(tmp_path / "x.dcm", pixels, **attributes)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        # without a window the stored bits are the range, whatever values there are
        ({"BitsStored": 12}, RAMP / 4095),
        ({}, RAMP / 65535),
        ({"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": -1000}, RAMP / 4095),
        ({"BitsStored": 12, "RescaleSlope": -1, "RescaleIntercept": 5}, 1 - RAMP / 4095),
        ({"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, 1 - RAMP / 4095),
        # (x - (100 - 0.5)) / (201 - 1) + 0.5, cut to 0 and 1
        ({"WindowCenter": 100, "WindowWidth": 201}, [[0.0025, 0.2525, 0.4975], [0.5025, 1, 1]]),
        ({"WindowCenter": [100, 7], "WindowWidth": [201, 3]}, [[0.0025, 0.2525, 0.4975], [0.5025, 1, 1]]),
        (
            {"WindowCenter": 100, "WindowWidth": 201, "PhotometricInterpretation": "MONOCHROME1"},
            [[0.9975, 0.7475, 0.5025], [0.4975, 0, 0]],
        ),
        # the window is in rescaled values: 2 x - 100 at x = 0, 50, 99, 100, 200
        (
            {"WindowCenter": 0, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
            | {"RescaleSlope": 2, "RescaleIntercept": -100},
            [[0, 0.5, 0.99], [1, 1, 1]],
        ),
        (
            {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "SIGMOID"},
            [[1 / (1 + np.e**2), 1 / (1 + np.e), 1 / (1 + np.e**0.02)], [0.5, 1 / (1 + np.e**-2), 1]],
        ),
        # a table goes before a window; what lies outside takes its ends
        (
            {"VOILUTSequence": [table([0, 1000, 2000, 4095], 98, 12)], "WindowCenter": 100, "WindowWidth": 201},
            [[0, 0, 1000 / 4095], [2000 / 4095, 1, 1]],
        ),
        # eight bits, more than 256 entries
        ({"VOILUTSequence": [table([*range(256), *[255] * 44], 0, 8)]}, np.minimum(RAMP, 255) / 255),
        (
            {"ModalityLUTSequence": [table([0, 1000, 2000, 4095], 98, 12, ModalityLUTType="US")]},
            [[0, 0, 1000 / 4095], [2000 / 4095, 1, 1]],
        ),
    ],
)
def test_grey_values(dicom, attributes, expected):
    np.testing.assert_allclose(grey(dicom(**attributes)), expected, atol=2e-6)


def test_signed_values_and_bits_that_are_not_stored(dicom):
    signed = np.array([[-2048, -1], [0, 2047]], np.int16)
    np.testing.assert_allclose(grey(dicom(signed, BitsStored=12)), (signed + 2048.0) / 4095, atol=1e-6)
    flagged = RAMP | 0x7000  # old files keep overlays in the bits above
    np.testing.assert_allclose(grey(dicom(flagged, BitsStored=12)), RAMP / 4095, atol=1e-6)


def test_the_detectors_range_replaces_the_window_in_rescaled_values(dicom):
    path = dicom(RescaleSlope=1, RescaleIntercept=-100, WindowCenter=100, WindowWidth=201)
    np.testing.assert_allclose(grey(path, (-100, 100)), [[0, 0.25, 0.495], [0.5, 1, 1]], atol=1e-6)
    inverted = dicom(RescaleIntercept=-100, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(grey(inverted, (-100, 100)), [[1, 0.75, 0.505], [0.5, 0, 0]], atol=1e-6)


def test_empty_windows_are_none(dicom):
    path = dicom(BitsStored=12, WindowCenter=None, WindowWidth=None)
    np.testing.assert_allclose(grey(path), RAMP / 4095, atol=1e-6)


def test_floats_need_a_range(dicom):
    values = np.array([[0.5, 1.5], [2.5, np.pi]], np.float32)
    path = dicom(values, FloatPixelData=values.tobytes())
    with pytest.raises(ImageTypeError, match=r"without a window.*intensity_range"):
        read_image(path)
    np.testing.assert_allclose(grey(path, (0.5, 2.5)), [[0, 0.5], [1, 1]])


def test_palettes_become_colour(dicom):
    levels = {"Red": [0, 65535, 0, 30000], "Green": [0, 0, 65535, 20000], "Blue": [0, 0, 0, 10000]}
    attributes = {f"{name}PaletteColorLookupTableDescriptor": [4, 0, 16] for name in levels}
    attributes |= {
        f"{name}PaletteColorLookupTableData": np.asarray(values, "<u2").tobytes() for name, values in levels.items()
    }
    path = dicom(np.array([[0, 1], [2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **attributes)
    expected = np.array([list(levels.values())]).reshape(3, 2, 2) / 65535
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-6)


def test_colour_bars_in_every_encoding():
    """One picture of ten bars, each ten rows high, that pydicom ships in many encodings."""
    bars = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255)]
    bars += [(0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)]
    exact = ["SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_gdcm_KY.dcm"]
    lossy = ["SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm"]
    for name in exact + lossy:
        pixels = read_image(PACKAGED / name).pixels[:, 5::10, 50].T * 255
        np.testing.assert_allclose(pixels, bars, atol=1e-4 if name in exact else 5, err_msg=name)


@pytest.mark.filterwarnings("ignore:The pixel data is 8320 bytes")
def test_one_scan_in_every_transfer_syntax():
    names = ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"]
    first = read_image(PACKAGED / "MR_small.dcm")
    assert first.spacing == (0.3125, 0.3125)
    stored = pydicom.dcmread(PACKAGED / "MR_small.dcm").pixel_array.astype(float)
    expected = ((stored - 599.5) / 1599 + 0.5).clip(0, 1)  # its window is 600, 1600
    np.testing.assert_allclose(first.pixels[0], expected, atol=1e-6)
    for name in names:
        assert torch.equal(read_image(PACKAGED / f"MR_small_{name}.dcm").pixels, first.pixels), name


def test_the_same_pixels_as_png_and_dicom_give_the_same_tensor(dicom, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    torch.testing.assert_close(read_image(dicom(deep)).pixels, read_image(tmp_path / "deep.png").pixels)
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    path = dicom(colour, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    torch.testing.assert_close(read_image(path).pixels, read_image(colour).pixels)


def test_spacing_is_of_rows_and_columns(dicom):
    assert read_image(dicom()).spacing is None
    assert read_image(dicom(ImagerPixelSpacing=[0.2, 0.1])).spacing == (0.2, 0.1)
    assert read_image(dicom(ImagerPixelSpacing=[0.2, 0.1], PixelSpacing=[0.4, 0.3])).spacing == (0.4, 0.3)


def test_frames_are_images_of_their_own(dicom):
    path = dicom(np.stack([RAMP, RAMP[::-1], RAMP * 0]), BitsStored=12)
    sources = expand(path)
    assert [str(source) for source in sources] == [f"{path}[frame {i}]" for i in range(3)]
    assert slices(path, indices=[1]) == sources[1:2]
    np.testing.assert_allclose(grey(sources[1]), RAMP[::-1] / 4095, atol=1e-6)
    with pytest.raises(ImageFileError, match="3 images"):
        read_image(path)
    with pytest.raises(ImageError, match="0 to 2"):
        slices(path, indices=[3])
    with pytest.raises(ImageError, match="axis='axial'; wanted one of 'frame'"):
        slices(path, axis="axial")
    assert len(expand(PACKAGED / "SC_rgb_rle_2frame.dcm")) == 2


def test_enhanced_files_say_it_per_frame(dicom):
    def value(slope):
        return [dataset(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")]

    path = dicom(
        np.stack([RAMP, RAMP]),
        SharedFunctionalGroupsSequence=[
            dataset(
                FrameVOILUTSequence=[dataset(WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT")],
                PixelMeasuresSequence=[dataset(PixelSpacing=[0.4, 0.3])],
            )
        ],
        PerFrameFunctionalGroupsSequence=[dataset(PixelValueTransformationSequence=value(s)) for s in (1, 2)],
    )
    first, second = expand(path)
    np.testing.assert_allclose(grey(first), [[0, 0.25, 0.495], [0.5, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(grey(second), [[0, 0.5, 0.99], [1, 1, 1]], atol=1e-6)
    assert read_image(second).spacing == (0.4, 0.3)


def test_files_are_known_by_suffix_or_by_content(tmp_path):
    for name in ("a.IMA", "b", "1.2.840.10008", "d.png", "DICOMDIR"):
        shutil.copy(PACKAGED / "MR_small.dcm", tmp_path / name)
    (tmp_path / "README").write_text("no image")
    assert [source.name for source in expand(tmp_path)] == ["1.2.840.10008", "a.IMA", "b", "d.png"]
    first, *others = (read_image(source).pixels for source in expand(tmp_path))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MR_truncated.dcm", "less than expected"),
        ("no_meta.dcm", "DICM"),
        ("test-SR.dcm", "without a picture .SR, Comprehensive SR Storage"),
        ("JPEG-lossy.dcm", "Unable to decode"),
    ],
)
def test_files_that_cannot_be_read(name, message):
    (source,) = expand(PACKAGED / name)  # says nothing yet
    with pytest.raises(ImageFileError, match=message) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_too_many_pixels_are_refused(dicom, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ImageFileError, match="2 x 3 = 6 pixels; wanted at most 5"):
        read_image(dicom())
    with pytest.raises(ImageFileError, match="claims to hold 999999"):
        slices(dicom(NumberOfFrames=999999, Rows=1))


def test_without_pydicom_the_error_says_what_to_install(dicom, monkeypatch):
    path = dicom()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ExtraError, match=r"pip install 'oneshot-medad\[dicom\]'"):
        expand(path)
