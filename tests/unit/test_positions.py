"""Slices are compared with references near their own place in the volume, and not judged beyond them."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.heads import simulate
from oneshot_medad import AnomalyDetector, slices
from oneshot_medad._predicting import read_one, score
from oneshot_medad.errors import ConfigError
from oneshot_medad.nn.adapters import highest
from oneshot_medad.nn.matching import References, match
from oneshot_medad.scoring import Scorer
from oneshot_medad.training.cache import COVER, MOST_SLICES, _most_different, _scattered, _unit


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return simulate(0).save(tmp_path_factory.mktemp("heads") / "healthy.nii")


@pytest.fixture(scope="module")
def detector(head, small):
    return AnomalyDetector(recipe=replace(small, n_lesions=2), random_state=0).fit(f"{head}[axial 3:7]")


def test_near_references_are_those_in_reach_and_never_too_few():
    levels = [torch.randn(6, 2, 4, 4)]
    references = References(levels, torch.ones(1, 2), torch.tensor([0.0, 0.05, 0.1, 0.12, 0.5, 1.0]))
    assert references.near(0.04).positions.tolist() == pytest.approx([0.0, 0.05, 0.1, 0.12])
    assert references.near(0.9).positions.tolist() == pytest.approx([0.12, 0.5, 1.0])  # three, however far
    assert torch.equal(references.near(0.9).levels[0], levels[0][3:])
    assert references.near(float("nan")) is references
    assert References(levels, torch.ones(1, 2)).near(0.5).levels is levels
    assert references.near(0.1, apart=True).positions.tolist() == pytest.approx([0.0, 0.05, 0.12])
    alone = References(levels, torch.ones(1, 2), torch.zeros(6))
    assert len(alone.near(0.0, apart=True).positions) == 6


def test_the_spread_of_slices_is_that_to_their_neighbours():
    level = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.9, 0.91, 0.92, 0.93])
    found = References.of([level], positions).spread[0]
    halves = [match(half[k : k + 1], half, left_out=k).distance for half in level.split(4) for k in range(4)]
    torch.testing.assert_close(found, torch.cat(halves, dim=1).mean((1, 2, 3)))
    assert not torch.allclose(found, References.of([level]).spread[0])


def test_views_and_references_lie_all_over_the_volume():
    positions = torch.linspace(0, 1, 180)
    for count in (4, 12, 24):
        begun = positions[_scattered(positions)[:count]].sort().values
        assert float(begun.diff().max()) < 3 / count
    features = torch.randn(180, 5, generator=torch.Generator().manual_seed(0))
    kept = _most_different(torch.cat([_unit(features), COVER * _unit(positions[:, None])], dim=1), MOST_SLICES)
    assert len(set(kept.tolist())) == MOST_SLICES
    assert float(positions[kept].diff().max()) < 0.15


def test_a_slice_scores_as_against_the_references_near_it_alone(detector, head):
    fitted = detector._fitted
    scorer = fitted.scorer
    (source,) = slices(head, indices=[5])
    image = read_one(source, 0, None)
    (found, heatmap, _, _) = next(score(fitted, [image], True))
    near = scorer.references().near(image.position)
    assert 3 <= len(near.positions) < len(scorer.references().positions)
    alone = Scorer(scorer.model, scorer.text, References(near.levels, near.spread), None, scorer.subspace, scorer.kinds)
    for name in ("n_images", "offsets", "weights"):
        getattr(alone, name).copy_(getattr(scorer, name))
    (whole, map_, _, _) = next(score(replace(fitted, scorer=alone), [image], True))
    np.testing.assert_allclose(heatmap - heatmap.mean(), map_ - map_.mean(), atol=1e-4)
    assert found != pytest.approx(whole, abs=0.1)  # judged by its places alone, without what it is as a whole
    (elsewhere, _, _, _) = next(score(fitted, [replace(image, position=None)], True))
    assert elsewhere != found


def test_slices_are_scored_by_their_highest_places(detector, head):
    scorer, levels = detector._fitted.scorer, detector._fitted.scorer.references().levels
    moved = [level[:2] + 0.1 * torch.randn(2, *level.shape[1:]) for level in levels]
    for maps, scores in scorer.branches(None, moved, None, torch.tensor([0.3, 0.5])).values():
        torch.testing.assert_close(scores, highest(maps, scorer.recipe.top_fraction))


def test_views_that_set_the_scale_are_compared_with_other_slices(detector):
    scorer, levels = detector._fitted.scorer, detector._fitted.scorer.references().levels
    where = scorer.references().positions[:1]
    own, others = (
        scorer.branches(None, [level[:1] for level in levels], None, where, apart=apart)["distance"][1]
        for apart in (False, True)
    )
    assert own < others


def test_slices_beyond_the_references_are_not_judged(detector, head, tmp_path):
    assert detector._fitted.scorer.span == pytest.approx((3 / 11, 6 / 11))
    found = detector.predict(head)
    inside = [i for i, reason in enumerate(found.to_rows()) if not reason["reason"]]
    assert inside == [3, 4, 5, 6]
    row = found.to_rows()[10]
    assert (row["verdict"], row["score"], row["flag"]) == ("cannot judge", None, None)
    assert row["reason"] == "outside the references: at 91 % of its volume, they cover 27 % to 55 %"
    assert found.counts()["cannot_judge"] == 8
    (volume,) = found.volumes()
    assert np.flatnonzero(~np.isnan(volume.slice_scores)).tolist() == inside
    assert volume.verdict in ("normal", "abnormal")
    assert found.overlay(10).height > found.image(10).shape[0]
    (beyond,) = detector.predict(slices(head, indices=[10])).volumes()
    assert beyond.verdict == "cannot judge"
    again = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "saved")).predict(head)
    assert np.array_equal(again.scores, found.scores)
    assert again.verdicts == found.verdicts


def test_calibration_passes_over_slices_beyond_the_references(detector, tmp_path):
    other = simulate(1).save(tmp_path / "other.nii")
    calibrated = AnomalyDetector()
    calibrated.__dict__.update(detector.__dict__)
    calibrated.calibrate(other, target_fpr=0.25)
    assert calibrated.calibration_["n_normal"] == 4
    with pytest.raises(ConfigError, match="0 normal images"):
        calibrated.calibrate(slices(other, indices=[10, 11]), target_fpr=0.25)


def test_images_without_positions_are_judged_everywhere(detector, fitted, sample, head):
    plane = np.asarray(nibabel.load(head).dataobj)[:, :, 10]
    assert detector.predict([plane]).outside(0) == ""
    assert fitted._fitted.scorer.span is None
    assert "outside" not in fitted.predict(slices(head, indices=[10])).to_rows()[0]["reason"]
    assert "positions" not in fitted._fitted.scorer.to_tensors()
