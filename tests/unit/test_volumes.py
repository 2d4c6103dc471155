"""A volume has a verdict: threshold, p-value, and regions in millilitres and millimetres."""

import csv

import nibabel
import numpy as np
import pytest
from series_files import SERIES, STUDY, write_series

from oneshot_medad import AnomalyDetector, slices
from oneshot_medad.calibration import stated
from oneshot_medad.cli import app
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.operating import operating_points, sensitive_threshold
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import assemble


def write_nifti(path, levels, affine=None):
    """Slices of a ramp; their mean, which the stub takes for a score, is the level."""
    ramp = np.linspace(-1, 1, 12).reshape(3, 4)[..., None] * 0.01
    values = np.clip(np.array(levels)[None, None] + ramp * (np.array(levels) > 0), 0, 1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 5.0, 1]) if affine is None else affine), path)
    return path


@pytest.fixture
def detector(fitted, stub):
    found = AnomalyDetector(intensity_range=(0, 1))
    found.__dict__.update({**fitted.__dict__, "intensity_range": (0, 1)})
    return found.set_threshold(0.5)


def test_the_verdict_follows_from_the_three_highest_slices(detector, tmp_path):
    (healthy,) = detector.predict(write_nifti(tmp_path / "a.nii", [0, 0.2, 0.6, 0.3, 0.3])).volumes()
    (sick,) = detector.predict(write_nifti(tmp_path / "b.nii", [0.2, 0.6, 0.7, 0.8, 0])).volumes()
    assert (healthy.verdict, healthy.flag, healthy.limits.rule) == ("normal", False, "images")
    assert (sick.verdict, sick.flag, sick.peak_slice) == ("abnormal", True, 3)
    assert sick.score == pytest.approx(0.7, abs=1e-6)
    assert healthy.shown < 0.5 < sick.shown
    assert healthy.p_value is healthy.percentile is None
    assert healthy.regions() == []
    assert np.isnan(healthy.slice_scores).tolist() == [True, False, False, False, False]
    row = sick.to_row()
    assert (row["verdict"], row["slices"], row["judged"], row["peak_slice"], row["regions"]) == ("abnormal", 5, 4, 3, 1)
    assert repr(sick) == (f"<Volume '{tmp_path}/b.nii': abnormal, score 0.700, threshold 0.500, 5 axial slices>")


def test_regions_are_connected_over_slices_in_patient_coordinates(tmp_path):
    affine = np.array([[-2.0, 0, 0, 90], [0, 3.0, 0, -60], [0, 0, -4.0, 100], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "a.nii", [0.1] * 6, affine)
    planes = {z: np.zeros((4, 3), np.float32) for z in range(6)}
    planes[1][0, 0], planes[2][1, 1], planes[2][1, 2], planes[5][3, 0] = 0.9, 1.0, 0.8, 0.7
    (volume,) = assemble(slices(path), np.ones(6), list(planes.values()), Limits(0.5))
    first, second = volume.regions()
    # pictures have anterior up, the patient's right on the left; slices are counted from inferior
    assert (first.voxels, first.score, first.peak_slice, first.slices) == (3, 1.0, 2, (1, 2))
    assert first.ml == pytest.approx(3 * 24 / 1000)
    assert first.mean == pytest.approx(0.9)
    corner = nibabel.affines.apply_affine(affine, volume.regions()[1].peak)
    assert np.allclose(second.centroid, corner)
    # row 3 is the most posterior, column 0 the patient's right, slice 5 the most superior
    assert np.allclose(corner, [90, -60, 100])
    assert first.box[1][2] - first.box[0][2] == 2


def test_heatmaps_are_calm_where_nothing_was_judged(tmp_path):
    path = write_nifti(tmp_path / "a.nii", [0.1] * 3)
    sources = slices(path, indices=[1])
    for threshold, level in ((0.8, 0.0), (0.2, -0.3)):
        (volume,) = assemble(sources, np.ones(1), [np.full((4, 3), 0.9, np.float32)], Limits(threshold))
        assert volume.heatmap[:, :, 0] == pytest.approx(level)
        stored = nibabel.load(volume.save(tmp_path / "heat.nii.gz"))
        low, high = (float(stored.header[name]) for name in ("cal_min", "cal_max"))
        assert low == pytest.approx(level)
        assert (low + high) / 2 == pytest.approx(threshold)
        assert b"abnormal" in bytes(stored.header["descrip"])


def test_calibrate_on_volumes(detector, tmp_path):
    levels = np.linspace(0.3, 0.6, 9)
    normals = [write_nifti(tmp_path / f"n{i}.nii", [0, v, v, v]) for i, v in enumerate(levels)]
    before = detector.threshold_
    detector.calibrate(normals, target_fpr=0.2, by="volume")
    found = detector.calibration_["volumes"]
    assert (found["rule"], found["n_normal"]) == ("normals", 9)
    assert found["threshold"] == pytest.approx(levels[7], abs=1e-6)  # the 8th of 9
    assert detector.threshold_ == before
    assert detector.calibration_scores_ is None
    (volume,) = detector.predict(write_nifti(tmp_path / "s.nii", [0.59, 0.59, 0.59])).volumes()
    assert (volume.verdict, volume.p_value) == ("abnormal", pytest.approx(2 / 10))
    assert volume.percentile == pytest.approx(100 * 8 / 9)
    saved = detector.save_pretrained(tmp_path / "saved")
    assert "Calibrated on 9 volumes" in (saved / "README.md").read_text()
    assert "Volumes: threshold 0.5" in detector.describe()
    again = AnomalyDetector.from_pretrained(saved)
    assert again.calibration_["volumes"] == found
    assert detector.set_threshold(0.9, by="volume").predict(tmp_path / "s.nii").volumes()[0].verdict == "normal"
    assert detector.threshold_ == before


def test_calibrate_on_labelled_volumes(detector, tmp_path):
    paths = [write_nifti(tmp_path / f"{i}.nii", [v, v, v]) for i, v in enumerate((0.2, 0.3, 0.4, 0.5, 0.6))]
    detector.calibrate(paths, [0, 0, 0, 1, 1], by="volume", target_sensitivity=0.6)
    found = detector.calibration_["volumes"]
    assert found["rule"] == "sensitivity"
    assert 0.4 < found["threshold"] < found["operating_points"][0]["threshold"] + 0.2
    assert found["operating_points"][0]["sensitivity"] == 1
    with pytest.raises(ConfigError, match="5, 0 and 1"):
        detector.calibrate(paths, [0, 1], by="volume")


def test_what_cannot_be_calibrated_on(detector, tmp_path, sample):
    path = write_nifti(tmp_path / "a.nii", [0.2, 0.3])
    with pytest.raises(ImageError, match=r"image 0.*no slice of a volume"):
        detector.calibrate(sample.images, by="volume")
    (tmp_path / "b.nii").write_bytes(path.read_bytes())
    with pytest.raises(ImageError, match=r"copies.*b\.nii"):
        detector.calibrate([path, tmp_path / "b.nii"], by="volume")
    with pytest.raises(ConfigError, match="'image' or 'volume'"):
        detector.calibrate([path], by="study")
    with pytest.raises(ImageError, match="no slice that can be judged"):
        detector.calibrate(write_nifti(tmp_path / "c.nii", [0.0, 0.0]), by="volume")


def test_a_volume_of_another_kind_cannot_be_judged(detector, tmp_path):
    predictions = detector.predict(write_nifti(tmp_path / "a.nii", [0, 0.2, 0.6]))
    object.__setattr__(predictions, "least_similarity", 2.0)
    (volume,) = predictions.volumes()
    assert (volume.verdict, volume.flag, volume.to_row()["score"]) == ("cannot judge", None, None)
    (blank,) = detector.predict(write_nifti(tmp_path / "b.nii", [0, 0])).volumes()
    assert blank.verdict == "not read"


def test_tables_name_study_and_series(detector, tmp_path, capsys):
    planes = (np.full((3, 4, 5), 100) + np.arange(20).reshape(4, 5)).astype(np.uint8)
    write_series(tmp_path / "scan", planes, WindowCenter=128, WindowWidth=256)
    detector.intensity_range = None
    saved = detector.save_pretrained(tmp_path / "detector")
    with pytest.raises(SystemExit) as done:
        app(["predict", str(saved), str(tmp_path / "scan"), "--out", str(tmp_path / "out")])
    assert done.value.code == 0
    assert f"{tmp_path}/scan: normal, score 0.4" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "out/volumes.csv").open())
    assert (row["name"], row["study"], row["series"]) == (str(tmp_path / "scan"), STUDY, SERIES)
    assert row["verdict"] == "normal"
    stored = nibabel.load(tmp_path / "out" / row["heatmap"])
    assert stored.shape == (5, 4, 3)


def test_a_sensitivity_is_promised_by_abnormal_images():
    abnormal = np.arange(1.0, 40.0)
    limit = sensitive_threshold(abnormal, 0.95)
    assert (abnormal > limit).sum() == 38  # of 39, the second smallest is the first to exceed it
    with pytest.raises(ConfigError, match=r"support sensitivities up to 39/40.*at least 99"):
        sensitive_threshold(abnormal, 0.99)
    found = stated(
        {
            "threshold": limit,
            "rule": "sensitivity",
            "uncertain_from": None,
            "target_fpr": None,
            "uncertain_fpr": None,
            "target_sensitivity": 0.95,
            "normal_scores": [0.0],
            "abnormal_scores": abnormal.tolist(),
            "images": [],
        }
    )
    assert found["expected_sensitivity"] == pytest.approx(0.95)
    rng = np.random.default_rng(0)  # the promise holds on average over draws
    shares = [1 - sensitive_threshold(rng.uniform(size=39), 0.95) for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(0.95, abs=0.003)
    assert np.quantile(shares, 0.05) == pytest.approx(found["sensitivity_bound"], abs=0.01)


def test_operating_points_say_what_each_rate_costs():
    points = operating_points(np.arange(19.0), [17.5, 18.5, 30.0, 40.0])
    assert [point["target_fpr"] for point in points] == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert points[0]["threshold"] == 18
    assert points[0]["sensitivity"] == 0.75
    assert points[0]["sensitivity_interval"] == pytest.approx([0.194, 0.994], abs=1e-3)
    assert points[1]["sensitivity"] == 1
    assert operating_points([1.0], []) == []
