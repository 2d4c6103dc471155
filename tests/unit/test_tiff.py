"""TIFF files: every type of sample, every photometric tag, all pictures and no copies of them."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from oneshot_medad import slices
from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

RNG = np.random.default_rng(0)
UNIT = RNG.random((20, 32))
COLOUR = RNG.random((20, 32, 3))
KINDS = ["bool", "u1", "u2", "f2", "f4", "f8"]
COMPRESSIONS = [None, "zlib", "lzw", "packbits", "lzma", "zstd"]


def values(unit, kind):
    top = {"bool": 1, "u1": 255, "u2": 65535}.get(kind, 1)
    return (unit * top).round().astype(kind) if kind in ("bool", "u1", "u2") else unit.astype(kind)


def grey(source, window=None):
    return read_image(source, intensity_range=window).pixels[0].numpy().astype(float)


def scaled(array):
    return array.astype(float) / (np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1)


def write_packed(path, rows, bits, sample_format, photometric=1):
    """A TIFF of one strip with so many bits a pixel."""
    data = b"".join(
        int("".join(f"{v % 2**bits:0{bits}b}" for v in row), 2).to_bytes(len(row) * bits // 8, "big") for row in rows
    )
    tags = [(256, len(rows[0])), (257, len(rows)), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, len(rows)), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


@pytest.fixture
def tiff(tmp_path):
    def write(array, **options):
        tifffile.imwrite(tmp_path / "x.tif", array, **options)
        return tmp_path / "x.tif"

    return write


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of Pillow, on big TIFF files
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "big"])
def test_the_photometric_tag_holds_for_every_type(tiff, kind, photometric, byteorder, layout):
    array = values(UNIT, kind)
    if kind == "bool" and layout == "tiles":
        pytest.skip("bits are not tiled")
    options = {"strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 16)}, "big": {"bigtiff": True}}[layout]
    path = tiff(array, photometric=photometric, byteorder=byteorder, **options)
    expected = scaled(array) if photometric == "minisblack" else 1 - scaled(array)
    np.testing.assert_allclose(grey(path), expected, atol=1e-6)
    try:
        with Image.open(path) as image:
            np.testing.assert_allclose(grey(image), expected, atol=1e-6)
    except Image.UnidentifiedImageError:
        assert kind in ("f2", "f8") or layout == "big" or (kind, byteorder) == ("u2", ">")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressions(tiff, compression, kind, predictor):
    if predictor and compression in (None, "packbits"):
        pytest.skip("no predictor there")
    array = values(UNIT, kind)
    path = tiff(array, photometric="miniswhite", compression=compression, predictor=predictor)
    np.testing.assert_allclose(grey(path), 1 - scaled(array), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("photometric", [0, 1])
def test_packed_bits_span_their_own_range(tmp_path, bits, photometric):
    array = (UNIT * (2**bits - 1)).round().astype(int)
    write_packed(tmp_path / "x.tif", array.tolist(), bits, 1, photometric)
    expected = array / (2**bits - 1) if photometric else 1 - array / (2**bits - 1)
    np.testing.assert_allclose(grey(tmp_path / "x.tif"), expected, atol=1e-6)
    if bits == 12 and photometric:
        np.testing.assert_allclose(grey(Image.open(tmp_path / "x.tif")), expected, atol=1e-6)
        np.testing.assert_allclose(grey(tmp_path / "x.tif", (0, 8190)), expected / 2, atol=1e-6)


def test_signed_bytes_keep_their_sign(tmp_path):
    signed = RNG.integers(-100, 100, (20, 30))
    write_packed(tmp_path / "x.tif", signed.tolist(), 8, 2)
    for source in (tmp_path / "x.tif", Image.open(tmp_path / "x.tif")):
        with pytest.raises(ImageTypeError, match="int8"):
            read_image(source)
        np.testing.assert_allclose(grey(source, (-128, 127)), (signed + 128) / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "u8", "i8"])
def test_types_of_unknown_range(tiff, kind):
    array = (UNIT * 100).astype(kind)
    for photometric in ("minisblack", "miniswhite"):
        path = tiff(array, photometric=photometric)
        with pytest.raises(ImageTypeError, match=r"x\.tif.*(u?)int.*intensity_range"):
            read_image(path)
        expected = array / 100 if photometric == "minisblack" else 1 - array / 100
        np.testing.assert_allclose(grey(path, (0, 100)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "lzw"}])
def test_colour_keeps_all_its_bits(tiff, kind, planar, layout):
    array = values(COLOUR, kind)
    given = array if planar == "contig" else np.moveaxis(array, -1, 0)
    path = tiff(given, photometric="rgb", planarconfig=planar, **layout)
    np.testing.assert_allclose(read_image(path).pixels.permute(1, 2, 0), scaled(array), atol=1e-6)
    assert expand(path) == [path]


@pytest.mark.parametrize(
    ("alpha", "meaning"), [("unassalpha", "opacity"), ("assocalpha", "done"), ("unspecified", "none")]
)
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_beside_the_colours(tiff, alpha, meaning, kind, channels):
    colours, opacity = values(COLOUR[..., :channels], kind), values(UNIT[..., None], kind)
    array = np.concatenate([colours, opacity], -1)
    path = tiff(
        array, photometric="rgb" if channels == 3 else "minisblack", planarconfig="contig", extrasamples=[alpha]
    )
    expected = scaled(colours) * (scaled(opacity) if meaning == "opacity" else 1)
    found = read_image(path).pixels.permute(1, 2, 0)[..., :channels]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_palettes(tiff):
    index = RNG.integers(0, 256, (20, 32)).astype(np.uint8)
    table = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    path = tiff(index, photometric="palette", colormap=table)
    np.testing.assert_allclose(read_image(path).pixels, table[:, index] / 65535, atol=1e-6)
    path = tiff(index, photometric="palette", colormap=table // 257)  # bytes, as some write them
    np.testing.assert_allclose(read_image(path).pixels, (table // 257)[:, index] / 255, atol=1e-6)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "jpeg", "tiff_lzw"])
def test_other_colours_look_as_pillow_shows_them(tmp_path, mode, compression):
    picture = Image.fromarray((COLOUR * 255).astype(np.uint8))
    if mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, picture.tobytes())
    elif (mode, compression) != ("YCbCr", "jpeg"):
        picture = picture.convert(mode)
    try:
        picture.save(tmp_path / "x.tif", compression=compression)
        with Image.open(tmp_path / "x.tif") as image:
            expected = np.asarray(image.convert("RGB")) / 255
    except (OSError, ValueError) as error:
        pytest.skip(f"not written or read by this Pillow: {error}")
    np.testing.assert_allclose(read_image(tmp_path / "x.tif").pixels.permute(1, 2, 0), expected, atol=1e-6)


def test_fax_compression(tmp_path):
    bits = UNIT > 0.5
    for inverted in (False, True):
        options = {"tiffinfo": {262: 0 if inverted else 1}}
        Image.fromarray(bits).save(tmp_path / "x.tif", compression="group4", **options)
        with Image.open(tmp_path / "x.tif") as image:
            np.testing.assert_allclose(grey(tmp_path / "x.tif"), np.asarray(image))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (RNG.random((20, 32, 5)), {"planarconfig": "contig", "photometric": "minisblack"}, "5 x 64 bits"),
        ((COLOUR * 65535).astype("u2")[..., [0, 1, 2, 0]], {"photometric": "separated"}, "SEPARATED.*16 bits"),
        ((UNIT * 255).astype("u1"), {"photometric": "cfa"}, "CFA"),
        (UNIT.astype("c8"), {"photometric": "minisblack"}, "complex"),
    ],
)
def test_what_is_not_read_is_called_by_what_it_is(tiff, array, options, message):
    (source,) = expand(tiff(array, **options))
    with pytest.raises(ImageError, match=message):
        read_image(source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tiff, orientation):
    array = (UNIT * 255).astype("u1")
    path = tiff(array, extratags=[(274, 3, 1, orientation, True)], compression="zlib")
    with Image.open(path) as image:  # whose own turns are an independent reading
        expected = grey(image)
    assert expected.shape == ((20, 32) if orientation < 5 else (32, 20))
    np.testing.assert_array_equal(grey(path), expected)


STACK = RNG.integers(0, 65536, (5, 8, 12)).astype(np.uint16)


def compare(path, pages):
    sources = expand(path)
    assert len(sources) == len(pages)
    assert [str(s) for s in sources] == [f"{path}[frame {i}]" for i in range(len(pages))]
    for source, page in reversed([*zip(sources, pages, strict=True)]):
        np.testing.assert_allclose(grey(source), scaled(page), atol=1e-6)
    with pytest.raises(ImageFileError, match=f"{len(pages)} images"):
        read_image(path)
    assert slices(path, indices=[1]) == sources[1:2]


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("style", ["imagej", "shaped", "imagej hyperstack"])
def test_stacks_in_one_page(tiff, truncate, style):
    if style == "shaped":
        path = tiff(STACK, photometric="minisblack", metadata={"axes": "ZYX"}, truncate=truncate)
    elif style == "imagej":
        path = tiff(STACK, imagej=True, metadata={"axes": "ZYX"}, truncate=truncate)
    else:
        path = tiff(STACK[:4].reshape(2, 2, 8, 12), imagej=True, metadata={"axes": "TCYX"}, truncate=truncate)
    with tifffile.TiffFile(path) as file:
        assert (len(file.pages) == 1) == truncate
    compare(path, STACK[:4] if "hyper" in style else STACK)


def test_a_stack_that_was_cut_off_is_refused(tiff):
    path = tiff(STACK, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ImageFileError, match="stack of 5"):
        slices(path)


@pytest.mark.parametrize("ome", [False, True])
def test_colour_stacks_and_volumes(tmp_path, ome):
    array = RNG.integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", ome=ome, metadata={"axes": "ZYXS"})
    for source, page in zip(expand(tmp_path / "x.tif"), array, strict=True):
        np.testing.assert_allclose(read_image(source).pixels.permute(1, 2, 0), page / 255, atol=1e-6)
    tifffile.imwrite(tmp_path / "deep.tif", STACK, volumetric=True, tile=(1, 16, 16), photometric="minisblack")
    compare(tmp_path / "deep.tif", STACK)


FULL = RNG.integers(0, 65536, (64, 64)).astype(np.uint16)
OTHER = RNG.integers(0, 65536, (40, 48)).astype(np.uint16)


def write_pages(path, *pages):
    with tifffile.TiffWriter(path) as file:
        for array, options in pages:
            file.write(array, **{"photometric": "minisblack", "metadata": None, **options})
    return path


@pytest.mark.parametrize("small", [{"subfiletype": 1}, {"extratags": [(255, 3, 1, 2, True)]}, {"subfiletype": 9}])
@pytest.mark.parametrize("first", [False, True])
def test_thumbnails_do_not_count(tmp_path, small, first):
    pages = [(FULL, {}), (FULL[::4, ::4], small)]
    path = write_pages(tmp_path / "x.tif", *(pages[::-1] if first else pages))
    assert expand(path) == [path]
    np.testing.assert_allclose(grey(path), FULL / 65535, atol=1e-6)


def test_all_pictures_and_their_own_thumbnails(tmp_path):
    pages = [(FULL, {}), (FULL[::4, ::4], {"subfiletype": 1}), (OTHER, {}), (OTHER[::4, ::4], {"subfiletype": 1})]
    compare(write_pages(tmp_path / "x.tif", *pages), [FULL, OTHER])
    pages = [(FULL, {}), (FULL[::2, ::2], {}), (FULL[::4, ::4], {})]  # no tiles, no marks: pictures of their own
    compare(write_pages(tmp_path / "y.tif", *pages), [FULL, FULL[::2, ::2], FULL[::4, ::4]])


def test_a_thumbnail_alone_is_a_picture(tmp_path):
    path = write_pages(tmp_path / "x.tif", (FULL, {"subfiletype": 1}))
    np.testing.assert_allclose(grey(path), FULL / 65535, atol=1e-6)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("place", ["behind", "below"])
@pytest.mark.parametrize("ome", [False, True])
def test_pyramids(tmp_path, marked, place, ome):
    small = {"subfiletype": 1} if marked else {}
    with tifffile.TiffWriter(tmp_path / "x.tif", ome=ome) as file:
        options = {"tile": (16, 16), "photometric": "minisblack"} | ({} if ome else {"metadata": None})
        file.write(FULL, subifds=2 if place == "below" else None, **options)
        if ome and place == "behind":
            pytest.skip("levels of OME lie below")
        for step in (2, 4):
            file.write(FULL[::step, ::step], **options, **small)
    path = tmp_path / "x.tif"
    assert expand(path) == [path]
    np.testing.assert_allclose(grey(path), FULL / 65535, atol=1e-6)


def test_the_picture_may_lie_below_its_preview(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:  # as cameras write DNG
        options = {"photometric": "minisblack", "metadata": None}
        file.write(FULL[::4, ::4], subifds=1, subfiletype=1, **options)
        file.write(FULL, subfiletype=0, **options)
    path = tmp_path / "x.tif"
    assert expand(path) == [path]
    np.testing.assert_allclose(grey(path), FULL / 65535, atol=1e-6)


def test_whole_slide_files_are_their_baseline(tmp_path):
    description = "Aperio Image Library v1.0\n64x64 [0,0 64x64] (16x16)|AppMag = 20|MPP = 0.5"
    colour = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    rgb = {"photometric": "rgb", "description": description}
    path = write_pages(
        tmp_path / "x.svs",
        (colour, {**rgb, "tile": (16, 16)}),
        (colour[::4, ::4], rgb),
        (colour[::2, ::2], {**rgb, "tile": (16, 16)}),
        (colour[:20, :20], {**rgb, "subfiletype": 1}),
        (colour[:30, :40], {**rgb, "subfiletype": 9}),
    )
    assert expand(path) == [path]
    np.testing.assert_allclose(read_image(path).pixels.permute(1, 2, 0), colour / 255, atol=1e-6)


def test_files_that_lack_something(tmp_path):
    path = write_pages(tmp_path / "x.tif", (FULL, {}), (OTHER, {}))
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageFileError, match=r"x\.tif"):  # noqa: PT012
            for source in expand(path):
                read_image(source)
    tiles = iter([*[np.ones((16, 16), np.uint8)] * 15, None])
    tifffile.imwrite(path, tiles, shape=(64, 64), dtype="u1", tile=(16, 16), compression="zlib")
    with pytest.raises(ImageFileError, match="lacks some of its strips or tiles"):
        read_image(path)


def test_a_file_that_does_not_say_what_zero_is(tmp_path):
    write_packed(tmp_path / "x.tif", [[0, 255], [100, 200]], 8, 1)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    at = data.index(struct.pack("<HHI", 262, 4, 1))
    data[at : at + 2] = struct.pack("<H", 261)
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(ImageFileError, match="black or white is zero"):
        read_image(tmp_path / "x.tif")


def test_pages_that_lead_back_are_read_once(tmp_path):
    path = write_pages(tmp_path / "x.tif", (FULL, {}), (OTHER, {}))
    with tifffile.TiffFile(path) as file:
        first, last = (page.offset for page in file.pages)
        count = len(file.pages[1].tags)
    data = bytearray(path.read_bytes())
    data[last + 2 + 12 * count : last + 6 + 12 * count] = first.to_bytes(4, "little")
    path.write_bytes(data)
    compare(path, [FULL, OTHER])


def test_pil_images_of_several_pages_say_so(tmp_path):
    path = write_pages(tmp_path / "x.tif", (FULL, {}), (OTHER, {}))
    with Image.open(path) as image:
        with pytest.raises(ImageError, match=r"2 pictures.*copy\(\)"):
            read_image(image)
        image.seek(1)
        np.testing.assert_allclose(grey(image.copy()), OTHER / 65535, atol=1e-6)
