"""Frozen networks through HTTP: repositories laid out like MedVAE's and open_clip's, fetched, checked and used."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_model, medvae_repo, small_spec
from hub_server import Fault
from safetensors.torch import load_file, save_file

from oneshot_medad import AnomalyDetector, Recipe
from oneshot_medad.backbones import Backbone, read_autoencoder, read_visual
from oneshot_medad.backbones.clip import build_clip, tokenize
from oneshot_medad.backbones.resolve import cache_folder, download, resolve
from oneshot_medad.backbones.specs import SPEC, BackboneSpec, HubWeights, get_spec, medvae
from oneshot_medad.errors import ConfigError, HubError, PersistenceError, WeightsError
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.persistence.mediclip import PHRASES

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
CPU = torch.device("cpu")
MEDVAE, CLIP = "stanfordmimi/MedVAE", "clinic/clip"


@pytest.fixture(scope="module")
def repos():
    return {MEDVAE: medvae_repo(SMALL_DD), CLIP: clip_repo(SMALL_CLIP)}


@pytest.fixture
def server(hub, repos, monkeypatch, tmp_path):
    for name, files in repos.items():
        hub.put(name, files)
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "own-cache"))
    return hub


def fetched(server):
    return [r for r in server.requests if r.startswith("GET") and "/resolve/" in r]


def test_fit_save_load_and_predict(server, sample, small, tmp_path):
    spec = small_spec()
    detector = AnomalyDetector(spec, recipe=small, random_state=0).fit(sample.support)
    scores, heatmaps = detector.predict(sample.images[:3])
    assert heatmaps[0].shape == sample.images[0].shape
    folder = detector.save_pretrained(tmp_path / "detector")
    asked = len(server.requests)
    again = AnomalyDetector.from_pretrained(folder, backbone=spec)
    assert np.array_equal(again.predict(sample.images[:3]).scores, scores)
    assert len(server.requests) == asked
    sources = json.loads((cache_folder(spec) / SPEC).read_text())["sources"]
    assert sources["clip"]["revision"] == server.at(CLIP, "main")[0]
    assert len(sources["autoencoder"]["sha256"]) == 64
    assert json.loads((folder / "config.json").read_text())["backbone"]["sources"] == sources


def test_a_detector_with_its_backbones_needs_nothing_else(server, sample, small, tmp_path, monkeypatch):
    detector = AnomalyDetector(small_spec(), recipe=small, random_state=0).fit(sample.support)
    folder = detector.save_pretrained(tmp_path / "whole", include_backbones=True)
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "empty"))
    asked = len(server.requests)
    again = AnomalyDetector.from_pretrained(folder, fetch="never")
    assert np.array_equal(again.predict(sample.images[0]).scores, detector.predict(sample.images[0]).scores)
    assert len(server.requests) == asked


def test_networks_that_are_not_at_hand_are_fetched_at_the_first_prediction(
    server, sample, small, tmp_path, monkeypatch
):
    from oneshot_medad.backbones import specs

    spec = small_spec()
    monkeypatch.setitem(specs.BACKBONES, spec.name, spec)
    detector = AnomalyDetector("small", recipe=small, random_state=0).fit(sample.support)
    folder = detector.save_pretrained(tmp_path / "detector")
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(WeightsError, match="fetch='always'"):
        AnomalyDetector.from_pretrained(folder, fetch="fit_only").predict(sample.images[0])
    asked = len(server.requests)
    again = AnomalyDetector.from_pretrained(folder)
    assert len(server.requests) == asked  # loading a folder asks no network
    assert np.array_equal(again.predict(sample.images[0]).scores, detector.predict(sample.images[0]).scores)

    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "third"))
    server.put(CLIP, clip_repo(SMALL_CLIP, seed=1))
    with pytest.raises(PersistenceError, match=r"another clip\.safetensors"):
        AnomalyDetector.from_pretrained(folder).predict(sample.images[0])


def test_a_downloaded_folder_serves_without_cache_and_network(server, sample, small, tmp_path):
    folder = download(small_spec(), tmp_path / "carried")
    server.faults.append(Fault("", 500))
    detector = AnomalyDetector(str(folder), recipe=small, fetch="never").fit(sample.support)
    assert np.isfinite(detector.predict(sample.images[0]).scores).all()
    assert download(small_spec(), folder) == folder  # what is there is not fetched again
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(WeightsError, match="holds other things"):
        download(small_spec(), tmp_path / "full")
    with pytest.raises(WeightsError, match=r"backbone\.json"):
        AnomalyDetector(str(tmp_path / "full")).fit(sample.support)


def test_medvae_with_its_updates_merged_gives_what_medvae_gives(server):
    folder = resolve(small_spec()).folder
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = medvae_model(SMALL_DD).encode(images * 2 - 1).mode()
        torch.testing.assert_close(
            read_autoencoder(folder).encode(images * 2 - 1).mode(), expected, atol=1e-5, rtol=1e-4
        )
    plain = {**small_spec().__dict__, "name": "plain"}
    server.put(MEDVAE, medvae_repo(SMALL_DD, lora=False))
    unadapted = read_autoencoder(resolve(BackboneSpec(**plain)).folder)
    assert not torch.allclose(unadapted.encode(images * 2 - 1).mode(), expected, atol=1e-3)


def raw_tokens(visual, blocks, images):
    """Tokens after some blocks, by hooks on open_clip's own model."""
    kept = []
    handles = [visual.transformer.resblocks[b].register_forward_hook(lambda m, i, o: kept.append(o)) for b in blocks]
    with torch.no_grad():
        visual(images)
    for handle in handles:
        handle.remove()
    return kept


def test_levels_are_the_patch_tokens_after_the_named_blocks(server):
    spec = resolve(small_spec(half=False))
    backbone = Backbone(spec, CPU)
    images = torch.rand(2, 3, 64, 64)
    levels = backbone.vision(images)
    tokens = raw_tokens(read_visual(spec.folder), (1, 2, 3), (images - 0.5) / 0.25)
    for i, (level, token) in enumerate(zip(levels, tokens, strict=True)):
        batch_first = token if token.shape[0] == 2 else token.transpose(0, 1)
        assert batch_first.shape[1] == 65  # 8 x 8 patches and the class token, which comes first
        grid = batch_first[:, 1:].transpose(1, 2).reshape(2, 64, 8, 8)
        mean, std = (backbone.vision.get_buffer(f"{n}{i}") for n in ("mean", "std"))
        torch.testing.assert_close(level, (grid - mean) / std)


@pytest.mark.parametrize(
    ("config", "levels"),
    [
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}, ("layer2", "layer3", "layer4")),
        (
            {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": ""},
            ("trunk.blocks.3", "trunk.blocks.7"),
        ),
        (
            {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear"},
            ("trunk.stages.1", "trunk.stages.2"),
        ),
    ],
)
def test_other_towers(hub, tmp_path, monkeypatch, config, levels):
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "own-cache"))
    hub.put(MEDVAE, medvae_repo(SMALL_DD))
    embed_dim = 192 if "vit_tiny" in str(config) else 512 if isinstance(config.get("layers"), list) else 64
    hub.put(CLIP, clip_repo({**SMALL_CLIP, "embed_dim": embed_dim, "vision_cfg": config}))
    side = config["image_size"]
    backbone = Backbone(resolve(small_spec(levels=levels, image_px=side)), CPU)
    z, features = backbone.features(torch.rand(1, 3, side, side))
    assert z.shape == (1, 4, side // 4, side // 4)
    sides = [f.shape[-1] for f in features]
    assert len(sides) == len(levels)
    assert sides == sorted(sides, reverse=True)
    assert all(f.dim() == 4 and f.shape[1] > 8 for f in features)


@pytest.mark.skipif("OPEN_CLIP_3" not in os.environ, reason="OPEN_CLIP_3 names no folder with open_clip 3; make does")
def test_open_clip_3_gives_the_same_tokens(server, tmp_path):
    spec = resolve(small_spec())
    images = torch.rand(2, 3, 64, 64)
    save_file({"images": images}, tmp_path / "in.safetensors")
    script = (
        "import sys, torch, open_clip\n"
        "from pathlib import Path\n"
        "from safetensors.torch import load_file, save_file\n"
        "assert open_clip.__version__.startswith('3.'), open_clip.__version__\n"
        "from oneshot_medad.backbones import Backbone\n"
        "from oneshot_medad.backbones.clip import tokenize\n"
        "from oneshot_medad.backbones.specs import BackboneSpec\n"
        "spec = BackboneSpec.from_folder(Path(sys.argv[1]))\n"
        "backbone = Backbone(spec, torch.device('cpu'))\n"
        "levels = backbone.vision(load_file(sys.argv[2])['images'])\n"
        "text = backbone.text(tokenize(['a scan']))\n"
        "save_file({**{str(i): x.contiguous() for i, x in enumerate(levels)}, 'text': text}, sys.argv[3])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, spec.folder, tmp_path / "in.safetensors", tmp_path / "out.safetensors"],
        env={**os.environ, "PYTHONPATH": os.environ["OPEN_CLIP_3"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out.safetensors")
    backbone = Backbone(spec, CPU)
    for i, level in enumerate(backbone.vision(images)):
        torch.testing.assert_close(found[str(i)], level, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["text"], backbone.text(tokenize(["a scan"])), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "Log in"), (404, "spelling"), (429, "wait"), (500, "Try again later")]
)
def test_a_refused_download_says_which_file_and_what_to_do(server, status, cure):
    server.faults.append(Fault(r"/resolve/.*\.ckpt", status))
    with pytest.raises(HubError, match=rf"vae_8x_4c_2D\.ckpt of {MEDVAE}.*{status}.*{cure}"):
        resolve(small_spec())
    assert not cache_folder(small_spec()).exists()
    server.faults.clear()
    assert resolve(small_spec()).folder.is_dir()


def test_a_file_that_the_repository_lacks(server):
    spec = small_spec(clip=HubWeights(CLIP, "other.safetensors", "open_clip_config.json"))
    with pytest.raises(HubError, match=r"other\.safetensors of clinic/clip"):
        resolve(spec)


def test_a_transfer_that_breaks_off_never_becomes_the_cache(server):
    server.faults.append(Fault(r"GET .*\.ckpt", 0))
    with pytest.raises(HubError, match="ckpt"):
        resolve(small_spec())
    assert not cache_folder(small_spec()).exists()


def test_a_server_that_refuses_the_connection(server, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(HubError, match=r"cache|connection"):
        resolve(small_spec())


def test_a_wrong_hash_is_refused(server):
    spec = small_spec()
    with pytest.raises(WeightsError, match=r"vae_8x_4c_2D\.ckpt .* SHA-256 .*wanted 0000"):
        resolve(replace(spec, autoencoder=replace(spec.autoencoder, sha256="0" * 64)))
    assert spec.autoencoder is not None
    right = json.loads((resolve(spec).folder / SPEC).read_text())["sources"]["autoencoder"]["sha256"]
    assert resolve(replace(spec, autoencoder=replace(spec.autoencoder, sha256=right))).folder.is_dir()


def test_a_file_that_rotted_in_the_hubs_cache_is_noticed(server, tmp_path):
    resolve(small_spec())
    (blob,) = {p.resolve() for p in tmp_path.rglob("*.ckpt")}
    blob.write_bytes(blob.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"SHA-256.*Delete"):
        resolve(small_spec(name="again"))


@pytest.mark.parametrize(
    ("repo", "name", "content", "message"),
    [
        (MEDVAE, "weights", b"no checkpoint", "damaged; download it again"),
        (MEDVAE, "config", b"model: {params: {embed_dim: 4}}", "MedVAE's configuration"),
        (MEDVAE, "config", b"{embed_dim: 8, ddconfig: {z_channels: 4}}", "MedVAE's configuration"),
        (CLIP, "open_clip_model.safetensors", b"\0" * 100, "Cannot read"),
        (CLIP, "open_clip_config.json", b"[]", "no open_clip configuration"),
        (CLIP, "open_clip_config.json", b'{"model_cfg": {"embed_dim": 64}}', "no open_clip configuration"),
    ],
)
def test_damaged_files_are_refused(server, repo, name, content, message):
    name = {"weights": small_spec().autoencoder.weights, "config": small_spec().autoencoder.config}.get(name, name)
    server.put(repo, {name: content})
    with pytest.raises(WeightsError, match=message):
        resolve(small_spec())
    assert not cache_folder(small_spec()).exists()


def test_a_checkpoint_that_runs_code_is_refused(server, tmp_path):
    import io
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    file = io.BytesIO()
    torch.save({"state_dict": {}, "evil": Evil()}, file, pickle_module=pickle)
    server.put(MEDVAE, {small_spec().autoencoder.weights: file.getvalue()})
    with pytest.raises(WeightsError, match="Cannot read"):
        resolve(small_spec())
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quick_gelu": False}, "QuickGELU True"),
        ({"image_px": 128}, "image size 64"),
        ({"mean": (0.0, 0.0, 0.0)}, "mean"),
        ({"levels": ("transformer.resblocks.9",)}, "no module"),
    ],
)
def test_a_spec_that_contradicts_the_repository_is_refused(server, changes, message):
    with pytest.raises(WeightsError, match=message):
        resolve(small_spec(**changes))


def test_another_activation_is_noticed_when_the_networks_are_used(server):
    folder = resolve(small_spec()).folder
    described = json.loads((folder / "clip.json").read_text())
    described["config"]["quick_gelu"] = False
    (folder / "clip.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError, match="activation"):
        _ = Backbone(replace(small_spec(), folder=folder), CPU).vision


def test_processes_that_want_the_same_networks_fetch_them_once(server, tmp_path):
    script = (
        "import sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from backbone_repos import small_spec\n"
        "from oneshot_medad.backbones.resolve import resolve\n"
        "print(resolve(small_spec()).folder)\n"
    )
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "shared"),
        "HF_HUB_DISABLE_XET": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, "-", str(here), str(here.parent)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate() for process in running]
    assert all(process.returncode == 0 for process in running), answers
    assert answers[0][0] == answers[1][0]
    asked = fetched(server)
    assert len(asked) == len(set(asked)) == 4


def test_offline(server, sample, small, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(WeightsError, match="not in the cache"):
        AnomalyDetector(small_spec(), recipe=small, fetch="never").fit(sample.support)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        AnomalyDetector(small_spec(), recipe=small).fit(sample.support)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    resolve(small_spec())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    AnomalyDetector(small_spec(), recipe=small, fetch="never").fit(sample.support)


def test_half_precision_changes_scores_little(server, sample, small, monkeypatch):
    import oneshot_medad.backbones as backbones

    spec = resolve(small_spec())
    recipe = replace(Recipe.named("scratch"), n_views=8, n_lesions=16, n_steps=40)
    backbones.load_backbone.cache_clear()
    monkeypatch.setattr(backbones, "has_fast_bf16", lambda device: False)
    detector = AnomalyDetector(spec, recipe=recipe, random_state=0).fit(sample.support)
    exact = detector.predict(sample.images).scores
    backbones.load_backbone.cache_clear()
    monkeypatch.setattr(backbones, "has_fast_bf16", lambda device: True)
    half = detector.predict(sample.images).scores
    backbones.load_backbone.cache_clear()
    assert not np.array_equal(half, exact)
    assert np.abs(half - exact).max() < 1e-2 * np.ptp(exact)


def test_networks_may_be_loaded_in_the_midst_of_a_fit():
    backbone = Backbone(get_spec("tiny"), CPU)
    with torch.autocast("cpu", torch.bfloat16):  # their probes are of single precision all the same
        assert backbone.latents.channels == 16
        assert backbone.vision.channels == [40, 112, 320]


def test_names_of_backbones():
    assert get_spec("medvae-vitl14").levels == tuple(f"transformer.resblocks.{i}" for i in (11, 17, 23))
    assert get_spec("medvae-vitl14-336").image_px == 336
    with pytest.raises(ConfigError, match="medvae_8_4_2d"):
        medvae("medvae_16_4_2d")
    with pytest.raises(ConfigError, match="'medvae-vitl14'"):
        get_spec("medvae-vitg")


def test_a_grey_autoencoder(server):
    dd = {**SMALL_DD, "in_channels": 1, "out_ch": 1}
    server.put(MEDVAE, medvae_repo(dd, lora=False))
    backbone = Backbone(resolve(small_spec(name="grey")), CPU)
    z = backbone.latents.encode(torch.rand(1, 3, 64, 64))
    assert z.shape == (1, 4, 16, 16)
    assert backbone.latents.decode(z).shape == (1, 3, 64, 64)


def mediclip_checkpoint(path, dims=(64, 64, 64), embed_dim=64, width=64):
    """What MediCLIP's train.py saves: 1x1 adapters, and eight learned tokens for every phrase."""
    torch.manual_seed(3)
    adapters = {}
    for i, c in enumerate(dims):
        adapters[f"{i}_adapter.0.weight"] = torch.randn(embed_dim, c, 1, 1) / c**0.5
        adapters[f"{i}_adapter.0.bias"] = torch.randn(embed_dim) * 0.1
    prompts = {f"ctx.{k}_end": torch.randn(len(v), 8, width) * 0.1 for k, v in PHRASES.items()}
    torch.save({"adapter_state_dict": adapters, "prompt_state_dict": prompts}, path)
    return adapters, prompts


def test_a_mediclip_checkpoint(server, sample, tmp_path):
    spec = small_spec()
    adapters, prompts = mediclip_checkpoint(tmp_path / "checkpoint.pkl")
    detector = AnomalyDetector.from_pretrained(tmp_path / "checkpoint.pkl", backbone=spec)
    scores, heatmaps = detector.predict(sample.images[:3])

    # MediCLIP's equations on open_clip's own model
    folder = resolve(spec).folder
    config = json.loads((folder / "clip.json").read_text())["config"]
    model = build_clip(config).eval()
    model.load_state_dict(load_file(folder / "clip.safetensors"), strict=False)
    fields = torch.stack([to_field(torch.from_numpy(x)[None].expand(3, -1, -1) / 255, 64) for x in sample.images[:3]])
    words = []
    with torch.no_grad():
        for name, phrases in PHRASES.items():
            tokens = tokenize([" ".join(["X"] * 8) + f" {phrase}." for phrase in phrases])
            x = model.token_embedding(tokens)
            x = torch.cat([x[:, :1], prompts[f"ctx.{name}_end"], x[:, 9:]], dim=1) + model.positional_embedding
            x = model.transformer(x.permute(1, 0, 2), attn_mask=model.attn_mask).permute(1, 0, 2)
            x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)] @ model.text_projection
            words.append(x.mean(0) / x.mean(0).norm())
        found = []
        for i, token in enumerate(raw_tokens(model.visual, (1, 2, 3), (fields - 0.5) / 0.25)):
            grid = token.transpose(0, 1)[:, 1:].transpose(1, 2).reshape(3, 64, 8, 8)
            v = torch.nn.functional.conv2d(grid, adapters[f"{i}_adapter.0.weight"], adapters[f"{i}_adapter.0.bias"])
            v = v / v.norm(dim=1, keepdim=True)
            found.append(torch.einsum("bchw,kc->bkhw", v, torch.stack(words)))
        expected = torch.stack(found).mean(0).softmax(1)[:, 1]
    assert [h.shape for h in heatmaps] == [x.shape for x in sample.images[:3]]
    got = detector._fitted.scorer(*detector._fitted.networks.load().features(fields))[1]
    coarse = torch.nn.functional.interpolate(expected[:, None], got.shape[-2:], mode="bilinear")[:, 0]
    torch.testing.assert_close(got.sigmoid(), coarse, atol=5e-3, rtol=0)  # logits, interpolated
    assert 1 / (1 + np.exp(-scores)) == pytest.approx(coarse.amax((1, 2)).numpy(), abs=5e-3)
    assert detector.threshold_ == 0  # as likely as not

    folder = detector.save_pretrained(tmp_path / "converted")
    again = AnomalyDetector.from_pretrained(folder, backbone=spec)
    assert np.array_equal(again.predict(sample.images[:3]).scores, scores)
    assert "not calibrated" in (folder / "README.md").read_text()


def test_files_that_are_no_fitting_mediclip_checkpoint(server, tmp_path):
    spec = small_spec()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(PersistenceError, match="adapter_state_dict and prompt_state_dict"):
        AnomalyDetector.from_pretrained(tmp_path / "notes.txt", backbone=spec)
    mediclip_checkpoint(tmp_path / "other.pkl", dims=(64, 64))
    with pytest.raises(PersistenceError, match="2_adapter"):
        AnomalyDetector.from_pretrained(tmp_path / "other.pkl", backbone=spec)
    mediclip_checkpoint(tmp_path / "wide.pkl", width=128)
    with pytest.raises(PersistenceError, match=r"ctx\.normal_end"):
        AnomalyDetector.from_pretrained(tmp_path / "wide.pkl", backbone=spec)
