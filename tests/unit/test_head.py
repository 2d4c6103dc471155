import torch

from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.nn.head import (
    ABNORMAL_PHRASES,
    NORMAL_PHRASES,
    Adapters,
    ContextAdapters,
    Prompts,
    as_rows,
    closest,
    embedded_cosines,
    similarity_map,
)
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.nn.projection import ProjectionHead
from oneshot_medad.nn.unet import DeviationUNet


def test_truncated_prompts_equal_full_ones(backbone):
    text = backbone.text
    tokens = [tokenize(p) for p in (NORMAL_PHRASES, ABNORMAL_PHRASES)]
    embeddings = [text.embed(t) for t in tokens]
    torch.manual_seed(0)
    prompts = Prompts(tokens, embeddings)
    assert len(prompts.rows) < 21 * 77 / 8
    short = prompts(text)

    places = torch.arange(77)
    causal = places[:, None] >= places
    full = []
    for context, ids, emb in zip(prompts.context, tokens, embeddings, strict=True):
        spread = context[None].expand(len(ids), -1, -1)
        sequence = torch.cat([emb[:, :1], spread, emb[:, 1:]], dim=1)[:, :77]
        found = text.encode(sequence, places, causal)
        features = found[torch.arange(len(ids)), ids.argmax(1) + context.shape[0]]
        features = features / features.norm(dim=1, keepdim=True)
        mean = features.mean(0)
        full.append(mean / mean.norm())
    torch.testing.assert_close(short, torch.stack(full), atol=1e-6, rtol=1e-5)


def test_some_phrases_are_those_of_prompts_made_of_them_alone(backbone):
    text = backbone.text
    chosen = torch.tensor([[7, 2, 0], [10, 3, 4]])
    tokens = [tokenize(p) for p in (NORMAL_PHRASES, ABNORMAL_PHRASES)]
    whole = Prompts(tokens, [text.embed(t) for t in tokens])
    few = [t[c] for t, c in zip(tokens, chosen, strict=True)]
    part = Prompts(few, [text.embed(t) for t in few])
    part.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole(text, chosen), part(text), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(whole(text, chosen), whole(text), atol=1e-3)


def test_text_tower_equals_open_clips_own_encoding(backbone):
    from benchmarks.pretrain.clip import CONFIG
    from oneshot_medad.backbones import build_clip
    from oneshot_medad.backbones.clip import TextTower

    model = build_clip(CONFIG).eval()
    tokens = tokenize(["a chest x-ray", "a photo of a cat sitting on a mat"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(TextTower(model)(tokens), expected)
        torch.testing.assert_close(TextTower(model)(tokens[:, :12]), expected, atol=1e-6, rtol=1e-5)


def test_similarity_map_is_the_mean_over_levels_of_softmaxed_cosines():
    fine = torch.zeros(1, 2, 4, 4)
    fine[:, 1] = 1  # everywhere the abnormal direction
    coarse = torch.zeros(1, 2, 2, 2)
    coarse[:, 0] = 1  # everywhere the normal one
    got = similarity_map([fine, coarse], 2.0, (4, 4))
    p = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(got, torch.full((1, 4, 4), float((p + 1 - p) / 2)))


def test_cosines_without_embeddings_are_those_of_the_embeddings():
    torch.manual_seed(0)
    last, text = torch.nn.Conv2d(8, 24, 1), torch.nn.functional.normalize(torch.randn(2, 24), dim=1)
    found = []
    for way in (
        lambda h: embedded_cosines(h, last, text),
        lambda h: torch.einsum("bdhw,kd->bkhw", torch.nn.functional.normalize(last(h), dim=1), text),
    ):
        hidden = torch.linspace(-2, 3, 2 * 8 * 9).reshape(2, 8, 3, 3).requires_grad_()
        cosines = way(hidden)
        moved = [hidden, last.weight, last.bias]
        found.append((cosines, *torch.autograd.grad(cosines.square().sum(), moved)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_adapters_give_the_cosines_of_their_embeddings():
    torch.manual_seed(0)
    adapters, text = Adapters([4, 6], 16), torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    for got, adapter, f in zip(adapters(features, text), adapters.levels, features, strict=True):
        wanted = torch.einsum("bdhw,kd->bkhw", torch.nn.functional.normalize(adapter(f), dim=1), text)
        torch.testing.assert_close(got, wanted)


def test_losses_prefer_the_truth():
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 2:5] = 1
    good, bad = mask * 0.8 + 0.1, 0.9 - mask * 0.8
    for loss in (focal_loss, dice_loss):
        assert loss(good, mask) < loss(torch.full_like(mask, 0.5), mask) < loss(bad, mask)
    assert dice_loss(mask, mask) < 1e-6


def test_unet_uses_its_timestep_and_takes_any_size():
    torch.manual_seed(0)
    net = DeviationUNet(4, width=16)
    torch.nn.init.normal_(net.last.weight)
    z = torch.randn(2, 4, 15, 18)
    early, late = (net(z, torch.full((2,), t)) for t in (0, 9))
    assert early.shape == z.shape
    assert (early - late).abs().mean() > 1e-3


def test_projection_gives_every_level_its_own_grid():
    head = ProjectionHead(4, [(5, 32), (6, 16), (7, 8)], grid=32, width=16)
    assert [tuple(f.shape) for f in head(torch.randn(2, 4, 32, 32))] == [(2, 5, 32, 32), (2, 6, 16, 16), (2, 7, 8, 8)]
    coarser = ProjectionHead(4, [(5, 16), (5, 16)], grid=28, width=16)
    assert [tuple(f.shape) for f in coarser(torch.randn(1, 4, 28, 28))] == [(1, 5, 16, 16)] * 2


def test_nearest_is_the_closest_row_at_every_place():
    torch.manual_seed(0)
    features, normal = torch.randn(2, 5, 3, 4), torch.randn(30, 5)
    found = normal[closest(features, normal)].permute(0, 3, 1, 2)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                distances = (normal - features[b, :, y, x]).norm(dim=1)
                assert torch.equal(found[b, :, y, x], normal[distances.argmin()])
    rows = as_rows([features])[0]
    assert torch.equal(closest(features, rows).flatten(), torch.arange(24))


def test_context_adapters_read_the_reference_and_keep_every_grid():
    torch.manual_seed(0)
    adapters = ContextAdapters([4, 6], 16, width=8)
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    one, other = ([torch.randn(20, 4), torch.randn(20, 6)] for _ in range(2))
    text = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    got = adapters(features, text, one)
    assert [tuple(g.shape) for g in got] == [(2, 2, 8, 8), (2, 2, 4, 4)]
    assert not torch.allclose(got[0], adapters(features, text, other)[0])
    alone = adapters([f[:1] for f in features], text, one)
    torch.testing.assert_close(alone[0], got[0][:1])
