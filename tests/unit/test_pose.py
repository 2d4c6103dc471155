import numpy as np
import pytest
import torch

from oneshot_medad import AnomalyDetector
from oneshot_medad.nn.pose import POSES, known_poses, layout, poses_of

CHANGES = {
    "": lambda image: image[:, ::-1],
    "turned by 90 degrees": np.rot90,
    "with dark and bright exchanged": lambda image: 255 - image,
}


@pytest.fixture(scope="module")
def fitted(sample, small):
    return AnomalyDetector(recipe=small, random_state=0).fit(sample.support)


@pytest.mark.parametrize("pose", CHANGES)
def test_how_an_image_lies_is_said_and_changes_no_verdict(fitted, sample, pose):
    images = [np.ascontiguousarray(CHANGES[pose](image)) for image in sample.images[:3]]
    found = fitted.predict(images)
    assert found.poses == [pose] * 3
    for row in found.to_rows():
        assert (pose in row["reason"]) if pose else not row["reason"]
        assert row["verdict"] in ("normal", "abnormal", "cannot judge")


def test_a_stored_detector_tells_the_same(fitted, sample, tmp_path):
    again = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "d"))
    turned = [np.rot90(image).copy() for image in sample.images[:2]]
    assert again.predict(turned).poses == fitted.predict(turned).poses


def test_a_mirrored_view_counts_as_well_as_the_view_itself():
    features = [torch.randn(1, 6, 16, 16), torch.randn(1, 9, 8, 8)]
    turned = [[f.rot90(k, (2, 3)) for f in features] for k in range(4)]
    known = torch.stack([layout(seen) for seen in (*turned, [-f for f in features])])
    mirrored = [f.flip(-1) for f in features]
    assert poses_of(known, layout(features)) == [""]
    assert poses_of(known, layout(mirrored), layout(features)) == [""]
    assert poses_of(known, layout(turned[2])) == ["upside down"]


def test_references_that_lie_in_any_way_tell_nothing():
    features = torch.randn(1, 6, 16, 16)
    turned = [torch.cat([features, features.rot90(1, (2, 3))]).rot90(k, (2, 3)) for k in range(4)]
    layouts = torch.stack([layout([t]) for t in (*turned, -turned[0])])
    assert known_poses(layouts).shape[1] == 0
    assert known_poses(layouts[:, :1]).shape[:2] == (len(POSES), 1)
    assert poses_of(known_poses(layouts), layout([features])) == [""]
