"""The detector in scikit-learn: cross-validation over draws of the one image, and a grid search.

Every "fold" trains on one normal image and is tested on labelled images that are no candidate for it. What a search has
chosen on labelled images must be measured on others.
"""

from dataclasses import replace

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from oneshot_medad import AnomalyDetector, Recipe
from oneshot_medad.datasets import load_sample

sample = load_sample(n_normal=12, n_abnormal=10)
images, labels = sample.images, sample.labels
search_rows = [*range(2, 7), *range(12, 17)]  # 5 normal, 5 abnormal images to choose on
final_rows = [*range(7, 12), *range(17, 22)]  # 5 normal, 5 abnormal images opened at the end
folds = [([reference], search_rows) for reference in (0, 1)]

detector = AnomalyDetector(random_state=0)
scores = cross_val_score(detector, images, labels, cv=folds, scoring="roc_auc", error_score="raise")
print(f"image AUROC of two draws of the one image: {scores.round(3)}")

default = Recipe.named("default")
nearest = replace(default, deviations={}, n_lesions=0, branches={"nearest": 1.0}, n_steps=1)
grid = {"recipe": [default, nearest]}
search = GridSearchCV(clone(detector), grid, cv=folds, scoring="roc_auc", refit=False, error_score="raise")
search.fit(images, labels)
for recipe, value in zip(("default", "nearest"), search.cv_results_["mean_test_score"], strict=True):
    print(f"  {recipe:<8} {value:.3f}")

best = clone(detector).set_params(**search.best_params_).fit(images[0])
measured = best.evaluate([images[i] for i in final_rows], labels[final_rows])
low, high = measured["image_auroc_interval"]
print(f"the chosen one on images not used so far: {measured['image_auroc']:.3f} ({low:.3f} to {high:.3f})")
