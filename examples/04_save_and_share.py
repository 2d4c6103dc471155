"""Measure a detector, save it with its card, and read it back.

Writes the detector to the folder given as first argument (default: brain-detector).
"""

import sys
from pathlib import Path

import numpy as np

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "brain-detector")

sample = load_sample()
detector = AnomalyDetector(random_state=0, progress=True).fit(sample.support)
detector.evaluate(sample.images, sample.labels, masks=sample.masks)  # the numbers go onto the card

# the licence is yours to choose; nothing is assumed
detector.save_pretrained(folder, license="cc-by-4.0", modality="simulated brain MRI, T1, axial")
for path in sorted(folder.iterdir()):
    print(f"{path.name:<20} {path.stat().st_size:>10,} bytes")

again = AnomalyDetector.from_pretrained(folder)
assert np.array_equal(again.predict(sample.images).scores, detector.predict(sample.images).scores)
print("read back: the same scores, bit for bit")

# On the Hugging Face Hub. Needs a network, an account, and a login (`hf auth login`). The detector holds features of
# the normal image: push only what may be shared.
# detector.push_to_hub("your-name/brain-detector", private=True, license="cc-by-4.0")
# AnomalyDetector.from_pretrained("your-name/brain-detector", revision="the 40 digits of a commit")
