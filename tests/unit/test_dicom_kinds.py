"""Attributes, tables, bits and pixels of DICOM files as they are met in hospitals, good and bad."""

import gzip
import warnings

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import PACKAGED, dataset, table, write_dicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError, NoPictureError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

BYTES = np.array([[0, 50], [99, 255]], np.uint8)
WORDS = np.array([[0, 1000], [2000, 4095]], np.uint16)
PLAIN = WORDS / 4095
WINDOWED = [[0.00025, 0.50025], [1, 1]]
"""By centre 1000 and width 2001."""
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def grey(path, window=None):
    return read_image(path, intensity_range=window).pixels[0].numpy().astype(float)


@pytest.fixture
def dicom(tmp_path):
    return lambda pixels=WORDS, **attributes: write_dicom(tmp_path / "x.dcm", pixels, **attributes)


@pytest.fixture
def twelve(dicom):
    return lambda pixels=WORDS, **attributes: dicom(pixels, **{"BitsStored": 12, **attributes})


def broken(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


@pytest.mark.parametrize(
    "attributes",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": ["1", "2"], "RescaleIntercept": None},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 2000, "WindowWidth": -400},
        {"WindowCenter": 2000, "WindowWidth": None},
        {"WindowCenter": None, "WindowWidth": 400},
        {"WindowCenter": 2000, "WindowWidth": 4000, "VOILUTFunction": "FOO"},
        {"WindowCenter": [2000, 1000], "WindowWidth": [0, 0]},
        {"NumberOfFrames": 0},
        {"NumberOfFrames": None},
        {"VOILUTSequence": []},
        {"VOILUTSequence": [Dataset()]},
        {"VOILUTSequence": [dataset(LUTDescriptor=[4, 0, 16])]},
        {"VOILUTSequence": [table(range(4), 0, 16, LUTExplanation="short")], "x": None},
        {"ModalityLUTSequence": [Dataset()]},
        {"PixelPaddingRangeLimit": 4095},
        {"HighBit": 3},
        {"HighBit": 16},
        {"HighBit": None},
        {"SharedFunctionalGroupsSequence": [Dataset()], "PerFrameFunctionalGroupsSequence": []},
    ],
)
def test_what_has_no_usable_value_is_absent(twelve, attributes):
    if attributes.pop("x", 0) is None:  # says more entries than it has
        attributes["VOILUTSequence"][0].LUTDescriptor = [4096, 0, 16]
    np.testing.assert_allclose(grey(twelve(**attributes)), PLAIN, atol=1e-6)


@pytest.mark.parametrize("name", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelSpacing"])
def test_text_that_is_no_number_is_absent(twelve, name):
    given = {"WindowCenter": "100.50", "WindowWidth": "100.50"} if "Window" in name else {name: "100.50"}
    path = broken(twelve(**given), b"100.50", b"100,50")
    np.testing.assert_allclose(grey(path), PLAIN, atol=1e-6)
    assert read_image(path).spacing is None


def test_functional_groups_fall_back_too(twelve):
    empty = [dataset(RescaleSlope=None, RescaleIntercept=None)]
    groups = [dataset(PixelValueTransformationSequence=empty, FrameVOILUTSequence=[dataset(WindowWidth=0)])]
    np.testing.assert_allclose(grey(twelve(SharedFunctionalGroupsSequence=groups)), PLAIN, atol=1e-6)
    # what the frame's own group lacks, the file's may have
    path = twelve(PerFrameFunctionalGroupsSequence=groups, WindowCenter=1000, WindowWidth=2001)
    np.testing.assert_allclose(grey(path), WINDOWED, atol=1e-6)


def test_the_first_window_that_means_something_counts(twelve):
    path = broken(twelve(WindowCenter=["9999", "1000"], WindowWidth=["2001", "2001"]), b"9999\\", b"    \\")
    np.testing.assert_allclose(grey(path), WINDOWED, atol=1e-6)
    path = twelve(WindowCenter=[9, 1000], WindowWidth=[0, 2001], VOILUTFunction="linear ")
    np.testing.assert_allclose(grey(path), WINDOWED, atol=1e-6)


def test_narrow_windows(twelve):
    fractions = {"RescaleSlope": "0.00024420024", "RescaleIntercept": 0}
    expected = np.clip((PLAIN - 0.5) / 0.9 + 0.5, 0, 1)
    np.testing.assert_allclose(grey(twelve(**fractions, WindowCenter=0.5, WindowWidth=0.9)), expected, atol=1e-6)
    np.testing.assert_allclose(grey(twelve(WindowCenter=1000, WindowWidth=1)), [[0, 1], [1, 1]])
    exact = {"WindowCenter": 1000, "WindowWidth": 1, "VOILUTFunction": "LINEAR_EXACT"}
    np.testing.assert_allclose(grey(twelve(**exact)), [[0, 0.5], [1, 1]])


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["explicit", "implicit", "big"])
@pytest.mark.parametrize("packing", ["bytes", "words"])
@pytest.mark.parametrize("kind", ["VOI", "Modality", "palette"])
def test_tables_of_eight_bits_in_either_packing(tmp_path, syntax, packing, kind):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    entries = np.arange(255, -1, -1, dtype=np.uint8)
    data = entries.astype(order + "u2") if packing == "words" else entries.view("<u2").astype(order + "u2")
    item = dataset(LUTDescriptor=[256, 0, 8], ModalityLUTType="US")
    item.add_new("LUTData", "OW", data.tobytes())
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    given = {
        "VOI": {"VOILUTSequence": [item]},
        "Modality": {"ModalityLUTSequence": [item]},
        "palette": {"PhotometricInterpretation": "PALETTE COLOR"}
        | {f"{name}Descriptor": [256, 0, 8] for name in names}
        | {f"{name}Data": data.tobytes() for name in names},
    }[kind]
    path = write_dicom(tmp_path / "x.dcm", BYTES, syntax, **given)
    np.testing.assert_allclose(grey(path), (255 - BYTES.astype(float)) / 255, atol=1e-6)


def test_bytes_in_a_table_of_words(dicom):
    words = np.arange(255, -1, -1, dtype=np.uint8).view("<u2").tolist()
    item = dataset(LUTDescriptor=[256, 0, 8])
    item.add_new("LUTData", "US", words)
    np.testing.assert_allclose(grey(dicom(BYTES, VOILUTSequence=[item])), (255 - BYTES.astype(float)) / 255, atol=1e-6)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["explicit", "implicit", "big"])
@pytest.mark.parametrize("count", [300, 4096, 65536])
def test_large_tables(tmp_path, syntax, count):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    item = dataset(LUTDescriptor=[count % 65536, 0, 12])
    item.add_new("LUTData", "OW", np.minimum(np.arange(count), 4095).astype(order + "u2").tobytes())
    path = write_dicom(tmp_path / "x.dcm", WORDS, syntax, BitsStored=12, VOILUTSequence=[item])
    np.testing.assert_allclose(grey(path), np.minimum(WORDS, min(count - 1, 4095)) / 4095, atol=1e-6)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    ("said", "largest", "highest"), [(16, 4095, 4095), (16, 1000, 1023), (8, 4095, 4095), (12, 1000, 4095)]
)
def test_tables_span_what_their_entries_need(twelve, kind, said, largest, highest):
    item = table(np.arange(4096) * largest // 4095, 0, said, ModalityLUTType="US")
    expected = (WORDS.astype(int) * largest // 4095) / highest
    np.testing.assert_allclose(grey(twelve(**{kind: [item]})), expected, atol=1e-6)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["explicit", "implicit", "big"])
def test_tables_may_begin_below_zero(tmp_path, syntax):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    entries = np.arange(3000).astype(order + "u2").tobytes()
    expected = np.clip(WORDS.astype(float) - 24, 0, 2999) / 4095  # from -1000, and stored values mean 1024 less

    def item(first):
        found = Dataset()
        found.add_new("LUTDescriptor", "SS" if first < 0 else "US", [3000, first, 12])
        found.add_new("LUTData", "OW", entries)
        return [found]

    rescaled = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "x.dcm", WORDS, syntax, **rescaled, VOILUTSequence=item(-1000))
    np.testing.assert_allclose(grey(path), expected, atol=1e-6)
    signed = (WORDS.astype(int) - 2048).astype(np.int16)
    path = write_dicom(tmp_path / "x.dcm", signed, syntax, BitsStored=12, VOILUTSequence=item(-1000))
    np.testing.assert_allclose(grey(path), np.clip(signed + 1000.0, 0, 2999) / 4095, atol=1e-6)
    deep = np.array([[39000, 40000], [41000, 65535]], np.uint16)  # no sign where there is nothing below zero
    path = write_dicom(tmp_path / "x.dcm", deep, syntax, VOILUTSequence=item(40000))
    np.testing.assert_allclose(grey(path), [[0, 0], [1000 / 4095, 2999 / 4095]], atol=1e-6)


def test_segmented_palettes(dicom):
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    segments = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()  # one entry of 0, then 255 on the way to 65535
    given = {"PhotometricInterpretation": "PALETTE COLOR"} | {f"{name}Descriptor": [256, 0, 16] for name in names}
    given |= {f"Segmented{name}Data": segments for name in names}
    np.testing.assert_allclose(grey(dicom(BYTES, **given)), BYTES / 255, atol=1e-5)
    with pytest.raises(ImageFileError, match="palette without usable tables"):
        read_image(dicom(BYTES, PhotometricInterpretation="PALETTE COLOR"))


@pytest.mark.parametrize("syntax", [*SYNTAXES, RLELossless], ids=["explicit", "implicit", "big", "rle"])
@pytest.mark.parametrize("high", [11, 12, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_at_the_upper_end(tmp_path, syntax, high, signed):
    values = WORDS.astype(int) - (2048 if signed else 0)
    stored = ((values << (high - 11)) & 0xFFFF).astype(np.uint16)
    if high > 11:
        stored |= 1  # an overlay below
    path = tmp_path / "x.dcm"
    write_dicom(path, stored, BitsStored=12, HighBit=high, PixelRepresentation=int(signed))
    ds = pydicom.dcmread(path)
    if syntax == RLELossless:
        ds.compress(RLELossless)
        ds.save_as(path)
    elif syntax == ExplicitVRBigEndian:
        write_dicom(path, stored, syntax, BitsStored=12, HighBit=high, PixelRepresentation=int(signed))
    np.testing.assert_allclose(grey(path), PLAIN, atol=1e-6)


def test_codecs_give_bits_at_the_lower_end(twelve):
    path = twelve(np.tile(WORDS, (32, 32)))
    ds = pydicom.dcmread(path)
    ds.compress(JPEG2000Lossless)
    ds.HighBit = 15  # nonsense: the compressed pixels have 12 bits
    ds.save_as(path)
    np.testing.assert_allclose(grey(path)[:2, :2], PLAIN, atol=1e-6)


@pytest.mark.parametrize(("syntax", "codec"), [(JPEG2000Lossless, "jpeg2k"), (JPEGLSLossless, "jpegls")])
@pytest.mark.parametrize("high", [11, 15])
def test_codecs_may_keep_whole_words(tmp_path, syntax, codec, high):
    deep = np.tile(WORDS, (32, 32))
    deep = deep << 4 if high == 15 else deep | 0x7000  # an overlay above
    frame = getattr(imagecodecs, f"{codec}_encode")(deep, level=0)
    path = write_dicom(tmp_path / "x.dcm", deep, BitsStored=12, HighBit=high)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds.save_as(path)
    np.testing.assert_allclose(grey(path)[:2, :2], PLAIN, atol=1e-6)


def test_one_bit_and_thirty_two_bits(tmp_path, dicom):
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 7))  # 35 bits a frame: no whole bytes
    path = tmp_path / "bits.dcm"
    write_dicom(path, np.zeros((3, 5, 7), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=3)
    ds = pydicom.dcmread(path)
    ds.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    ds.save_as(path)
    for source, expected in zip(expand(path), bits, strict=True):
        np.testing.assert_allclose(grey(source), expected)
    deep = np.array([[0, 2**31], [2**30, 2**32 - 1]], np.uint32)
    np.testing.assert_allclose(grey(dicom(deep)), deep / (2**32 - 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
def test_floating_point_pixels(tmp_path, kind):
    values = np.array([[0.5, 1.5], [2.5, -1000]], "<f4" if kind == "Float" else "<f8")
    path = tmp_path / "x.dcm"
    write_dicom(path, np.zeros((2, 2), np.uint32 if kind == "Float" else np.uint64))
    ds = pydicom.dcmread(path)
    del ds.PixelData
    setattr(ds, f"{kind}PixelData", values.tobytes())
    setattr(ds, f"{kind}PixelPaddingValue", -1000.0)
    ds.save_as(path)
    np.testing.assert_allclose(grey(path, (0.5, 2.5)), [[0, 0.5], [1, 0]])
    with pytest.raises(ImageTypeError, match="without a window"):
        read_image(path)
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 1.5, 2, "LINEAR_EXACT"
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.save_as(path)
    np.testing.assert_allclose(grey(path), [[1, 0.5], [0, 0]])


@pytest.mark.parametrize("space", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [None, (0, 4095)])
def test_padding_is_background(twelve, space, window):
    expected = PLAIN if space == "MONOCHROME2" else 1 - PLAIN

    def padded(where, **attributes):
        found = grey(twelve(PhotometricInterpretation=space, **attributes), window)
        np.testing.assert_allclose(found, np.where(where, 0, expected), atol=1e-6)

    padded(WORDS == 0, PixelPaddingValue=0)
    padded(WORDS == 4095, PixelPaddingValue=4095)
    padded(WORDS >= 2000, PixelPaddingValue=4095, PixelPaddingRangeLimit=1500)
    padded(WORDS <= 1000, PixelPaddingValue=0, PixelPaddingRangeLimit=1000)
    padded(WORDS < 0, PixelPaddingValue=None)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["explicit", "implicit", "big"])
def test_padding_below_zero(tmp_path, syntax):
    values = np.array([[-2000, -1000], [0, 1000]], np.int16)
    path = write_dicom(
        tmp_path / "x.dcm", values, syntax, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000
    )
    np.testing.assert_allclose(grey(path, (-1000, 1000)), [[0, 1], [0.5, 0]])
    ds = pydicom.dcmread(path)
    if syntax == ExplicitVRLittleEndian:
        ds.add_new("PixelPaddingValue", "US", 65536 - 2000)  # of the wrong sign
        ds.save_as(path)
        np.testing.assert_allclose(grey(path, (-1000, 1000)), [[0, 1], [0.5, 0]])


def test_no_pixel_data(twelve):
    path = twelve(PixelData=b"")
    with pytest.raises(ImageFileError, match="no pixel data"):
        read_image(path)
    ds = pydicom.dcmread(path)
    del ds.PixelData
    ds.add_new(0x60003000, "OW", b"\1\0")  # an overlay alone
    ds.save_as(path)
    with pytest.raises(ImageFileError, match="no pixel data"):
        read_image(path)


@pytest.mark.parametrize(
    ("pixels", "attributes", "sizes"),
    [
        (np.vstack([WORDS, WORDS]), {"Rows": 2}, "16 .*8 "),
        (np.hstack([WORDS, WORDS]), {"Columns": 2}, "16 .*8 "),
        (np.stack([WORDS, WORDS, WORDS]), {"NumberOfFrames": 2}, "24 .*16 "),
        (np.stack([WORDS, WORDS]), {"NumberOfFrames": None}, "16 .*8 "),
        (WORDS, {"Rows": 3}, "8 vs 12"),
        (np.stack([WORDS, WORDS]), {"NumberOfFrames": 3}, "16 vs 24"),
    ],
)
def test_sizes_that_the_header_does_not_tell(twelve, pixels, attributes, sizes):
    path = twelve(pixels, **attributes)
    with pytest.raises(ImageFileError, match=sizes):  # noqa: PT012
        for source in expand(path):
            read_image(source)


def test_padding_behind_the_pixels(twelve):
    odd = np.arange(9, dtype=np.uint8).reshape(3, 3) * 28
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(
            grey(twelve(odd, BitsStored=8, PixelData=odd.tobytes() + b"\1")), odd / 255, atol=1e-6
        )
        np.testing.assert_allclose(grey(twelve(PixelData=WORDS.tobytes() + b"\0\0")), PLAIN, atol=1e-6)
    path = twelve(PixelData=WORDS.tobytes() + bytes(4))  # a row of nothing
    with pytest.warns(UserWarning, match="Got 12 bytes of pixels; wanted 8"):
        np.testing.assert_allclose(grey(path), PLAIN, atol=1e-6)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
@pytest.mark.parametrize("change", ["frames", "rows"])
def test_compressed_pixels_of_another_size_than_the_header_says(tmp_path, name, change):
    ds = pydicom.dcmread(PACKAGED / name)
    frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    if change == "frames":
        ds.PixelData = encapsulate([frame, frame], has_bot=False)
    else:
        ds.Rows = 32
    ds.save_as(tmp_path / "x.dcm")
    with pytest.raises(ImageFileError, match="2 compressed frames; wanted 1" if change == "frames" else "32"):
        read_image(tmp_path / "x.dcm")


@pytest.mark.parametrize("space", ["HSV", "CMYK", "ARGB", "YBR_PARTIAL_420", "NONSENSE", None])
def test_colours_that_are_not_read(dicom, space):
    colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    path = dicom(colour, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation=space)
    with pytest.raises(ImageError, match=space or "Photometric Interpretation"):
        read_image(path)


def test_planes_of_colour(dicom):
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = dicom(
        colour,
        SamplesPerPixel=3,
        PlanarConfiguration=1,
        PhotometricInterpretation="RGB",
        PixelData=np.moveaxis(colour, -1, 0).tobytes(),
    )
    np.testing.assert_allclose(read_image(path).pixels.permute(1, 2, 0), colour / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "spacing", "aspect"),
    [
        ({"PixelSpacing": [2, 1]}, (2, 1), 2),
        ({"PixelSpacing": [0.5]}, None, 1),
        ({"PixelSpacing": [0.5, 0.5, 0.5]}, None, 1),
        ({"PixelSpacing": [0, 0]}, None, 1),
        ({"PixelSpacing": [-1, 1]}, None, 1),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), 2),
        ({"PixelSpacing": [0, 1], "ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), 2),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), 2),
        ({"PixelAspectRatio": [2, 1]}, None, 2),
        ({"PixelAspectRatio": [1, 4]}, None, 0.25),
        ({"PixelAspectRatio": [0, 1]}, None, 1),
        ({"PixelAspectRatio": [3, 1], "PixelSpacing": [2, 1]}, (2, 1), 2),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.8}, (0.1 / 1.8,) * 2, 1),
        ({"ImagerPixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": 2}, (0.1, 0.05), 2),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 0}, (0.1, 0.1), 1),
        (
            {"ImagerPixelSpacing": [0.1, 0.1], "DistanceSourceToDetector": 1500, "DistanceSourceToPatient": 1200},
            (0.08, 0.08),
            1,
        ),
        (
            {"ImagerPixelSpacing": [0.1, 0.1], "DistanceSourceToDetector": 1500, "DistanceSourceToPatient": 0},
            (0.1, 0.1),
            1,
        ),
        # the same as at the detector, and nobody says that it was corrected
        (
            {"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1]}
            | {"EstimatedRadiographicMagnificationFactor": 1.25},
            (0.08, 0.08),
            1,
        ),
        (
            {"PixelSpacing": [0.08, 0.08], "ImagerPixelSpacing": [0.1, 0.1]}
            | {"EstimatedRadiographicMagnificationFactor": 1.25},
            (0.08, 0.08),
            1,
        ),
        (
            {"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"}
            | {"EstimatedRadiographicMagnificationFactor": 1.25},
            (0.1, 0.1),
            1,
        ),
    ],
)
def test_how_large_a_pixel_is(dicom, attributes, spacing, aspect):
    image = read_image(dicom(BYTES, **attributes))
    assert image.spacing == (spacing and pytest.approx(spacing))
    assert image.aspect == pytest.approx(aspect)


def test_true_proportions_in_the_field_and_back(fitted, dicom, sample):
    path = dicom(np.tile(np.arange(1, 65, dtype=np.uint8), (32, 1)), PixelSpacing=[2, 1])
    assert (fitted.preview(path).max((1, 2)) > 0).sum() == 256
    squashed = sample.images[4][::2].copy()
    found = fitted.predict(dicom(squashed, PixelAspectRatio=[2, 1]))
    square = fitted.predict(sample.images[4])
    assert found.heatmaps[0].shape == squashed.shape
    wrong = fitted.predict(dicom(squashed))  # as if its pixels were square
    assert abs(found.scores[0] - square.scores[0]) < 0.5 * abs(wrong.scores[0] - square.scores[0])
    assert np.corrcoef(found.heatmaps[0].ravel(), square.heatmaps[0][::2].ravel())[0, 1] > 0.9
    explained = fitted.explain(dicom(squashed, PixelAspectRatio=[2, 1]))
    assert explained.normal.shape == (*squashed.shape, 3)
    assert explained.difference.shape == squashed.shape


OTHERS = [
    ("1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
    ("1.2.840.10008.5.1.4.1.1.66.7", "SEG"),
    ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"),
    ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
]


@pytest.mark.parametrize(("sop", "modality"), OTHERS)
def test_objects_that_are_no_pictures(tmp_path, dicom, sop, modality):
    path = dicom(BYTES, SOPClassUID=sop, Modality=modality)
    (source,) = expand(path)
    with pytest.raises(NoPictureError, match=modality) as caught:
        read_image(source)
    assert caught.value.modality == modality
    write_dicom(tmp_path / "scan", BYTES)
    found = expand(tmp_path)
    assert [source.name for source in found] == ["scan"]
    assert found.left_out == {modality: 1}


def test_without_preamble_mark_or_header(tmp_path):
    whole = pydicom.dcmread(PACKAGED / "MR_small.dcm")
    expected = grey(PACKAGED / "MR_small.dcm")
    data = (PACKAGED / "MR_small.dcm").read_bytes()
    (tmp_path / "a").write_bytes(data[132:])  # the header at once
    (tmp_path / "b.dcm.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.gz").write_bytes(gzip.compress(data[132:]))
    for name, implicit, little in (("d", True, True), ("e", False, True), ("f", False, False)):
        if not little:
            whole = pydicom.dcmread(PACKAGED / "MR_small_bigendian.dcm")
        bare = Dataset(whole)
        with (tmp_path / name).open("wb") as file:
            pydicom.filewriter.write_dataset(_open(file, implicit, little), bare)
    found = expand(tmp_path)
    assert [source.name for source in found] == ["a", "b.dcm.gz", "c.gz", "d", "e", "f"]
    for source in found:
        np.testing.assert_allclose(grey(source), expected, atol=1e-6)


def _open(file, implicit, little):
    stream = pydicom.filebase.DicomIO(file)
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    return stream
