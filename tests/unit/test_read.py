import gzip
import io
import re
import warnings
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import PACKAGED, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oneshot_medad import slices
from oneshot_medad.errors import BlankImageError, ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.open import reading
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import expand, read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_the_same_pixels_by_any_road_give_the_same_tensor(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(GREY).save(tmp_path / "grey.tif")
    roads = [
        GREY,
        GREY / 255,
        (GREY / 255).astype(np.float32),
        GREY[..., None],
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGB"),
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
        torch.from_numpy(GREY)[None].expand(3, -1, -1),
        tmp_path / "grey.png",
        str(tmp_path / "grey.tif"),
        GREY.astype(np.uint16) * 257,
        GREY.astype(">u2") * 257,
        (GREY / 255).astype(">f4"),
        torch.from_numpy(GREY / 255).requires_grad_(),
        write_dicom(tmp_path / "grey.dcm", GREY),
        write_dicom(tmp_path / "grey", GREY.astype(np.uint16) * 257),
    ]
    volume = nibabel.Nifti1Image(GREY.T[::-1, ::-1, None], np.eye(4))
    volume.header["cal_max"] = 255
    nibabel.save(volume, tmp_path / "grey.nii.gz")
    roads += slices(tmp_path / "grey.nii.gz")
    expected = torch.from_numpy(GREY).float() / 255
    for road in roads:
        pixels = read_image(road).pixels
        assert pixels.shape == (3, 20, 30)
        torch.testing.assert_close(pixels[1], expected, atol=1e-6, rtol=0)


def test_colour_arrays_tensors_and_files_agree(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "c.png")
    expected = torch.from_numpy(COLOUR).permute(2, 0, 1) / 255
    for road in (COLOUR, torch.from_numpy(COLOUR).permute(2, 0, 1), Image.fromarray(COLOUR), tmp_path / "c.png"):
        torch.testing.assert_close(read_image(road).pixels, expected)


def test_sixteen_bit_files_keep_all_their_bits(tmp_path):
    deep = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        pixels = read_image(tmp_path / f"deep.{suffix}").pixels[0]
        torch.testing.assert_close(pixels, torch.from_numpy(deep.astype(np.float32) / 65535))


def test_every_mode_of_pillow_is_read():
    colour = Image.fromarray(COLOUR)
    modes = [colour.convert(mode) for mode in ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]]
    modes += [colour.convert("LA").convert("La"), colour.convert("RGBA").convert("RGBa")]
    modes += [Image.frombytes("LAB", (30, 20), COLOUR.tobytes()), colour.convert("P").convert("PA")]
    modes += [Image.frombytes(mode, (30, 20), GREY.astype("u2").tobytes()) for mode in ("I;16", "I;16L", "I;16B")]
    for image in modes:
        assert read_image(image).pixels.shape == (3, 20, 30), image.mode
    for mode in ("I", "F"):
        assert read_image(colour.convert(mode), intensity_range=(0, 255)).pixels.shape == (3, 20, 30)


def test_a_dark_image_stays_dark():
    assert read_image(GREY // 8).pixels.max() <= 31 / 255


def test_orientation_in_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").size == (30, 20)


def test_expand_finds_every_image(tmp_path):
    for name in ("b.png", "a.PNG", "notes.txt", ".hidden.png"):
        if name.lower().endswith("png"):
            Image.fromarray(GREY).save(tmp_path / name, format="png")
        else:
            (tmp_path / name).write_text("no image")
    assert [Path(p).name for p in expand(tmp_path)] == ["a.PNG", "b.png"]
    assert [Path(p).name for p in expand(str(tmp_path / "*.png"))] == ["b.png"]
    assert len(expand([tmp_path, GREY, Image.fromarray(GREY)])) == 4
    counts = {
        (20, 30): 1, (20, 30, 3): 1, (5, 20, 30): 5, (5, 20, 30, 3): 5, (20, 30, 1): 1,
    }  # fmt: skip
    for shape, count in counts.items():
        assert len(expand(np.zeros(shape))) == count
    for shape, count in {(20, 30): 1, (3, 20, 30): 1, (1, 20, 30): 1, (5, 1, 20, 30): 5}.items():
        assert len(expand(torch.zeros(shape))) == count
    assert len(expand(image for image in [GREY, GREY])) == 2


def check(error, message, action):
    with pytest.raises(error, match=message) as caught:
        action()
    assert isinstance(caught.value, ImageError)
    assert re.search(r"wanted|Check|Install|matches no|raise PIL", str(caught.value))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ImageError, "no images"),
        (np.zeros((0, 20, 30)), ImageError, "no images"),
        (42, ImageTypeError, "Got int"),
        ({"a": 1}, ImageTypeError, "Got dict"),
        (np.zeros((2, 2, 2, 2, 2)), ImageError, "shape"),
        (np.zeros((20, 30, 4, 5)), ImageError, "shape"),
        (torch.zeros(5, 20, 30), ImageError, "shape"),
    ],
)
def test_inputs_that_hold_no_image(source, error, message):
    check(error, message, lambda: expand(source))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.full((20, 30), 7, np.uint8), ImageError, "constant"),
        (np.where(GREY > 9, GREY / 255, np.nan), ImageError, "NaN"),
        (np.where(GREY > 9, GREY / 255, np.inf), ImageError, "NaN or infinite"),
        (GREY.astype(np.int16), ImageTypeError, "int16.*intensity_range"),
        (GREY.astype(complex), ImageTypeError, "complex"),
        (GREY.astype(str), ImageTypeError, "real numbers"),
        (GREY.astype(float), ImageError, "intensity_range"),
        (GREY / 255 - 0.5, ImageError, "intensity_range"),
        (np.zeros((0, 4)), ImageError, "shape"),
    ],
)
def test_pixels_that_cannot_be_used(array, error, message):
    check(error, message, lambda: read_image(array))


def test_a_stated_range_is_used_and_enforced():
    hounsfield = (GREY.astype(np.int16) - 100) * 4
    pixels = read_image(hounsfield, intensity_range=(-400, 620)).pixels
    torch.testing.assert_close(pixels[0], torch.from_numpy(GREY) / 255)
    check(ImageError, "values from", lambda: read_image(hounsfield, intensity_range=(-100, 100)))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(COLOUR.repeat(9, axis=0)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    check(ImageFileError, "without image files", lambda: expand(tmp_path / "empty"))
    check(ImageFileError, "matches no file", lambda: expand(str(tmp_path / "*.bmp")))
    for name in ("missing.png", "text.png", "cut.png"):
        check(ImageFileError, name, lambda name=name: read_image(tmp_path / name))
    with pytest.raises(OSError, match="cut"):
        read_image(tmp_path / "cut.png")


@pytest.mark.parametrize(
    "kind", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">u4", ">f8"]
)
def test_every_type_of_real_numbers(kind):
    values = np.array([[-100, -50], [0, 100]]) if kind[-2] != "u" else np.array([[0, 50], [100, 200]])
    window = (float(values.min()), float(values.max()))
    found = read_image(values.astype(kind), intensity_range=window).pixels[0]
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0.25], [0.5, 1]]


def test_large_numbers_lose_nothing():
    values = np.array([[2**31, 2**31 + 1], [2**31 + 2, 2**31 + 4]], np.uint32)
    assert read_image(values, intensity_range=(2**31, 2**31 + 4)).pixels[0].tolist() == [[0, 0.25], [0.5, 1]]
    assert read_image(values.astype(float), intensity_range=(2**31, 2**31 + 4)).pixels[0, 0, 1] == 0.25


def test_pillows_32_bit_mode_is_sixteen_bits_in_png_files_alone(tmp_path):
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "deep.tif")
    for source in (tmp_path / "deep.tif", Image.fromarray(GREY.astype(np.int32))):
        check(ImageTypeError, "int32.*intensity_range", lambda source=source: read_image(source))


@pytest.mark.parametrize(("suffix", "options"), [("tif", {}), ("gif", {}), ("webp", {"lossless": True})])
def test_pages_and_animations_are_images_of_their_own(tmp_path, suffix, options):
    pages = [GREY, GREY[::-1], 255 - GREY]
    path = tmp_path / f"x.{suffix}"
    first, *others = [Image.fromarray(page).convert("RGB" if suffix == "webp" else "L") for page in pages]
    first.save(path, save_all=True, append_images=others, **options)
    sources = expand(tmp_path)
    assert [str(source) for source in sources] == [f"{path}[frame {i}]" for i in range(3)]
    for source, page in [*zip(sources, pages, strict=True)][::-1]:
        torch.testing.assert_close(read_image(source).pixels[0], torch.from_numpy(page.copy()) / 255)
    check(ImageFileError, "3 images", lambda: read_image(path))
    assert slices(path, indices=[2]) == sources[2:]


def test_an_animated_png_is_not_read_as_its_first_picture(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.png", save_all=True, append_images=[Image.fromarray(GREY[::-1])])
    check(ImageFileError, "2 images; wanted one", lambda: read_image(tmp_path / "x.png"))
    assert len(slices(tmp_path / "x.png")) == 2


def test_the_first_of_a_multi_picture_jpeg_is_the_photograph(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.fromarray(GREY[:9])])
    assert read_image(tmp_path / "x.jpg").size == (20, 30)


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.jpg", "PNG")
    torch.testing.assert_close(read_image(tmp_path / "x.jpg").pixels[0], torch.from_numpy(GREY) / 255)
    write_dicom(tmp_path / "d.png", GREY)
    torch.testing.assert_close(read_image(tmp_path / "d.png").pixels[0], torch.from_numpy(GREY) / 255)
    Image.fromarray(GREY).save(tmp_path / "x.dcm", "PNG")
    torch.testing.assert_close(read_image(tmp_path / "x.dcm").pixels[0], torch.from_numpy(GREY) / 255)
    Image.fromarray(GREY).save(tmp_path / "x.png", "PPM")  # a format that is not on the list stays closed
    check(ImageFileError, "no image of a known format", lambda: read_image(tmp_path / "x.png"))


def test_pictures_of_too_many_pixels_are_refused_without_a_warning(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "x.png")
    for limit in (599, 299):  # Pillow warns above the first and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(ImageFileError, "600 pixels.*MAX_IMAGE_PIXELS", lambda: read_image(tmp_path / "x.png"))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 3000), (3000, 1), (3, 2)])
def test_odd_shapes(shape):
    array = np.zeros(shape, np.uint8)
    array.flat[-1] = 255
    image = read_image(array)
    field = to_field(image.pixels, 256)
    assert field.shape == (3, 256, 256)
    assert from_field(field[0], 256, image.size).shape == shape
    for value in (0, 255):
        check(BlankImageError, "constant", lambda value=value: read_image(np.full((1, 1), value, np.uint8)))


@pytest.mark.parametrize("error", [ValueError, ImageError, BaseException])
def test_reasons_are_one_printable_line(error):
    with pytest.raises(ImageError, match=r"x\.png.*a b c+ …") as caught, reading("x.png"):
        raise error("a\n\0b " + 1000 * "c")
    assert str(caught.value).isprintable()
    with pytest.raises(KeyboardInterrupt), reading("x.png"):
        raise KeyboardInterrupt


def encoded(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def one_file_of_every_kind():
    volume = nibabel.Nifti1Image(GREY[..., None], np.eye(4))
    kinds = {
        f"x.{suffix}": encoded(lambda file, f=form: Image.fromarray(COLOUR).save(file, f))
        for suffix, form in {
            "png": "PNG",
            "jpg": "JPEG",
            "tif": "TIFF",
            "bmp": "BMP",
            "webp": "WEBP",
            "gif": "GIF",
        }.items()
    }
    kinds["deep.tif"] = encoded(lambda file: Image.fromarray(GREY.astype(np.uint16) * 257).save(file, "TIFF"))
    kinds["x.dcm"] = encoded(lambda file: write_dicom(file, GREY, WindowCenter=100, WindowWidth=100))
    kinds["rle.dcm"] = (PACKAGED / "MR_small_RLE.dcm").read_bytes()
    kinds["x.nii"] = volume.to_bytes()
    kinds["x.nii.gz"] = gzip.compress(volume.to_bytes())

    def pack(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.png", kinds["x.png"])

    return kinds | {"x.zip": encoded(pack)}


WHOLE = one_file_of_every_kind()


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they mend
@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_of_every_kind_raise_nothing_but_errors_of_the_package(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("damaged") / name

    def read(data):
        path.write_bytes(data)
        return [read_image(source, intensity_range=(0, 255) if "nii" in name else None) for source in expand(path)]

    whole = WHOLE[name]
    assert len(read(whole)) == 1
    refused = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(
        st.integers(0, len(whole) - 1),
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8),
    )
    def damage(length, changes):
        data = bytearray(whole)
        for place, value in changes:
            data[place] = value
        for version in (bytes(data), whole[:length]):
            try:
                read(version)
            except ImageError as error:
                refused.append(str(error))

    damage()
    assert refused
    assert not any("\n" in reason for reason in refused)
