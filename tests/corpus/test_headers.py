"""Headers with anything in them: an image in [0, 1] comes out, or an error of this package, and nothing else."""

import struct

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneshot_medad.errors import ImageError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PIXELS = np.arange(64, dtype="<u2").reshape(8, 8) * 60
WORDS = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"-1", b"1\\2", b"\\", b"1e400", b"nan", b"0,5", b"a" * 70]),
    st.sampled_from([b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"YBR_FULL_422"]),
    st.binary(max_size=12),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("<i", n)),
    st.integers(0, 2**16 - 1).map(lambda n: struct.pack("<H", n)),
)


def try_all(path, window):
    """Whether anything was read; what is read lies in [0, 1]."""
    try:
        sources = expand(path)
        images = [read_image(source, intensity_range=window) for source in sources[:3]]
    except ImageError as error:
        if "\n" in str(error):
            raise AssertionError(str(error)) from error
        return False
    for image in images:
        assert image.pixels.shape[0] == 3
        assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
        assert image.spacing is None or min(image.spacing) > 0
        assert 0 < image.aspect < float("inf")
    return True


UID = b"1.2.840.10008.5.1.4.1.1.7"
ELEMENTS = {
    (0x0008, 0x0016): (b"UI", UID + b"\0"),
    (0x0008, 0x0060): (b"CS", b"OT"),
    (0x0018, 0x1114): (b"DS", b"1.5 "),
    (0x0018, 0x1164): (b"DS", b"0.1\\0.1 "),
    (0x0028, 0x0002): (b"US", struct.pack("<H", 1)),
    (0x0028, 0x0004): (b"CS", b"MONOCHROME2 "),
    (0x0028, 0x0006): (b"US", struct.pack("<H", 0)),
    (0x0028, 0x0008): (b"IS", b"1 "),
    (0x0028, 0x0010): (b"US", struct.pack("<H", 8)),
    (0x0028, 0x0011): (b"US", struct.pack("<H", 8)),
    (0x0028, 0x0030): (b"DS", b"0.5\\0.5 "),
    (0x0028, 0x0034): (b"IS", b"1\\1 "),
    (0x0028, 0x0100): (b"US", struct.pack("<H", 16)),
    (0x0028, 0x0101): (b"US", struct.pack("<H", 12)),
    (0x0028, 0x0102): (b"US", struct.pack("<H", 11)),
    (0x0028, 0x0103): (b"US", struct.pack("<H", 0)),
    (0x0028, 0x0120): (b"US", struct.pack("<H", 60)),
    (0x0028, 0x0121): (b"US", struct.pack("<H", 120)),
    (0x0028, 0x1050): (b"DS", b"2000"),
    (0x0028, 0x1051): (b"DS", b"4000"),
    (0x0028, 0x1052): (b"DS", b"0 "),
    (0x0028, 0x1053): (b"DS", b"1 "),
    (0x0028, 0x1056): (b"CS", b"LINEAR"),
    (0x0028, 0x1101): (b"US", struct.pack("<3H", 4, 0, 16)),
    (0x0028, 0x1201): (b"OW", struct.pack("<4H", 0, 1, 2, 3)),
    (0x0028, 0x3010): (b"SQ", b""),
    (0x0028, 0x9145): (b"SQ", b""),
    (0x5200, 0x9229): (b"SQ", b""),
    (0x7FE0, 0x0010): (b"OW", PIXELS.tobytes()),
}
VRS = [b"US", b"SS", b"DS", b"IS", b"CS", b"UI", b"OW", b"OB", b"SQ", b"UN", b"FD", b"LO"]


def dicom(changes, syntax, preamble):
    elements = {**ELEMENTS, **{tag: change for tag, change in changes.items() if change}}
    elements = {tag: element for tag, element in elements.items() if changes.get(tag, True) is not None}
    meta = {(0x0002, 0x0010): (b"UI", syntax + b"\0" * (len(syntax) % 2))}
    head = bytes(128) + b"DICM" + _encode(meta) if preamble else b""
    return head + _encode(elements)


def _encode(elements):
    parts = []
    for (group, element), (vr, value) in sorted(elements.items()):
        value += b"\0" * (len(value) % 2)
        long = vr in (b"OW", b"OB", b"SQ", b"UN")
        size = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
        parts.append(struct.pack("<HH", group, element) + vr + size + value)
    return b"".join(parts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [None, (0, 4000)])
def test_dicom_headers(tmp_path, window):
    path = tmp_path / "x.dcm"
    read = []

    @EXAMPLES
    @given(
        st.dictionaries(
            st.sampled_from(list(ELEMENTS)), st.one_of(st.none(), st.tuples(st.sampled_from(VRS), WORDS)), max_size=4
        ),
        st.sampled_from([b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.90", b"1.2", b""]),
        st.booleans(),
    )
    def change(changes, syntax, preamble):
        path.write_bytes(dicom(changes, syntax, preamble))
        read.append(try_all(path, window))

    path.write_bytes(dicom({}, b"1.2.840.10008.1.2.1", True))
    assert try_all(path, window)
    change()
    assert 0 < sum(read) < len(read)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_nifti_headers(tmp_path, kind):
    path = tmp_path / "x.nii"
    header = kind()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["sform_code"], header["srow_x"][0] = 544, 1, 1
    header["srow_y"][1], header["srow_z"][2], header["pixdim"][:4] = 1, 1, 1
    header["magic"] = b"n+1" if kind is nibabel.Nifti1Header else b"n+2"
    fields = header.structarr.dtype.fields
    pixels = np.arange(120, dtype="<i2").tobytes()
    read = []

    def write(changes):
        block = bytearray(header.binaryblock)
        for name, data in changes.items():
            dtype, at = fields[name][:2]
            data = data[: dtype.itemsize]
            block[at : at + len(data)] = data
        path.write_bytes(bytes(block) + bytes(544 - len(block)) + pixels)

    @EXAMPLES
    @given(st.dictionaries(st.sampled_from(list(fields)), st.binary(min_size=1, max_size=24), max_size=4))
    def change(changes):
        write(changes)
        read.append(try_all(path, (0, 120)))

    write({})
    assert try_all(path, (0, 120))
    change()
    assert 0 < sum(read) < len(read)


TAGS = {
    254: (4, 1, 0),
    256: (3, 1, 8),
    257: (3, 1, 8),
    258: (3, 1, 16),
    259: (3, 1, 1),
    262: (3, 1, 1),
    266: (3, 1, 1),
    270: (2, 4, 0),
    273: (4, 1, 8),
    274: (3, 1, 1),
    277: (3, 1, 1),
    278: (3, 1, 8),
    279: (4, 1, 128),
    284: (3, 1, 1),
    317: (3, 1, 1),
    320: (3, 3, 8),
    322: (3, 1, 16),
    330: (4, 1, 8),
    338: (3, 1, 2),
    339: (3, 1, 1),
    32997: (4, 1, 1),
}
BASE = (254, 256, 257, 258, 259, 262, 273, 277, 278, 279)


def tiff(changes, following):
    tags = {tag: TAGS[tag] for tag in BASE} | {tag: entry for tag, entry in changes.items() if entry}
    tags = {tag: entry for tag, entry in tags.items() if changes.get(tag, True) is not None}
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    pixels = PIXELS.tobytes()
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


@pytest.mark.filterwarnings("ignore")
def test_tiff_headers(tmp_path):
    path = tmp_path / "x.tif"
    read = []
    small = st.one_of(st.integers(0, 40), st.sampled_from([6, 7, 255, 32773, 32946, 34712, 65535, 2**31, 2**32 - 1]))

    @EXAMPLES
    @given(
        st.dictionaries(
            st.sampled_from(list(TAGS)),
            st.one_of(st.none(), st.tuples(st.integers(0, 18), st.integers(0, 5), small)),
            max_size=4,
        ),
        st.sampled_from([0, 0, 0, 8, 136, 2**32 - 1]),
    )
    def change(changes, following):
        path.write_bytes(tiff(changes, following))
        read.append(try_all(path, (0, 65535)))

    path.write_bytes(tiff({}, 0))
    assert try_all(path, (0, 65535))
    change()
    assert 0 < sum(read) < len(read)
