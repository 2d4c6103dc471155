"""The detector in scikit-learn: cross-validation over draws of the one image, and a search over its recipe.

Every fold fits on another normal image and is tested on the rest. What a search has chosen on labelled images must be
measured on others.
"""

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample
from oneshot_medad.model_selection import NormalOnlySplit

sample = load_sample(n_normal=12, n_abnormal=10)
search_rows = [*range(7), *range(12, 17)]  # 7 normal, 5 abnormal images to choose on
final_rows = [*range(7, 12), *range(17, 22)]  # 5 normal, 5 abnormal images opened at the end
images, labels = [sample.images[i] for i in search_rows], sample.labels[search_rows]

detector = AnomalyDetector(random_state=0)
draws = NormalOnlySplit(n_splits=2, random_state=0)
for scoring in ("roc_auc", "f1"):
    scores = cross_val_score(detector, images, labels, cv=draws, scoring=scoring, error_score="raise")
    print(f"{scoring} of two draws of the one image: {scores.round(3)}")

grid = [
    {"recipe__n_lesions": [16, 64]},
    {"recipe__branches": [{"distance": 1.0}], "recipe__deviations": [{}], "recipe__n_lesions": [0]},
]
search = GridSearchCV(detector, grid, cv=draws, scoring="roc_auc", refit=False, error_score="raise")
search.fit(images, labels)
for params, value in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
    print(f"  {value:.3f}  {params}")

best = clone(detector).set_params(**search.best_params_).fit(images[0])
measured = best.evaluate([sample.images[i] for i in final_rows], sample.labels[final_rows])
low, high = measured["image_auroc_interval"]
print(f"the chosen one on images not used so far: {measured['image_auroc']:.3f} ({low:.3f} to {high:.3f})")
