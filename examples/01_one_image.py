"""Fit on one normal image, score 24 others, draw what was found.

Writes overlays and a contact sheet to the folder given as first argument (default: demo-output).
"""

import sys
import time
from pathlib import Path

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample
from oneshot_medad.evaluation import auroc
from oneshot_medad.visualize import contact_sheet, overlay

out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
out.mkdir(parents=True, exist_ok=True)

sample = load_sample()
start = time.perf_counter()
detector = AnomalyDetector(random_state=0, progress=True).fit(sample.support)
fitted = time.perf_counter()
predictions = detector.predict(sample.images)
scores = predictions.scores
done = time.perf_counter()

print(f"\n{'file':<26} {'score':>7}  {'flag':<8}  truth")
pictures = []
for i, (name, image, mask, score, flag) in enumerate(
    zip(sample.names, sample.images, sample.masks, scores, predictions.flags, strict=True)
):
    picture = overlay(image, predictions.pictured(i), predictions.threshold, mask)
    picture.save(out / f"{name}.png")
    pictures.append(picture)
    print(f"{name + '.png':<26} {score:7.3f}  {'ABNORMAL' if flag else 'normal':<8}  {name.split('-')[0]}")
captions = [f"{name}  {score:.2f}" for name, score in zip(sample.names, scores, strict=True)]
contact_sheet(pictures, captions).save(out / "contact-sheet.png")

print(f"\nimage-level AUROC {auroc(sample.labels, scores):.3f}, threshold {predictions.threshold:.3f}")
print(f"fit {fitted - start:.1f} s, predict {(done - fitted) / len(scores):.2f} s an image")
print(f"overlays (image, heatmap, both; true outline in green) and contact-sheet.png are in {out}/")
