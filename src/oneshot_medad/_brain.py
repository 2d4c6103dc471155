"""The one real image at hand everywhere: the ICBM 152 average brain (Fonov et al. 2011), which nilearn ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from oneshot_medad.errors import ImageFileError

TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def load_template() -> np.ndarray:
    """Its T1-weighted volume, float32 in [0, 1]."""
    import nibabel

    package = find_spec("nilearn")
    places = [Path(p) / TEMPLATE for p in (package.submodule_search_locations if package else None) or []]
    for path in places:
        if path.is_file():
            return np.asarray(nibabel.load(path).dataobj, dtype=np.float32) / 255
    raise ImageFileError(f"Cannot find nilearn's {TEMPLATE}. Install it with: pip install nilearn")
