import torch

from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES, Prompts


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
