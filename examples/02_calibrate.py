"""Set the threshold on 19 further normal images, and write a table with p-values.

Writes scores.csv, report.html and heatmaps to the folder given as first argument (default: calibrated).
"""

import sys
from pathlib import Path

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample

out = Path(sys.argv[1] if len(sys.argv) > 1 else "calibrated")
out.mkdir(parents=True, exist_ok=True)

sample = load_sample(n_normal=23, n_abnormal=8)
normals, new = sample.images[:19], sample.images[19:]

detector = AnomalyDetector(random_state=0, progress=True).fit(sample.support)
print(f"threshold of the fit, where nine of ten normal images are expected below: {detector.threshold_:.3f}")
detector.calibrate(normals, target_fpr=0.05, uncertain_fpr=0.2)  # 19 images support 1 / 20 and no finer rate
print(f"threshold for 5 % of further normal images: {detector.threshold_:.3f}")

predictions = detector.predict(new)
frame = predictions.to_frame()
frame["truth"] = sample.names[19:]
print(frame[["truth", "score", "percentile", "p_value", "verdict"]].round(3).to_string(index=False))

predictions.to_csv(out / "scores.csv")
predictions.to_html(out / "report.html", title="Simulated brain MRI")
predictions.save_heatmaps(out / "heatmaps")
print(f"scores.csv, report.html and heatmaps are in {out}/")
