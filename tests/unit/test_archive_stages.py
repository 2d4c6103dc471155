"""What the workers of an archive do, without Ray: files become fields, and these the rows that `predict` gives."""

import os
import pickle
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import torch
from dicom_files import PACKAGED, write_dicom
from PIL import Image

from oneshot_medad.archive.addresses import id_of, uri_of
from oneshot_medad.archive.stages import Judge, decode
from oneshot_medad.images.expand import expand
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.images.read import read_image


@pytest.fixture(scope="module")
def one_thread():
    """Sums of several threads differ in the last digits; workers have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mixed(sample, tmp_path):
    """Images of several kinds and sizes, some that cannot be read, and names of every kind."""
    for i, image in enumerate(sample.images[:3]):
        Image.fromarray(image[: 200 + 10 * i]).save(tmp_path / f"{i}.png")
    Image.fromarray(np.stack([sample.images[3], sample.images[4], sample.support], -1)).save(tmp_path / "colour.png")
    Image.fromarray(sample.images[5]).save(os.fsencode(tmp_path) + b"/M\xfcller [axial 1].png")
    write_dicom(tmp_path / "cine", np.stack(sample.images[:2]), PixelAspectRatio=[2, 1])
    volume = np.stack([np.zeros_like(sample.support), *sample.images[:2]], -1)
    image = nibabel.Nifti1Image(volume, np.diag([1, 2, 5, 1]))
    image.header["cal_max"] = 255
    nibabel.save(image, tmp_path / "t1.nii")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "constant.png")
    Image.fromarray((sample.support > 90).astype(np.uint8) * 255).save(tmp_path / "other kind.png")
    return expand(tmp_path)


def manifest(sources):
    uris = list(map(uri_of, sources))
    return pa.table({"id": list(map(id_of, uris)), "uri": uris})


def test_rows_and_heatmaps_are_those_of_predict(fitted, mixed, one_thread, tmp_path):
    detector = pickle.loads(pickle.dumps(fitted))
    detector.calibrate(mixed[-3:-2] + mixed[:2], target_fpr=0.5, accept_unlike=True)
    wanted = detector.predict(mixed, on_error="record")
    files = wanted.save_heatmaps(tmp_path / "heatmaps")
    rows = manifest(mixed)
    side = detector._ready().networks.spec.image_px
    judge = Judge(pickle.loads(pickle.dumps(detector._ready().portable())), heatmaps=True)
    for batches in ([rows], [rows[i : i + 5] for i in range(0, len(rows), 5)], [rows[i : i + 1] for i in range(3)]):
        got = pa.concat_tables([judge(decode(batch, detector.intensity_range, side)) for batch in batches]).to_pylist()
        for i, (row, expected) in enumerate(zip(got, wanted.to_rows(), strict=False)):
            assert row.pop("id") == id_of(uri_of(mixed[i]))
            heatmap = row.pop("heatmap")
            assert row == expected
            assert (heatmap is None) == (files[i] is None)
            if files[i]:
                assert heatmap == files[i].read_bytes()
                assert Image.open(BytesIO(heatmap)).size[::-1] == wanted.heatmaps[i].shape
    verdicts = [row["verdict"] for row in wanted.to_rows()]
    assert verdicts.count("not read") == 3
    assert [row["reason"] for row in wanted.to_rows()].count("blank slice") == 1


def test_a_field_is_a_field_again():
    """What lets `predict` take what `decode` made: fitting into the field leaves it as it is, to the bit."""
    field = to_field(torch.rand(3, 211, 173, generator=torch.Generator().manual_seed(0)), 256, 1.3)
    assert torch.equal(to_field(field, 256), field)


def test_fields_are_those_of_the_images(sample, tmp_path):
    Image.fromarray(sample.support).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([sample.support] * 3, -1)).save(tmp_path / "colour.png")
    sources = [tmp_path / "grey.png", tmp_path / "colour.png", PACKAGED / "MR_small.dcm"]
    rows = decode(manifest(sources), None, 64).to_pylist()
    assert [len(row["field"]) // 4 // 64**2 for row in rows] == [1, 3, 1]
    for row, source in zip(rows, sources, strict=True):
        image = read_image(source)
        field = torch.from_numpy(np.frombuffer(row["field"], np.float32).reshape(-1, 64, 64).copy())
        assert torch.equal(field.expand(3, -1, -1), to_field(image.pixels, 64, image.aspect))
        assert (row["height"], row["width"]) == image.size
        assert row["reason"] is None


def test_reasons_name_the_address_not_the_place_it_was_fetched_to(tmp_path, monkeypatch):
    from oneshot_medad.archive import addresses

    monkeypatch.setattr(addresses, "_FILE", "none://")  # local files as if they were elsewhere
    write_dicom(tmp_path / "torn.dcm", np.ones((4, 4), np.uint8))
    (tmp_path / "torn.dcm").write_bytes((tmp_path / "torn.dcm").read_bytes()[:200])
    write_dicom(tmp_path / "cine.dcm", np.stack([np.eye(4, dtype=np.uint8)] * 2))
    root = f"file://{tmp_path}"
    uris = [f"{root}/torn.dcm", f"{root}/torn.dcm[frame 1]", f"{root}/cine.dcm[frame 7]", f"{root}/cine.dcm"]
    rows = decode(pa.table({"id": list(range(4)), "uri": uris}), None, 64).to_pylist()
    assert [row["name"] for row in rows] == uris
    for row in rows:
        assert row["field"] is None
        assert "/tmp" not in row["reason"].replace(root, "")
    assert "0 to 1" in rows[2]["reason"]
    assert "holds 2 images" in rows[3]["reason"]


def test_a_row_for_every_input_whatever_is_in_it(fitted, tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    uris = [str(tmp_path / "a.txt"), str(tmp_path / "none.png"), str(tmp_path), "no path at all", "", "s3:/x"]
    rows = pa.table({"id": list(range(len(uris))), "uri": uris})
    got = Judge(fitted._ready(), heatmaps=False)(decode(rows, None, 256)).to_pylist()
    assert [row["id"] for row in got] == list(range(len(uris)))
    assert {row["verdict"] for row in got} == {"not read"}
    assert all(row["reason"] and row["score"] is None and row["flag"] is None for row in got)
    assert Path(got[0]["name"]) == tmp_path / "a.txt"
