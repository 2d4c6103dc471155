"""What other packages say while files are read does not reach the user, and nothing of the process stays changed."""

import logging
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import tifffile
from dicom_files import PACKAGED

from oneshot_medad import slices
from oneshot_medad.errors import ImageError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.quiet import quiet
from oneshot_medad.images.read import read_image


@pytest.fixture
def noisy(tmp_path):
    """Files of which pydicom, nibabel, tifffile and Pillow complain."""
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[80:84] = bytes(4)  # a voxel size of 0
    (tmp_path / "a.nii").write_bytes(data)
    tifffile.imwrite(tmp_path / "a.tif", np.arange(64, dtype=np.uint8).reshape(8, 8), photometric="minisblack")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[-70:-64] = b"\xff" * 6
    (tmp_path / "b.tif").write_bytes(data[:60])
    return [
        slices(tmp_path / "a.nii")[2],
        tmp_path / "b.tif",
        *(PACKAGED / name for name in ("badVR.dcm", "rtdose.dcm")),
    ]


def read(source):
    try:
        read_image(source, intensity_range=(0, 60))
    except ImageError:
        return


def test_nothing_is_said_and_nothing_stays_changed(noisy, capfd):
    before = list(warnings.filters), [logging.getLogger(name).disabled for name in ("tifffile", "nibabel.global")]
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        list(pool.map(read, noisy * 10))
    assert not caught
    assert capfd.readouterr().err == ""
    after = list(warnings.filters), [logging.getLogger(name).disabled for name in ("tifffile", "nibabel.global")]
    assert after == before


def test_warnings_of_others_still_come():
    with pytest.warns(UserWarning, match="mine"), quiet(), quiet():
        warnings.warn("mine", stacklevel=1)


def test_reading_imports_no_decoder_before_it_is_needed():
    script = (
        "import sys; from oneshot_medad.images.read import expand\n"
        "print({'pydicom', 'nibabel', 'tifffile', 'imagecodecs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_expand_is_quiet_too(noisy):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expand(PACKAGED)
    assert not caught


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_quiet_too_and_cleans_up_after_itself():
    """Also one that begins while another thread, or this one, reads."""

    def right():
        before = list(warnings.filters)
        with quiet():
            inside = warnings.filters[0][0] == "ignore" and warnings.filters[0][3].match("pydicom.x")
        return bool(inside) and list(warnings.filters) == before

    with quiet():
        child = os.fork()
        if child == 0:
            os._exit(0 if right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = os.fork()
    if child == 0:
        os._exit(0 if right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
