"""What a script that imports, fits and predicts has beside it: nothing that it did not ask for."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import locale, logging, os, random, signal, socket, sys, threading, warnings
import numpy, sklearn.metrics, torch  # what they do to a process is theirs

THEIRS = ("TORCHINDUCTOR_CACHE_DIR", "GDCM_RESOURCES_PATH")  # where torch and gdcm keep their own files

def state():
    return {
        "environment": {k: v for k, v in os.environ.items() if k not in THEIRS},
        # packages may have filters for warnings of their own
        "filters": [f for f in warnings.filters if f[1] is None and f[3] is None and f[2].__module__ == "builtins"],
        "showwarning": warnings.showwarning,
        "random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "threads": torch.get_num_threads(),
        "handlers": logging.root.handlers[:],
        "finders": list(sys.meta_path),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "signals": {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)},
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
    }

class Refused(socket.socket):
    def connect(self, *arguments):
        raise AssertionError(f"connected to {arguments}")
    connect_ex = connect

if __name__ == "__main__":
    socket.socket = Refused
    before = state()
    from oneshot_medad import AnomalyDetector, Recipe, datasets
    recipe = Recipe(n_views=4, n_lesions=4, n_held=3, n_steps=2, batch_size=3)
    sample = datasets.load_sample(n_normal=1, n_abnormal=1)
    detector = AnomalyDetector(recipe=recipe, random_state=0).fit(sample.support)
    detector.predict(sample.images)
    after = state()
    for name in before:
        assert after[name] == before[name], (name, str(before[name])[:500], str(after[name])[:500])
    assert not {"wandb", "sentry_sdk", "mlflow", "comet_ml"} & set(sys.modules)
    assert [t.name for t in threading.enumerate() if t is not threading.main_thread()] == []
    opened = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []
    assert not [path for path in opened if os.path.exists(path) and os.readlink(path).startswith("socket:")]
    WORKER
"""
SPAWN = """
    import multiprocessing
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        score = pool.map(detector.predict, [sample.images[0]])[0].scores[0]
        modules = pool.apply(loaded)
    assert "timm" in modules and not {"wandb", "sentry_sdk"} & modules
def loaded():
    import sys
    return set(sys.modules)
"""


def start(tmp_path, code, *options):
    """A fresh process with a wandb that tells when it is imported."""
    (tmp_path / "wandb.py").write_text("import sentry_sdk, sys\nprint('wandb was imported', file=sys.stderr)\n")
    (tmp_path / "sentry_sdk.py").write_text("")
    (tmp_path / "script.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("filters", ["error", "always"])
def test_a_script_is_left_alone(tmp_path, filters):
    done = start(tmp_path, SCRIPT.replace("    WORKER\n", ""), "-W", filters)
    assert done.stderr == ""
    assert done.stdout == ""


def test_so_is_a_spawned_worker(tmp_path):
    worker, function = SPAWN.split("def loaded")
    code = SCRIPT.replace("if __name__", f"def loaded{function}\nif __name__").replace("    WORKER\n", worker)
    assert start(tmp_path, code).stderr == ""


def test_whoever_wants_wandb_gets_it(tmp_path):
    code = (
        "import threading\n"
        "from oneshot_medad.backbones.clip import tokenize\n"
        "tokenize(['a scan'])\n"
        "import timm.utils, wandb, sys\n"
        "assert wandb.__file__.endswith('wandb.py')\n"
    )
    assert start(tmp_path, code).stderr == "wandb was imported\n"
    assert start(tmp_path, "import wandb\n" + code).stderr == "wandb was imported\n"


def test_other_threads_find_what_is_hidden_from_one(tmp_path, monkeypatch):
    import importlib
    import threading

    from oneshot_medad.backbones._imports import Absent

    (tmp_path / "somebodys_package.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    with Absent("somebodys_package"):
        with pytest.raises(ModuleNotFoundError, match="somebodys_package"):
            importlib.import_module("somebodys_package")
        thread = threading.Thread(target=lambda: found.append(importlib.import_module("somebodys_package")))
        thread.start()
        thread.join()
    assert found
    assert importlib.import_module("somebodys_package") is found[0]


def test_medvae_stays_what_its_users_imported(tmp_path):
    code = (
        "import sys, types\n"
        "theirs = sys.modules['medvae'] = types.ModuleType('medvae')\n"
        "below = sys.modules['medvae.models'] = types.ModuleType('medvae.models')\n"
        "import importlib.machinery\n"
        "sys.modules.pop('medvae'); spec = importlib.machinery.PathFinder.find_spec('medvae')\n"
        "theirs.__spec__ = spec; sys.modules['medvae'] = theirs\n"
        "from oneshot_medad import AnomalyDetector, datasets\n"
        "from oneshot_medad.backbones import load_backbone\n"
        "from oneshot_medad.backbones.specs import get_spec\n"
        "import torch\n"
        "load_backbone(get_spec('tiny'), torch.device('cpu')).latents\n"
        "assert sys.modules['medvae'] is theirs and sys.modules['medvae.models'] is below\n"
        "assert [name for name in sys.modules if name.startswith('medvae')] == ['medvae.models', 'medvae']\n"
    )
    assert start(tmp_path, code).stdout == ""
