import os
import subprocess
import sys

import pytest
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_repo, small_spec

from oneshot_medad import cli
from oneshot_medad.backbones import specs
from oneshot_medad.backbones.specs import SPEC, BackboneSpec

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["oneshot-medad", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_download_makes_a_folder_or_says_why_not(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(specs.BACKBONES, "small", small_spec())
    assert run(monkeypatch, "download", "--backbone", "small", "--to", tmp_path / "small") == 1
    assert "HubError" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    hub.put("stanfordmimi/MedVAE", medvae_repo(SMALL_DD))
    hub.put("clinic/clip", clip_repo(SMALL_CLIP))
    assert run(monkeypatch, "download", "--backbone", "small", "--to", tmp_path / "small") == 0
    assert "AnomalyDetector(backbone=" in capsys.readouterr().out
    assert (tmp_path / "small" / SPEC).is_file()
    assert BackboneSpec.from_folder(tmp_path / "small").to_dict() == small_spec().to_dict()
    assert run(monkeypatch, "download", "--backbone", "tiny", "--to", tmp_path / "tiny") == 0
    assert "needs no download" in capsys.readouterr().out
    assert run(monkeypatch, "download", "--backbone", "huge", "--to", tmp_path / "huge") == 1
    assert "'medvae-vitl14'" in capsys.readouterr().err


def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    script = (
        "import sys\n"
        "sys.argv = ['oneshot-medad', '--help']\n"
        "from oneshot_medad.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'open_clip', 'medvae', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code or len(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "download" in done.stdout
