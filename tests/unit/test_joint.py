from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_medad import Recipe
from oneshot_medad.synthesis.deviation import alphas_bar
from oneshot_medad.training.cache import OnDemand, draw_batch
from oneshot_medad.training.joint import JointModel
from oneshot_medad.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def reference(small):
    """With MediCLIP's softmax, as the equations have it."""
    plain = replace(Recipe.named("reference"), logit_scale=1.0, learn_logit_scale=False)
    return replace(plain, n_views=4, n_held=3, n_steps=2, batch_size=3)


def build(recipe, backbone, views):
    torch.manual_seed(0)
    return JointModel.build(recipe, backbone, views.normal)


def batch_of(views, recipe):
    return draw_batch(replace(views, lesion=None), recipe, torch.Generator().manual_seed(5), CPU)


def test_reference_loss_written_out_by_hand(backbone, views, reference):
    """w1·(focal + dice) + w2·MSE of the masked process, in the order of the method's equations."""
    recipe = replace(reference, weight_detection=0.7, weight_deviation=1.3, severity=0.9)
    model = build(recipe, backbone, views)
    batch = batch_of(views, recipe)
    with torch.no_grad():
        got = model(batch, backbone.text)

        z, m = batch.normal.z, batch.disturb_mask[:, None]
        a = alphas_bar()[batch.t][:, None, None, None]
        z_noisy = (1 - m) * z + m * (a.sqrt() * z + (1 - a).sqrt() * batch.noise)
        true_eta = m * (batch.noise - (1 - a.sqrt()) / (1 - a).sqrt() * z)
        pred_eta = model.unet(z_noisy, batch.t)
        z_anom = z + 0.9 * pred_eta
        loss_deco = ((pred_eta - true_eta) ** 2).mean()

        words = model.prompts(backbone.text)
        maps = []
        for latent in (z, z_anom):
            levels = []
            for adapter, feature in zip(model.adapters["latent"].levels, model.projection(latent), strict=True):
                v = adapter(feature)
                v = v / v.norm(dim=1, keepdim=True)
                s = torch.stack([(v * w[None, :, None, None]).sum(1) for w in words], dim=1)
                s = F.interpolate(s, m.shape[-2:], mode="bilinear", align_corners=False)
                levels.append(s[:, 1].exp() / s.exp().sum(1))
            maps.append(sum(levels) / len(levels))
        p = torch.cat(maps)
        y = torch.cat([torch.zeros_like(m[:, 0]), m[:, 0]])
        pt = p * y + (1 - p) * (1 - y)
        focal = (-((1 - pt) ** 2) * pt.log()).mean()
        dice = torch.stack(
            [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, y, strict=True)]
        ).mean()
    torch.testing.assert_close(got["deviation"], loss_deco)
    torch.testing.assert_close(got["detection"], focal + dice, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got["loss"], 0.7 * (focal + dice) + 1.3 * loss_deco, atol=1e-5, rtol=1e-4)


def test_reference_moves_all_four_trained_parts_and_nothing_frozen(backbone, views, reference):
    model = build(reference, backbone, views)
    frozen = {
        name: {k: v.clone() for k, v in part.state_dict().items()}
        for name, part in [("latents", backbone.latents), ("vision", backbone.vision), ("text", backbone.text)]
    }
    before = {k: v.clone() for k, v in model.named_parameters()}
    history = train(model, replace(views, lesion=None), backbone.text, torch.Generator().manual_seed(0), CPU, False)
    moved = {k.split(".")[0] for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {"unet", "projection", "adapters", "prompts"}
    assert len(history) == reference.n_steps
    for name, part in [("latents", backbone.latents), ("vision", backbone.vision), ("text", backbone.text)]:
        for key, value in part.state_dict().items():
            assert torch.equal(value, frozen[name][key]), (name, key)
        assert all(p.grad is None for p in part.parameters())


def test_detection_loss_reaches_the_deviation_network_unless_detached(backbone, views, reference):
    for detach in (False, True):
        recipe = replace(reference, weight_deviation=0.0, detach_deviation=detach)
        model = build(recipe, backbone, views)
        model(batch_of(views, recipe), backbone.text)["loss"].backward()
        gradient = model.unet.last.weight.grad
        reached = gradient is not None and gradient.abs().sum() > 0
        assert bool(reached) is not detach


def test_a_perfect_network_synthesises_the_disturbed_latent(backbone, views, small):
    model = build(replace(small, severity=1.0, severity_follows_time=True), backbone, views)
    batch = batch_of(views, small)
    kept = alphas_bar()[batch.t].sqrt()[:, None, None, None]
    strength = (1 - kept**2).sqrt()
    m = batch.disturb_mask[:, None]
    eta = m * (batch.noise - (1 - kept) / strength * batch.normal.z)
    model.unet.forward = lambda z, t: eta
    z_anom, loss = model.synthesise(batch)
    torch.testing.assert_close(z_anom, batch.normal.z + strength * eta)
    assert loss < 1e-10


def test_training_leaves_no_process_wide_state(backbone, views, small):
    from accelerate.state import AcceleratorState, PartialState

    train(build(small, backbone, views), views, backbone.text, torch.Generator().manual_seed(0), CPU, False)
    assert not PartialState._shared_state
    assert not AcceleratorState._shared_state


def test_pretrained_and_random_initial_values_differ(backbone, views, small):
    torch.manual_seed(0)
    one = JointModel.build(small, backbone, views.normal, "pretrained")
    torch.manual_seed(0)
    other = JointModel.build(small, backbone, views.normal, "random")
    for name in ("unet.first.weight", "projection.first.weight"):
        assert torch.equal(one.state_dict()[name], backbone.initial[name])
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_lesion_views_are_encoded_when_they_are_first_drawn(views):
    asked = []
    whole = replace(views.normal, kinds=None, positions=None)

    def encode(index):
        asked.append(index.tolist())
        return whole[index]

    waiting = OnDemand(len(whole), encode)
    assert len(waiting) == len(whole)
    assert not asked
    first = torch.tensor([2, 0, 2])
    found = [waiting[first], waiting[torch.tensor([1, 2])]]
    assert asked == [[0, 2], [1]]
    for seen, index in zip(found, (first, torch.tensor([1, 2])), strict=True):
        wanted = whole[index]
        assert torch.equal(seen.z, wanted.z)
        assert all(torch.equal(f, w) for f, w in zip(seen.features, wanted.features, strict=True))
        assert all(torch.equal(m.rows, w.rows) for m, w in zip(seen.matches, wanted.matches, strict=True))
