"""Manifests: what is listed, by which address and id, and how it comes to hand again."""

import os
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dicom_files import PACKAGED, write_dicom
from PIL import Image

from oneshot_medad import archive
from oneshot_medad.archive import addresses, manifests
from oneshot_medad.archive.addresses import at_hand, id_of, place_of, uri_of
from oneshot_medad.archive.store import check_manifest
from oneshot_medad.errors import ConfigError, ExtraError, ImageFileError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.files import Member, Slice
from oneshot_medad.images.grouping import COPY, LOCALIZER
from oneshot_medad.images.read import read_image

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def listed(path):
    table = pq.read_table(path)
    assert table.schema.names == ["id", "uri"]
    assert table.schema.field("id").type == pa.int64()
    uris = table["uri"].to_pylist()
    assert table["id"].to_pylist() == list(map(id_of, uris))
    return uris


@pytest.fixture
def tree(tmp_path):
    """Images of every kind at several depths, and what lies beside them."""
    root = tmp_path / "tree"
    for name in ("b.png", "p/a.png", "p/s/a b.png", ".hidden/z.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(root / name)
    write_dicom(root / "p" / "cine", np.stack([GREY] * 3))
    write_dicom(root / "p" / "seg.dcm", GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    nibabel.save(nibabel.Nifti1Image(np.stack([GREY] * 2, -1), np.diag([1, 1, 5, 1])), root / "p" / "t1.nii.gz")
    (root / "p" / "notes.txt").write_text("no image")
    with zipfile.ZipFile(root / "p" / "s" / "scans.zip", "w") as packed:
        packed.write(root / "b.png", "deep/c.png")
    return root


def test_a_folder_is_listed_as_predict_finds_it(tree, tmp_path):
    found = archive.make_manifest(tree, tmp_path / "m.parquet", recursive=True)
    wanted = expand(tree, recursive=True)
    assert sorted(listed(found.path)) == sorted(map(str, wanted))
    assert found.images == len(wanted) == 8
    assert found.left_out == dict(wanted.left_out) == {".txt": 1, "SEG": 1, ".zip": 1}
    flat = archive.make_manifest(tree, tmp_path / "flat.parquet")
    assert listed(flat.path) == [str(tree / "b.png")]
    assert flat.left_out == {"folder": 1}


def test_several_inputs_are_listed_once(tree, tmp_path):
    archive_ = tree / "p" / "s" / "scans.zip"
    found = archive.make_manifest(
        [tree / "p", str(archive_), f"{tree}/**/*.png", tree / "b.png"], tmp_path / "m.parquet"
    )
    uris = listed(found.path)
    assert len(uris) == len(set(uris)) == found.images
    assert f"{archive_}/deep/c.png" in uris
    assert uris.count(str(tree / "b.png")) == 1


def test_relative_paths_become_absolute(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree)
    assert listed(archive.make_manifest("b.png", tmp_path / "m.parquet").path) == [str(tree / "b.png")]


def test_files_of_one_image_need_not_be_opened(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("oneshot_medad.images.expand.open_stack", None)
    found = archive.make_manifest(tree, tmp_path / "m.parquet", recursive=True, single=True)
    assert [uri for uri in listed(found.path) if "[" in uri] == []
    assert found.images == 6  # cine, seg.dcm and t1.nii.gz once each
    assert found.left_out == {".txt": 1, ".zip": 1}


def test_discs_are_searched_and_links_followed_once(tmp_path):
    disc = tmp_path / "all" / "disc"
    (disc / "IMAGES").mkdir(parents=True)
    write_dicom(disc / "IMAGES" / "I1", GREY)
    (disc / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    Image.fromarray(GREY).save(disc / "logo.png")
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    found = archive.make_manifest(tmp_path / "all", tmp_path / "m.parquet", recursive=True)
    assert listed(found.path) == [str(disc / "IMAGES" / "I1")]
    assert found.left_out == {".png": 1}


def test_nothing_to_list_is_an_error_and_an_old_manifest_stays(tree, tmp_path):
    path = archive.make_manifest(tree / "b.png", tmp_path / "m.parquet").path
    before = path.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("no image")
    with pytest.raises(ImageFileError, match=r"no image in .*empty.* 1 left out \(\.txt\)"):
        archive.make_manifest(tmp_path / "empty", path)
    with pytest.raises(ImageFileError, match="no file or folder"):
        archive.make_manifest(tmp_path / "nowhere", path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_pyarrow_may_be_missing(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ExtraError, match=r"oneshot-medad\[ray\]"):
        archive.make_manifest(tree, tmp_path / "m.parquet")


def test_two_addresses_of_one_id_are_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "id_of", lambda uri: 7)
    with pytest.raises(ConfigError, match="share an id; wanted two manifests"):
        archive.make_manifest(tree, tmp_path / "m.parquet", recursive=True)
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1, 2]}, "uri missing"),
        ({"id": ["1", "2"], "uri": ["a", "b"]}, "id string"),
        ({"id": [1, 1], "uri": ["a", "b"]}, "1 ids more than once"),
        ({"id": pa.array([], pa.int64()), "uri": pa.array([], pa.string())}, "without rows"),
    ],
)
def test_other_manifests_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=message):
        check_manifest(tmp_path / "m.parquet")


def test_what_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_text("no Parquet")
    for path in (tmp_path / "m.parquet", tmp_path / "none.parquet"):
        with pytest.raises(ImageFileError, match="Cannot read the manifest"):
            check_manifest(path)


# --- addresses -----------------------------------------------------------------------------------------------------


def test_ids_are_of_64_bits_and_stay():
    assert id_of("/scans/a.png") == -5867541960524755701
    assert len({id_of(f"/scans/{i}.png") for i in range(100_000)}) == 100_000


@pytest.mark.parametrize(
    "name", [b"a.png", "影 [1]#%20?.png".encode(), b"M\xfcller.png", b"odd[frame 3]", b"a:b.png", b"x.zip"]
)
@pytest.mark.parametrize("address", ["", "[axial 4]"])
def test_every_name_survives(tmp_path, name, address):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(b"x")
    place = Slice(path, "axial", 4) if address else path
    uri = uri_of(place)
    uri.encode()  # as Parquet needs it
    assert place_of(uri) == place
    assert not addresses.is_remote(uri)


def test_members_of_archives_survive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ZIP", "w") as packed:
        packed.writestr("b.zip/c.png", "x")
    member = Member(tmp_path / "a.ZIP", "b.zip/c.png")
    assert place_of(uri_of(member)) == member
    assert place_of(uri_of(Slice(member, "frame", 2))) == Slice(member, "frame", 2)


@pytest.fixture
def remote(monkeypatch):
    """Local folders, reached as if they were elsewhere."""
    monkeypatch.setattr(addresses, "_FILE", "none://")
    monkeypatch.setattr(addresses, "WAITS", (0.0,))


@pytest.mark.usefixtures("remote")
def test_remote_folders_are_listed_and_fetched(tree, tmp_path):
    pair = nibabel.Nifti1Pair(np.stack([GREY] * 2, -1), np.diag([1, 1, 5, 1]))
    nibabel.save(pair, tree / "p" / "pair.hdr")
    found = archive.make_manifest(f"file://{tree}/p/", tmp_path / "m.parquet", recursive=True)
    uris = listed(found.path)
    here = expand(tree / "p", recursive=True)
    assert sorted(uris) == sorted(f"file://{one}" for one in map(str, here))
    assert found.left_out == {".txt": 1, "SEG": 1, ".zip": 1, ".img": 1}
    with at_hand(uris) as places:
        assert not any(str(place).startswith(str(tree)) for place in places)
        for uri, place in zip(uris, places, strict=True):
            there = read_image(uri.removeprefix("file://"), intensity_range=(0, 255)).pixels
            assert (read_image(place, intensity_range=(0, 255)).pixels == there).all()
    assert not any(Path(str(place).split("[")[0]).exists() for place in places)
    with pytest.raises(ConfigError, match="cannot be used"):
        archive.make_manifest("nowhere://bucket/x", tmp_path / "n.parquet")


@pytest.mark.usefixtures("remote")
def test_what_is_not_there_is_an_error_of_its_own_and_an_outage_one_of_all(tree, tmp_path):
    gone = [f"file://{tmp_path}/gone{i}.png" for i in range(addresses.OUTAGE)]
    with at_hand([gone[0], f"file://{tree}/b.png", str(tree / "none.png")]) as places:
        assert [isinstance(place, ImageFileError) for place in places] == [True, False, True]
        assert "no file" in str(places[0])
    with at_hand(gone[1:]) as places:
        assert all(isinstance(place, ImageFileError) for place in places)
    for outage in (gone, [one.removeprefix("file://") for one in gone]):
        with pytest.raises(ImageFileError, match=r"nothing of 16 images on .*every machine"), at_hand(outage):
            pass


@pytest.mark.usefixtures("remote")
def test_a_fetch_is_tried_again(tree, monkeypatch):
    calls = []
    copy = addresses._copy

    def flaky(uri, target):
        calls.append(uri)
        if len(calls) == 1:
            raise OSError("connection reset")
        copy(uri, target)

    monkeypatch.setattr(addresses, "_copy", flaky)
    with at_hand([f"file://{tree}/b.png"]) as places:
        assert read_image(places[0]).size == (20, 30)
    assert len(calls) == 2
    monkeypatch.setattr(addresses, "_copy", lambda uri, target: (_ for _ in ()).throw(OSError("refused")))
    with at_hand([f"file://{tree}/b.png"]) as places:
        assert "Cannot be fetched: refused" in str(places[0])


def test_the_packaged_files(tmp_path):
    found = archive.make_manifest(PACKAGED, tmp_path / "m.parquet", recursive=True)
    wanted = expand(PACKAGED, recursive=True)
    extra = set(listed(found.path)) - set(map(str, wanted))
    beside = {kind: wanted.left_out[kind] for kind in (LOCALIZER, COPY) if kind in wanted.left_out}
    assert not set(map(str, wanted)) - set(listed(found.path))
    assert len(extra) == sum(beside.values())  # a manifest looks at one file at a time
    assert found.left_out == {k: n for k, n in wanted.left_out.items() if k not in beside}
