"""Several draws of the one normal image, trivial baselines, and intervals over patients.

The sample shows one head, so its patients are invented: two images each. Put your own images, labels and patients in.
"""

import numpy as np

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample
from oneshot_medad.evaluation import auroc, bootstrap_interval

DRAWS = 3  # take ten where it matters

sample = load_sample(n_normal=16, n_abnormal=12)
images, labels = sample.images, sample.labels
patients = np.array([f"p{i // 2:02d}" for i in range(len(images))])

# whole patients are set aside to draw the reference from; the others are tested, the same for every draw
rng = np.random.default_rng(0)
candidates = rng.choice(np.unique(patients[labels == 0]), DRAWS, replace=False)
test = np.flatnonzero(~np.isin(patients, candidates))

print("what the images give away for nothing (AUROC; far from 0.5 either way is a warning)")
for name, fact in (("brightness", np.mean), ("contrast", np.std)):
    print(f"  {name:<10} {auroc(labels[test], [fact(images[i]) for i in test]):.3f}")

found = []
for draw, patient in enumerate(candidates):
    reference = images[np.flatnonzero(patients == patient)[0]]
    detector = AnomalyDetector(random_state=draw).fit(reference)
    scores = detector.predict([images[i] for i in test]).scores
    found.append(auroc(labels[test], scores))
    low, high = bootstrap_interval(auroc, labels[test], scores, groups=patients[test].tolist())
    print(f"draw {draw}: image AUROC {found[-1]:.3f}, 95 % interval over patients {low:.3f} to {high:.3f}")

print(f"\n{DRAWS} draws: {np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}, worst {min(found):.3f}")
