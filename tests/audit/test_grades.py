"""The tests' numbers, against models whose reactions are known and against scipy."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.stats import spearmanr

from diffusers_xai import GaussianDenoiser, MixtureDenoiser, XAIPipeline
from diffusers_xai.audit import explainers, grades, permuting
from diffusers_xai.audit.case import Case
from diffusers_xai.audit.grades import (
    FRACTIONS,
    Bench,
    as_coarse,
    as_maps,
    full_size,
    label_misfit,
    misfit,
    rank_correlation,
    relative_change,
    smooth_random,
)
from diffusers_xai.audit.permuting import permuted, trained_on_permuted_labels
from diffusers_xai.audit.shuffling import from_the_output, shuffled
from diffusers_xai.audit.testing import Tests
from tests.audit.models import MASK, SHAPE, case, gaussian, images, mixture, network


RNG = np.random.default_rng(0)


def test_rank_correlation_is_spearman_s():
    first, second = RNG.normal(size=(2, 4, 8, 8))
    expected = [abs(spearmanr(a.ravel(), b.ravel()).statistic) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected)
    assert (rank_correlation(first, np.ones_like(first)) == 0).all()
    assert (rank_correlation(first, np.full_like(first, np.nan)) == 0).all()
    np.testing.assert_allclose(rank_correlation(first, -np.exp(first)), 1)
    # A map that says the same whatever the model must not pass as one that depends on it.
    assert (rank_correlation(np.ones_like(first), np.ones_like(first)) == 1).all()
    assert (rank_correlation(np.ones_like(first), 2 * np.ones_like(first)) == 0).all()


def test_the_misfit_is_least_squares():
    predicted, true = RNG.normal(size=(2, 3, 50))
    for p, t, value in zip(predicted, true, misfit(predicted, true), strict=True):
        residual = np.linalg.lstsq(p[:, None], t, rcond=None)[1][0]
        assert value == pytest.approx(residual / (t**2).sum())
    np.testing.assert_allclose(misfit(3 * true, true), 0, atol=1e-12)
    assert (misfit(np.zeros_like(true), true) == 1).all()


def test_random_maps_are_as_smooth_and_have_the_same_values():
    smooth = explainers.exact_clean_energy(case(gaussian())).float()
    random = smooth_random(smooth, seed=1)
    torch.testing.assert_close(random.flatten(1).sort().values, smooth.flatten(1).sort().values)

    def roughness(maps):
        return (maps[:, 1:] - maps[:, :-1]).square().mean() / maps.var()

    white = smooth.flatten(1)[:, torch.randperm(256)].view_as(smooth)
    assert roughness(random) < 0.35 * roughness(white)
    many = np.mean([rank_correlation(as_maps(smooth_random(smooth, s)), as_maps(smooth)) for s in range(2, 20)])
    assert many < 0.45  # of maps of a few blobs, by chance


def test_the_gradient_predicts_a_linear_model_exactly():
    given = case(gaussian())
    bench = Bench(given)
    assert bench.infidelity(explainers.gradient(given)).max() < 1e-12
    assert bench.infidelity(2 * explainers.gradient(given)) == pytest.approx(1)  # twice as much: all of it is missed
    random = bench.infidelity(smooth_random(explainers.gradient(given), 0).double())
    assert random.min() > 0.5
    by_energy = bench.infidelity(explainers.exact_clean_energy(given))
    assert by_energy.max() < 0.35  # its patches' noise is drawn, and colours are summed
    assert (by_energy < bench.infidelity(torch.rand(3, 16, 16))).all()


def test_the_size_of_a_linear_model_s_change_is_foretold_by_its_jacobian_s_norms(monkeypatch):
    monkeypatch.setattr(grades, "DRAWS", 300)
    given = case(gaussian(), batch=1)
    jacobian = given.pipe.unet.jacobian(given.sample, given.timestep)[0].reshape(*SHAPE, *SHAPE)
    norms = jacobian[:, torch.from_numpy(MASK)].square().sum((0, 1, 2)).sqrt()  # of the mask's x̂_0, by each pixel
    assert Bench(given).infidelity(norms[None]).max() < 0.002


def test_deletion_and_insertion_replace_the_highest_ranks():
    given = case(gaussian(), batch=1)
    bench = Bench(given)
    maps = as_maps(explainers.exact_clean_energy(given))
    alpha = given.alpha
    noise = torch.randn(given.sample.shape, generator=torch.Generator().manual_seed(1)).to(given.sample)
    other = alpha**0.5 * given.images.mean(0) + (1 - alpha) ** 0.5 * noise

    def reaction(sample):
        moved = (given.predict_x0(sample) - given.predict_x0())[..., torch.from_numpy(MASK)]
        return moved.square().mean().sqrt().item()

    order = maps[0].ravel().argsort()[::-1]
    deleted, kept = [], []
    for share in FRACTIONS:
        top = np.zeros(256, bool)
        top[order[: int(np.ceil(share * 256))]] = True
        top = torch.from_numpy(top.reshape(16, 16))
        deleted.append(reaction(torch.where(top, other, given.sample)) / reaction(other))
        kept.append(1 - reaction(torch.where(top, given.sample, other)) / reaction(other))
    assert bench.deletion(maps)[0] == pytest.approx(np.mean(deleted))
    assert bench.insertion(maps)[0] == pytest.approx(np.mean(kept))
    assert bench.deletion(maps)[0] > 1.3 * bench.deletion(-maps)[0]


def test_all_grades_of_a_tiny_gaussian_by_hand():
    """A map of one channel of 6×6 pixels, its answer by Gauss's rule, and every number by loops of numpy."""
    side, timestep, batch = 6, 400, 3
    mask = np.zeros((side, side), bool)
    mask[1:3, 2:5] = True
    rng = np.random.default_rng(5)
    rows, columns = (index.ravel() for index in np.indices((side, side)))
    distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    scale = np.linspace(0.5, 1.5, side * side)
    covariance = 0.3 * np.exp(-distance / 3) * np.outer(scale, scale) + 0.01 * np.eye(side * side)
    scheduler = DDIMScheduler(clip_sample=False)
    mean = torch.from_numpy(rng.normal(size=(1, side, side)))
    pipe = XAIPipeline(GaussianDenoiser.from_moments(mean, torch.from_numpy(covariance), scheduler), scheduler)
    x, clean = rng.normal(size=(2, batch, 1, side, side))
    given = Case(pipe, torch.from_numpy(x), timestep, mask, torch.from_numpy(clean))
    energy = explainers.Explainer("energy", explainers.exact_clean_energy, exact=explainers.exact_clean_energy)
    scores = Tests([given], [given], pipe, None).grade(energy, beyond=True)

    alpha = given.alpha
    jacobian = alpha**0.5 * covariance @ np.linalg.inv(alpha * covariance + (1 - alpha) * np.eye(side * side))
    inside = mask.ravel()
    the_map = np.sqrt((jacobian[inside] ** 2).sum(0))  # the same of every sample: the model is linear

    def reach(changes):
        return (jacobian @ changes.reshape(-1, side * side).T)[inside].T  # of x̂_0 within the mask

    # Noise in patches of 2×2, and what the map foretells of its size.
    draw = np.random.default_rng(0)
    places = np.zeros((24, side, side))
    for place in places:
        top, left = (draw.integers(0, side - 1) for _ in range(2))
        place[top : top + 2, left : left + 2] = 1
    noise = draw.normal(size=(24, 2, 1, 1, side, side))[:, :, 0, 0]
    sizes = [
        np.sqrt(np.mean([(reach(0.2 * x.std(ddof=1) * patch * n) ** 2).sum() for n in pair]))
        for patch, pair in zip(places, noise, strict=True)
    ]
    told = [np.sqrt((patch.ravel() * the_map**2).sum()) for patch in places]
    cosine = np.dot(told, sizes) / np.linalg.norm(told) / np.linalg.norm(sizes)
    np.testing.assert_allclose(scores["infidelity"]["values"], [[1 - cosine**2] * batch], rtol=1e-6)

    fresh = torch.randn((batch, 1, side, side), generator=torch.Generator().manual_seed(1)).double().numpy()
    other = alpha**0.5 * clean.mean(0) + (1 - alpha) ** 0.5 * fresh
    deleted, inserted = np.zeros((2, batch))
    for k in range(batch):
        whole = np.sqrt((reach(other[k] - x[k]) ** 2).mean())
        for share in (0.05, 0.15, 0.35, 0.65):
            top = np.zeros(side * side, bool)
            top[np.argsort(-the_map)[: int(np.ceil(share * side * side))]] = True
            change = (other[k] - x[k]).ravel()
            deleted[k] += np.sqrt((reach(change * top) ** 2).mean()) / whole / 4
            inserted[k] += (1 - np.sqrt((reach(change * ~top) ** 2).mean()) / whole) / 4
    np.testing.assert_allclose(scores["deletion"]["values"], [deleted], rtol=1e-6)
    np.testing.assert_allclose(scores["insertion"]["values"], [inserted], rtol=1e-6)
    np.testing.assert_allclose(scores["excess"]["reference"], [deleted], rtol=1e-6)  # the null is the model itself

    # The model with its numbers in other places, asked for the answer to each unit of x_t.
    moved = XAIPipeline(shuffled(pipe.unet), scheduler)
    units = torch.eye(side * side).double().view(-1, 1, side, side)
    answers = given.of(moved).predict_x0(units) - given.of(moved).predict_x0(torch.zeros_like(units))
    changed = np.sqrt((answers.detach().numpy().reshape(side * side, -1)[:, inside] ** 2).sum(1))
    expected = abs(spearmanr(changed, the_map).statistic)
    np.testing.assert_allclose(scores["randomised"]["values"], [[expected] * batch], atol=1e-9)
    assert expected < 0.9
    for name, value in (("closed_form", 0), ("sensitivity", 0), ("schedulers", 1), ("seeds", 1)):
        np.testing.assert_allclose(scores[name]["values"], [[value] * batch], atol=1e-9)


def test_maps_of_a_layer_are_compared_with_the_layer_of_a_closed_form():
    given = case(mixture(), label=0, other_label=1)
    found = {e.name: e for e in explainers.package_explainers(network())}
    x0 = given.predict_x0().detach().requires_grad_()
    noise = (given.sample - given.alpha**0.5 * x0) / (1 - given.alpha) ** 0.5
    (by_autograd,) = torch.autograd.grad((noise * torch.from_numpy(MASK)).sum(), x0)
    means = x0.detach().numpy()[..., MASK].mean(-1)
    weights = np.full(means.shape, MASK.mean())  # of the mask's sum, by each value of a channel, on average
    channels = [
        values[best] - values[best].min() for values, best in zip(x0.detach().numpy(), means.argmax(1), strict=True)
    ]
    expected = {
        "gradient map": by_autograd.square().sum(1).sqrt().numpy(),
        "gradient attention": np.maximum(np.einsum("nc,nchw->nhw", weights, x0.detach().numpy()), 0),
        "c* map": np.stack(channels),
    }
    for kind, values in expected.items():
        (one, *_) = [e for name, e in found.items() if name.startswith(kind)]
        np.testing.assert_allclose(one.exact(given), values, atol=1e-9)
        np.testing.assert_allclose(one.of_x0(given), values, atol=1e-6)
        flat = [part(given).flatten(1).double().numpy() for part in (one.of_x0, one.exact)]
        assert misfit(*flat).max() < 1e-9
    why = {name: e.why_no_error for name, e in found.items() if e.why_no_error}
    assert {name.split(" ")[0] for name in why} == {"attention"}
    assert all(e.exact for name, e in found.items() if name not in why)


def test_label_sensitivity_predicts_what_a_label_changes():
    given = case(mixture(), label=0, other_label=1)
    assert label_misfit(given, explainers.label_sensitivity(given)).max() < 1e-6
    assert label_misfit(given, smooth_random(explainers.label_sensitivity(given), 0)).min() > 0.3


def test_the_largest_change_counts():
    first = torch.ones(2, 4, 4)
    others = [first * 1.1, first * torch.tensor([0.7, 1.0])[:, None, None]]
    np.testing.assert_allclose(relative_change(first, others), [0.3, 0.1], rtol=1e-5)


def test_shuffled_numbers_stay_within_their_parameter():
    unet = network().unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    other = shuffled(unet, {"conv_out", "mid_block.attentions.0.attn.to_qkv"})
    for name, value in other.state_dict().items():
        changed = name.startswith(("conv_out", "mid_block.attentions.0.attn.to_qkv"))
        assert torch.equal(value, before[name]) != (changed and value.unique().numel() > 1)
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    everything = shuffled(unet).state_dict()
    assert all(
        not torch.equal(value, before[name]) for name, value in everything.items() if value.unique().numel() > 1
    )


def test_a_closed_form_keeps_its_labels():
    given = mixture().unet
    model = MixtureDenoiser.fit(images(), torch.arange(80) % 2 + 3, mixture().scheduler, rank=20, num_class_embeds=16)
    other, sample = shuffled(model), torch.zeros(1, 3, 16, 16)
    label = torch.tensor([3])
    assert (other.predict_x0(sample, 300, label) - model.predict_x0(sample, 300, label)).abs().max() > 0.1
    assert torch.equal(shuffled(given).class_embedding.shares, given.class_embedding.shares)


def test_layers_are_ordered_from_the_output():
    given = case(network(), label=3, other_label=4)
    order = from_the_output(given.pipe.unet, given.predict_x0)
    assert order[0] == "conv_out"
    assert order[-1] == "time_embedding.linear_1"
    assert order.index("up_blocks.0.upsamplers.0") < order.index("mid_block.resnets.0.depthwise_conv")
    assert order.index("mid_block.resnets.0.depthwise_conv") < order.index("conv_in")
    assert not any(module._forward_hooks for module in given.pipe.unet.modules())


def test_maps_are_compared_at_their_own_size():
    fine = explainers.exact_clean_energy(case(gaussian()))
    coarse = as_coarse(fine, (4, 4))
    np.testing.assert_allclose(coarse, fine.reshape(3, 4, 4, 4, 4).mean((2, 4)))
    large = full_size(coarse, (16, 16))
    assert large.shape == (3, 16, 16)
    assert full_size(fine, (16, 16)).equal(fine)
    # Enlarged bilinearly, centres of cells keep their values.
    np.testing.assert_allclose(large[:, 1:3, 1:3].mean((1, 2)), coarse[:, 0, 0], rtol=0.3)


def test_a_mixture_fitted_to_permuted_labels_knows_nothing_of_labels():
    pipe, labels = mixture(), [i % 2 for i in range(80)]
    other = trained_on_permuted_labels(pipe, images(), labels)
    of_images = torch.tensor(permuted(labels))
    again = MixtureDenoiser.fit(images().double(), of_images, pipe.scheduler, covariance_type="shrunk")
    given = case(pipe, label=0, other_label=1)
    torch.testing.assert_close(given.of(other).predict_x0(), given.of(XAIPipeline(again, pipe.scheduler)).predict_x0())
    means = other.unet.means.unflatten(1, SHAPE)[:, :, 8:14, 2:7].mean((1, 2, 3))  # where the labels' bright patch is
    assert abs(means[1] - means[0]) < 0.25  # 0.8 before; dealing 80 labels anew scatters by 0.09
    assert sorted(permuted(labels)) == sorted(labels)


def test_a_network_is_trained_further_on_permuted_labels(monkeypatch):
    """One step from the model's own weights, by hand."""
    monkeypatch.setattr(permuting, "BATCH", 4)
    pipe, clean, labels = network(), images(), [i % 2 for i in range(80)]
    found = trained_on_permuted_labels(pipe, clean, labels, steps=1, seed=3).unet
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    rows, times = (torch.randint(n, (4,), generator=generator) for n in (80, 1000))
    noise = torch.randn(4, 3, 16, 16, generator=generator)
    noisy = pipe.scheduler.add_noise(clean[rows], noise, times)
    hand = copy.deepcopy(pipe.unet).requires_grad_(True)
    predicted = hand(noisy, times, class_labels=torch.tensor(labels)[order][rows]).sample
    (predicted - noise).square().mean().backward()
    torch.optim.AdamW(hand.parameters(), lr=permuting.LEARNING_RATE).step()
    change = torch.cat([(value - before[name]).flatten() for name, value in hand.state_dict().items()])
    got = torch.cat([(value - before[name]).flatten() for name, value in found.state_dict().items()])
    assert (
        torch.corrcoef(torch.stack([change, got]))[0, 1] > 0.99
    )  # Adam's first step is a sign: round-off may turn it
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
