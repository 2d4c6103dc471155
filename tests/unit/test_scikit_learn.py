"""What scikit-learn does with a detector: searches its parameters, divides images, scores labels."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score

from oneshot_medad import AnomalyDetector, Predictions, Recipe
from oneshot_medad import detector as detecting
from oneshot_medad.errors import ConfigError
from oneshot_medad.model_selection import NormalOnlySplit, normal_rows


def test_fields_of_the_recipe_are_parameters():
    detector = AnomalyDetector(random_state=0)
    assert detector.get_params()["recipe__n_lesions"] == Recipe.named("default").n_lesions
    assert "recipe__n_lesions" not in detector.get_params(deep=False)
    assert detector.set_params(recipe__n_lesions=7, recipe__branches={"distance": 1.0}, n_steps=2) is detector
    assert (detector.recipe.n_lesions, detector.recipe.branches, detector.n_steps) == (7, {"distance": 1.0}, 2)
    assert detector.get_params()["recipe__n_lesions"] == 7
    twin = clone(detector)
    assert (twin.recipe, twin.get_params()) == (detector.recipe, detector.get_params())
    twin.set_params(recipe__n_lesions=9)
    assert detector.recipe.n_lesions == 7
    assert Recipe.named("default").n_lesions != 7
    # fields go on top of a recipe and of a backbone that are set in the same call
    twin.set_params(recipe__n_lesions=5, recipe="reference")
    assert twin.recipe == Recipe.from_dict({**Recipe.named("reference").to_dict(), "n_lesions": 5})
    scratch = AnomalyDetector("medvae-vitl14").set_params(recipe__n_steps=60).recipe
    assert scratch == Recipe.from_dict({**Recipe.named("scratch").to_dict(), "n_steps": 60})
    assert "AnomalyDetector" in repr(twin)
    assert "recipe" in twin._repr_html_()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"recipe__n_lesion": 3}, "Got parameter 'recipe__n_lesion'.* Did you mean 'recipe__n_lesions'"),
        ({"n_step": 3}, "Did you mean 'n_steps'"),
        ({"backbone__name": "x"}, "Got parameter 'backbone__name'"),
        ({"recipe__": 3}, "Got parameter 'recipe__'"),
        ({"n_steps": 3, "recipe__n_lesions": -1}, "n_lesions=-1; wanted 0 or more"),
        ({"n_steps": 3, "recipe": "best", "recipe__n_lesions": 1}, "'best'.*'default'"),
        ({"backbone": "huge", "recipe__n_lesions": 1}, "'huge'"),
    ],
)
def test_unknown_names_and_values_change_nothing(params, message):
    detector = AnomalyDetector(n_steps=9)
    before = detector.get_params()
    with pytest.raises(ConfigError, match=message):
        detector.set_params(**params)
    assert detector.get_params() == before


def test_parameters_that_cannot_be_used_are_still_stored():
    nonsense = AnomalyDetector("no-such", recipe=7)
    assert nonsense.get_params()["recipe"] == 7
    assert nonsense.set_params(backbone="tiny", recipe="default").get_params()["recipe__n_views"] > 0


def test_a_search_over_the_recipe_with_labels_and_with_scores(small, sample):
    cv = NormalOnlySplit(n_splits=1, random_state=0)
    detector = AnomalyDetector(recipe=small, random_state=0)
    grid = {"recipe__n_lesions": [2, 4], "recipe__learning_rate": [1e-5]}
    scoring = {"f1": "f1", "roc_auc": "roc_auc", "accuracy": "accuracy"}
    search = GridSearchCV(detector, grid, scoring=scoring, cv=cv, refit="f1", error_score="raise")
    search.fit(sample.images, sample.labels)
    assert search.best_estimator_.recipe.n_lesions == search.best_params_["recipe__n_lesions"]
    assert search.best_estimator_.n_support_ == 4  # the refit leaves the abnormal ones out as well
    ((fitted, tested),) = cv.split(sample.images, sample.labels)
    for i, n in enumerate((2, 4)):
        again = clone(detector).set_params(recipe__n_lesions=n, recipe__learning_rate=1e-5)
        found = again.fit([sample.images[j] for j in fitted]).predict([sample.images[j] for j in tested])
        expected = f1_score(sample.labels[tested], found.scores > found.threshold)
        assert search.cv_results_["mean_test_f1"][i] == pytest.approx(expected)
    assert np.asarray(search.predict(sample.images[:2])).tolist() == [
        int(flag) for flag in search.best_estimator_.predict(sample.images[:2]).flags
    ]


def test_labels_scores_and_their_signs(fitted, sample):
    found = fitted.predict(sample.images)
    labels = fitted.predict_labels(sample.images)
    assert labels.dtype.kind == "i"
    assert labels.tolist() == np.asarray(found).tolist() == [int(flag) for flag in found.flags]
    assert np.array_equal(fitted.decision_function(sample.images), found.scores)  # higher is more abnormal
    assert np.array_equal(fitted.score_samples(sample.images), -found.scores)  # higher is more normal
    assert confusion_matrix(sample.labels, found).shape == (2, 2)
    unknown = Predictions(np.array([0.9, 0.1, 0.9, np.nan]), [], 0.5, list("abcd"), ["", "", "", "torn"], None, [], [],
                          similarities=np.array([1, 1, 0, 0]), least_similarity=0.5)  # fmt: skip
    assert np.asarray(unknown).tolist() == [1, 0, 0, 0]
    assert np.asarray(unknown, dtype=bool).tolist() == [True, False, False, False]
    scores, heatmaps = unknown
    assert (len(scores), heatmaps) == (4, [])
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(unknown))), np.asarray(unknown))
    assert copy.copy(unknown).flags.tolist() == [True, False, None, None]


def test_abnormal_images_are_never_fitted_on(small, sample, monkeypatch):
    seen = []
    fitted = detecting.FittedDetector
    monkeypatch.setattr(detecting, "FittedDetector", lambda *args: seen.append(args[3]) or fitted(*args))
    detector = AnomalyDetector(recipe=small, random_state=0)
    normal = {image["sha256"] for image in _provenance(sample, 0)}
    found = detector.fit_predict(sample.images, sample.labels)
    assert (len(found), detector.n_support_) == (8, 4)
    labels = cross_val_predict(detector, sample.images, sample.labels, cv=KFold(2, shuffle=True, random_state=0))
    assert set(labels) <= {0, 1}
    cross_val_score(
        detector, np.stack(sample.images), sample.labels, cv=NormalOnlySplit(1), scoring="f1", error_score="raise"
    )
    assert len(seen) == 4
    for made in seen:
        assert {image["sha256"] for image in made["support"]} <= normal


def _provenance(sample, label):
    from oneshot_medad.images.read import read_image
    from oneshot_medad.provenance import provenance

    images = [image for image, truth in zip(sample.images, sample.labels, strict=True) if truth == label]
    return provenance(read_image(image) for image in images)["support"]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, -1, 1], r"values \['-1', '1'\] for 3 images; wanted one per image"),
        ([0, 1], "shape \\(2,\\)"),
        ([1, 1, 1], "3 images labelled abnormal"),
        ([0, 1, np.nan], "nan"),
        ([[0], [1], [0]], "shape \\(3, 1\\)"),
        (["normal", "abnormal", "normal"], "abnormal"),
    ],
)
def test_labels_that_do_not_fit(y, message):
    with pytest.raises(ConfigError, match=message):
        normal_rows(y, 3)


def test_draws_are_disjoint_seeded_and_keep_patients_apart():
    labels = np.array([0] * 12 + [1] * 6)
    patients = np.arange(18) // 2
    cv = NormalOnlySplit(n_splits=4, n_support=3, random_state=1)
    draws = list(cv.split(labels, labels, patients))
    assert len(draws) == cv.get_n_splits() == 4
    for fitted, tested in draws:
        assert len(fitted) == 3
        assert not labels[fitted].any()
        assert not set(patients[fitted]) & set(patients[tested])
        assert set(tested) == {i for i in range(18) if patients[i] not in patients[fitted]}
    assert len(np.unique(np.concatenate([fitted for fitted, _ in draws]))) == 12
    assert [f.tolist() for f, _ in cv.split(labels, labels)] == [f.tolist() for f, _ in draws]
    with pytest.raises(ConfigError, match="12 normal images"):
        next(NormalOnlySplit(n_splits=13).split(labels, labels))
    with pytest.raises(ConfigError, match="no y"):
        next(cv.split(labels, None))
