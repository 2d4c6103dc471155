"""Write the golden detector and its scores; needed when the embedded weights or the format change.

python tests/golden/make.py
"""

import json
from dataclasses import replace
from pathlib import Path

from oneshot_medad import AnomalyDetector, Recipe
from oneshot_medad.datasets import load_sample

HERE = Path(__file__).parent

if __name__ == "__main__":  # test runners import it
    recipe = replace(Recipe.named("default"), n_reference=1, n_views=4, n_lesions=4, n_held=3, n_steps=2, batch_size=3)
    sample = load_sample(n_normal=4, n_abnormal=4)
    detector = AnomalyDetector(recipe=recipe, random_state=0).fit(sample.support)
    detector.save_pretrained(
        HERE / "detector", license="apache-2.0", modality="MNI152 T1 template of nilearn, axial slice"
    )
    (HERE / "scores.json").write_text(json.dumps(detector.predict(sample.images).scores.tolist()) + "\n")
