"""Images in memory: read, or named with what to pass; what marks pixels as invalid is never dropped."""

import io
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pydicom
import pytest
import torch
from dicom_files import PACKAGED
from PIL import Image

from oneshot_medad.errors import ImageError, ImageTypeError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (20, 30, 4), dtype=np.uint8)
OVER_BLACK = RGBA[..., :3] / 255 * (RGBA[..., 3:] / 255)


@pytest.fixture
def png(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    "give",
    [
        lambda path: np.array([str(path)]),
        lambda path: np.array(str(path)),
        lambda path: np.array([str(path)], dtype=object),
        lambda path: np.array([path], dtype=object),
        lambda path: np.array([str(path).encode()]),
        lambda path: pandas.Series([str(path)]),
        lambda path: pandas.DataFrame({"path": [str(path)]})["path"],
        lambda path: pandas.Index([str(path)]),
        lambda path: np.array([[str(path)]]),
        lambda path: {str(path)},
        lambda path: (p for p in [path]),
        lambda path: [np.array([str(path)])],
        lambda path: np.str_(path),
    ],
)
def test_columns_of_paths(png, give):
    found = expand(give(png))
    assert [Path(source) for source in found] == [png]


def test_arrays_of_arrays():
    ragged = np.empty(2, object)
    ragged[:] = [GREY, GREY[:10]]
    assert [source.shape for source in expand(ragged)] == [(20, 30), (10, 30)]
    assert len(expand(np.array([GREY, GREY]))) == 2


class Gpu:
    """As JAX, CuPy and xarray hand out arrays."""

    def __array__(self, dtype=None, copy=None):
        return GREY


def test_objects_that_are_arrays_to_numpy():
    (found,) = expand(Gpu())
    np.testing.assert_allclose(read_image(found).pixels[0], GREY / 255, atol=1e-6)


class OnAnotherDevice:
    """As CuPy refuses to hand out arrays."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


def test_objects_that_give_no_array_say_why():
    with pytest.raises(ImageError, match=r"OnAnotherDevice.*Implicit conversion"):
        expand(OnAnotherDevice())


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda path: io.BytesIO(path.read_bytes()), "Got BytesIO; .*PIL.Image.open"),
        (lambda path: path.open("rb"), "Got BufferedReader; .*PIL.Image.open"),
        (lambda path: path.read_bytes(), "Got bytes; .*PIL.Image.open"),
        (lambda path: bytearray(path.read_bytes()), "Got bytearray; "),
        (lambda path: pydicom.dcmread(PACKAGED / "CT_small.dcm"), "Got FileDataset; .*Pass its file"),
        (lambda path: [pydicom.Dataset()], "Got Dataset; .*Pass its file"),
        (lambda path: nibabel.Nifti1Image(GREY[..., None], np.eye(4)), "Got Nifti1Image; .*Pass its file"),
        (lambda path: pandas.DataFrame({"path": [str(path)]}), "Got DataFrame; .*one of its columns"),
        (lambda path: {"image": path}, "Got dict"),
        (lambda path: 3, "Got int"),
        (lambda path: None, "Got NoneType"),
        (lambda path: [None], "Got NoneType"),
        (lambda path: np.array([None]), "Got NoneType"),
        (lambda path: np.array([3, "a"], dtype=object), "Got int"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(png, give, message):
    with pytest.raises(ImageTypeError, match=message):
        expand(give(png))


def test_masks_are_not_dropped():
    floats = GREY / 255
    for masked in (np.ma.masked_array(floats, GREY > 60), np.ma.masked_less(GREY, 3)):
        (source,) = expand(masked)
        with pytest.raises(ImageError, match=r"masked pixels.*Fill"):
            read_image(source)
    (source,) = expand(np.ma.masked_array(floats, np.zeros((20, 30), bool)))
    np.testing.assert_allclose(read_image(source).pixels[0], floats, atol=1e-6)
    stack = expand(np.ma.masked_array(np.stack([floats, floats]), np.stack([GREY > 60, GREY < 0])))
    with pytest.raises(ImageError, match="masked"):
        read_image(stack[0])
    np.testing.assert_allclose(read_image(stack[1]).pixels[0], floats, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # masked tensors are a prototype
def test_masked_tensors_are_not_dropped():
    masked = torch.masked.masked_tensor(torch.from_numpy(GREY / 255), torch.from_numpy(GREY > 60))
    with pytest.raises(ImageError, match="masked tensor"):
        read_image(expand(masked)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_none(bad):
    pixels = RGBA / 255
    pixels[0, 0, 3] = bad
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image(pixels)
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image(torch.from_numpy(pixels).permute(2, 0, 1))


def test_what_is_transparent_lies_over_black(tmp_path):
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    Image.fromarray(RGBA).save(tmp_path / "a.tif")
    Image.fromarray(RGBA).save(tmp_path / "a.webp", lossless=True, exact=True)
    roads = [
        RGBA,
        RGBA / 255,
        RGBA.astype(np.uint16) * 257,
        RGBA[None],
        Image.fromarray(RGBA),
        torch.from_numpy(RGBA).permute(2, 0, 1),
        torch.from_numpy(RGBA).permute(2, 0, 1)[None],
        tmp_path / "a.png",
        tmp_path / "a.tif",
        tmp_path / "a.webp",
        Image.open(tmp_path / "a.png"),
    ]
    for road in roads:
        (source,) = expand(road)
        np.testing.assert_allclose(read_image(source).pixels.permute(1, 2, 0), OVER_BLACK, atol=1e-6)
    (source,) = expand(RGBA)  # the range is of colours, opacity spans its type
    found = read_image(source, intensity_range=(0, 510)).pixels.permute(1, 2, 0)
    np.testing.assert_allclose(found, OVER_BLACK / 2, atol=1e-6)


def test_transparent_grey_and_palettes(tmp_path):
    grey = Image.merge("LA", [Image.fromarray(RGBA[..., 0]), Image.fromarray(RGBA[..., 3])])
    grey.save(tmp_path / "la.png")
    expected = RGBA[..., 0] / 255 * (RGBA[..., 3] / 255)
    for road in (grey, tmp_path / "la.png"):
        np.testing.assert_allclose(read_image(road).pixels[0], expected, atol=1e-6)

    small = GREY % 4
    for kind in ("png", "gif"):  # one colour of the palette is none
        picture = Image.fromarray(small, "P")
        picture.putpalette([255, 255, 255, 60, 60, 60, 120, 120, 120, 9, 9, 9])
        picture.save(tmp_path / f"p.{kind}", transparency=0)
        expected = np.array([0, 60, 120, 9])[small] / 255
        np.testing.assert_allclose(read_image(tmp_path / f"p.{kind}").pixels[0], expected, atol=1e-6)
    for pixels in (GREY, GREY.astype(np.uint16) * 257):  # one grey value is
        key = int(pixels[0, 0])
        Image.fromarray(pixels).save(tmp_path / "k.png", transparency=key)
        expected = np.where(pixels == key, 0, pixels / np.iinfo(pixels.dtype).max)
        np.testing.assert_allclose(read_image(tmp_path / "k.png").pixels[0], expected, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_in_png_files(tmp_path, channels):
    import imagecodecs

    pixels = RNG.integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(pixels))
    unit = pixels / 65535
    colours, opacity = (unit, 1) if channels == 3 else (unit[..., :-1], unit[..., -1:])
    expected = np.broadcast_to(colours * opacity, (20, 30, 3))
    for _ in range(2):  # again from the open file
        np.testing.assert_allclose(read_image(tmp_path / "x.png").pixels.permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_photographs(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpg", "png", "webp"):
        Image.fromarray(RGBA[..., :3]).save(tmp_path / f"x.{kind}", exif=exif)
        found = read_image(tmp_path / f"x.{kind}")
        assert found.size == ((20, 30) if orientation < 5 else (30, 20))
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    row, column = corners[orientation]
    upright = read_image(tmp_path / "x.png").pixels[:, row, column]
    np.testing.assert_allclose(upright, RGBA[0, 0, :3] / 255, atol=1e-6)


@pytest.mark.parametrize(("bits", "codec"), [(12, "jpeg8"), (16, "ljpeg")])
def test_rare_jpegs_are_called_by_what_they_are(tmp_path, bits, codec):
    import imagecodecs

    pixels = (GREY.astype(np.uint16) << (bits - 8)) | 1
    options = {"bitspersample": bits} if codec == "jpeg8" else {}
    (tmp_path / "x.jpg").write_bytes(getattr(imagecodecs, f"{codec}_encode")(pixels, **options))
    with pytest.raises(ImageError, match=f"JPEG of process [13] with.*{bits} bits|JPEG of process.*bits"):
        read_image(tmp_path / "x.jpg")
