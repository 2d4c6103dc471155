"""Archives of millions of images, on as many machines as there are: a manifest of all images, scored by Ray Data."""

from oneshot_medad.archive.manifests import Manifest as Manifest
from oneshot_medad.archive.manifests import make_manifest as make_manifest
from oneshot_medad.archive.pipeline import score as score
