import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.config import BRANCHES
from oneshot_medad.errors import ConfigError, ImageError, ImageFileError, ImageTypeError, NotFittedError, WeightsError


def test_predictions_unpack_and_lie_on_each_images_own_grid(fitted, sample):
    images = [sample.images[0], sample.images[1][:200, :150], np.repeat(sample.images[5][..., None], 3, axis=2)]
    predictions = fitted.predict(images)
    scores, heatmaps = predictions
    assert isinstance(predictions, Predictions)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    assert [h.shape for h in heatmaps] == [(246, 246), (200, 150), (246, 246)]
    assert all(h.dtype == np.float32 for h in heatmaps)
    assert predictions.threshold == fitted.threshold_
    assert predictions.flags.tolist() == (scores > fitted.threshold_).tolist()
    assert "ABNORMAL" in str(predictions) or "normal" in str(predictions)


def test_one_seed_gives_bit_equal_fits_and_another_does_not(fitted, sample, small):
    again = AnomalyDetector(recipe=small, random_state=0).fit(sample.support)
    other = AnomalyDetector(recipe=small, random_state=1).fit(sample.support)
    scores, heatmaps = fitted.predict(sample.images[:3])
    scores_again, heatmaps_again = again.predict(sample.images[:3])
    assert np.array_equal(scores, scores_again)
    assert all(np.array_equal(a, b) for a, b in zip(heatmaps, heatmaps_again, strict=True))
    assert again.threshold_ == fitted.threshold_
    assert not np.array_equal(scores, other.predict(sample.images[:3]).scores)


def test_fit_leaves_the_global_random_state_alone(sample, small):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    AnomalyDetector(recipe=small, random_state=0).fit(sample.support)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_score_belongs_to_one_image(fitted, sample):
    together = fitted.predict(sample.images)
    for i in (0, 5):
        alone = fitted.predict(sample.images[i])
        assert abs(alone.scores[0] - together.scores[i]) < 1e-5
        np.testing.assert_allclose(alone.heatmaps[0], together.heatmaps[i], atol=1e-4)


def test_inputs_of_every_kind_give_the_same_score(fitted, sample, tmp_path):
    image = sample.images[4]
    Image.fromarray(image).save(tmp_path / "x.png")
    roads = [
        image,
        tmp_path / "x.png",
        tmp_path,
        Image.fromarray(image),
        torch.from_numpy(image),
        image[None],
        [image / 255],
    ]
    scores = [fitted.predict(road).scores[0] for road in roads]
    np.testing.assert_allclose(scores, scores[0], atol=1e-5)
    assert fitted.predict(tmp_path).names == [str(tmp_path / "x.png")]


def test_several_support_images(sample, small):
    detector = AnomalyDetector(recipe=replace(small, n_views=6), random_state=0).fit(
        [sample.support, *sample.images[:2]]
    )
    assert detector.n_support_ == 3
    assert np.isfinite(detector.predict(sample.images[3]).scores).all()


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_branch_works_alone(sample, small, branch):
    detector = AnomalyDetector(recipe=replace(small, branches={branch: 1.0}), random_state=0).fit(sample.support)
    assert np.isfinite(detector.predict(sample.images[:2]).scores).all()


def test_scikit_learn_contract(sample, small):
    detector = AnomalyDetector(recipe=small, n_steps=2, random_state=3)
    params = detector.get_params()
    assert params["recipe"] is small
    twin = clone(detector)
    assert twin.get_params() == params
    assert twin.set_params(n_steps=1, init="random").get_params()["n_steps"] == 1
    assert detector.n_steps == 2
    assert not hasattr(clone(detector.fit(sample.support)), "threshold_")


def test_fitted_detectors_can_be_copied(fitted, sample):
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(twin.predict(sample.images[0]).scores, fitted.predict(sample.images[0]).scores)


def test_the_constructor_only_stores():
    nonsense = AnomalyDetector("no-such", recipe=7, n_steps=-5, device="toaster", random_state="x")
    assert nonsense.get_params()["device"] == "toaster"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "huge"}, "'huge'.*'tiny'"),
        ({"recipe": "best"}, "'best'.*'default'"),
        ({"recipe": 7}, "type int"),
        ({"n_steps": -5}, "n_steps=-5"),
        ({"n_steps": 1.5}, "n_steps=1.5"),
        ({"init": "warm"}, "init='warm'"),
        ({"device": "toaster"}, "toaster"),
        ({"random_state": -1}, "random_state=-1"),
        ({"random_state": "x"}, "random_state='x'"),
        ({"intensity_range": (5, 1)}, "low < high"),
        ({"intensity_range": 5}, "low < high"),
        ({"intensity_range": (0, 1, 2)}, "low < high"),
    ],
)
def test_parameters_are_checked_by_fit(parameters, message, sample):
    detector = AnomalyDetector(**parameters)
    with pytest.raises(ConfigError, match=message):
        detector.fit(sample.support)
    assert not hasattr(detector, "threshold_")


def test_predict_before_fit(sample):
    for error in (NotFittedError, SklearnNotFittedError, ValueError):
        with pytest.raises(error, match=r"Call fit\(normal_images\) first"):
            AnomalyDetector().predict(sample.images[0])


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], ImageError),
        ("no/such/file.png", ImageFileError),
        (np.zeros((9, 9), np.uint8), ImageError),
        (np.full((9, 9), np.nan), ImageError),
        (np.arange(81).reshape(9, 9), ImageTypeError),
        (None, ImageTypeError),
    ],
)
def test_bad_images_raise_and_lose_nothing(images, error, fitted, sample):
    before = fitted.predict(sample.images[0]).scores
    for action in (fitted.fit, fitted.predict, AnomalyDetector().fit):
        with pytest.raises(error):
            action(images)
    assert np.array_equal(fitted.predict(sample.images[0]).scores, before)


def test_one_bad_image_among_good_ones_is_named(fitted, sample, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageFileError, match=r"broken\.png"):
        fitted.predict([sample.images[0], tmp_path / "broken.png"])


def test_missing_damaged_and_foreign_weights(tmp_path):
    spec = get_spec("tiny")
    cpu = torch.device("cpu")
    with pytest.raises(WeightsError, match=r"statistics\.safetensors"):
        load_backbone(replace(spec, folder=tmp_path), cpu)
    for path in spec.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "autoencoder.safetensors").read_bytes()
    (tmp_path / "autoencoder.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="Cannot read"):
        _ = Backbone(replace(spec, folder=tmp_path), cpu).latents
    (tmp_path / "autoencoder.safetensors").write_bytes((tmp_path / "clip.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="do not fit"):
        _ = Backbone(replace(spec, folder=tmp_path), cpu).latents


def test_other_weights_or_another_activation_are_noticed(tmp_path):
    spec = get_spec("tiny")
    for path in spec.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "clip.safetensors")
    name = next(k for k in tensors if k.startswith("visual.trunk.blocks.0") and k.endswith("weight"))
    save_file({**tensors, name: tensors[name] * 1.3}, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match="another probe"):
        _ = Backbone(replace(spec, folder=tmp_path), torch.device("cpu")).vision


def test_a_fitted_detector_is_copied_pickled_and_searched(fitted, small, sample):
    twin = copy.deepcopy(fitted)
    assert np.array_equal(twin.predict(sample.images[0]).scores, fitted.predict(sample.images[0]).scores)
    images = [sample.support, *sample.images]
    labels = np.array([0, *sample.labels])
    search = GridSearchCV(
        AnomalyDetector(recipe=small, random_state=0),
        {"n_steps": [1, 2]},
        scoring="roc_auc",
        cv=[([0], list(range(1, len(images))))],
        refit=False,
        error_score="raise",
    ).fit(images, labels)
    fits = [AnomalyDetector(recipe=small, random_state=0, n_steps=n).fit([sample.support]) for n in (1, 2)]
    expected = [roc_auc_score(sample.labels, fit.decision_function(sample.images)) for fit in fits]
    assert search.cv_results_["mean_test_score"].tolist() == pytest.approx(expected)


def test_preview_is_what_the_networks_see(sample):
    image = sample.images[0][:123]  # 246 wide: scaled to 128 x 256 and padded by 64 above and below
    detector = AnomalyDetector(intensity_range=(0, 510))
    shown = detector.preview(image)
    assert (shown.shape, shown.dtype) == ((256, 256, 3), np.uint8)
    assert not shown[:64].any()
    assert not shown[-64:].any()
    assert shown.max() == pytest.approx(image.max() / 2, abs=2)
    assert shown[64:-64].mean() == pytest.approx(image.mean() / 2, abs=0.5)
    with pytest.raises(ImageError, match="2 images; wanted one"):
        detector.preview([image, image])


def test_a_fit_on_faint_images_warns(sample, small):
    detector = AnomalyDetector(recipe=small, random_state=0)
    twelve_bits = sample.support.astype(np.uint16) * 16
    with pytest.warns(UserWarning, match=r"image 0, which uses 4\.\d% .*intensity_range"):
        detector.fit(twelve_bits)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Got ")
        detector.set_params(intensity_range=(0, 4095)).fit(twelve_bits)


def test_describe_says_what_a_detector_does(fitted, sample):
    with pytest.raises(NotFittedError):
        AnomalyDetector().describe()
    detector = copy.copy(fitted)
    text = detector.describe()
    assert "backbone 'tiny', recipe 'custom'" in text
    assert "256 x 256 pixels" in text
    assert "1 normal image." in text
    assert f"{detector.threshold_:.3f}, where nine of ten" in text
    assert "no probability" in text
    assert "from 4 normal images" in detector.calibrate(sample.images[:4], target_fpr=0.5).describe()
    detector.intensity_range = (-160, 240)
    assert "0.700, set by hand" in detector.set_threshold(0.7).describe()
    assert "-160 is black and 240 white" in detector.describe()
    detector.intensity_range = None
    detector.calibrate(sample.images, sample.labels)
    assert "labelled images given to calibrate, 4 of them normal" in detector.describe()
