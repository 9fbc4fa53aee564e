"""Judges: people kept apart, thresholds against counts by hand, photographs made as soft as samples."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from training import judges
from training.attribute_classifier import filtered, frequencies, label_bits, roughened
from training.data import FaceImages
from training.judges import HeldOutJudge, decided, person_parts, softened, thresholds


NAMES = ("Red", "Bright")


def coloured(labels, size=16, seed=0):
    """Pictures that show their label: the first bit makes them red, the second one bright."""
    generator = torch.Generator().manual_seed(seed)
    bits = label_bits(labels, 2).float()
    images = torch.full((len(labels), 3, size, size), 60.0) + 120 * bits[:, 1, None, None, None]
    images[:, 0] += 60 * bits[:, 0, None, None]
    images += 10 * torch.randn(images.shape, generator=generator)
    return FaceImages(images.clamp(0, 255).byte(), labels)


def test_a_person_is_in_one_part():
    people = [f"person {i % 23}" for i in range(100)]
    parts = person_parts(FaceImages(torch.zeros(100, 3, 1, 1), torch.zeros(100), people=people), 4)
    assert {len({int(p) for p, name in zip(parts, people, strict=True) if name == who}) for who in people} == {1}
    assert sorted(torch.bincount(parts).tolist()) == pytest.approx([25] * 4, abs=5)
    alone = person_parts(FaceImages(torch.zeros(10, 3, 1, 1), torch.zeros(10)), 4)
    assert sorted(torch.bincount(alone).tolist()) == [2, 2, 3, 3]


def test_each_classifier_learns_from_the_other_parts(monkeypatch):
    labels = torch.arange(4).repeat(10)
    data = coloured(labels)
    data.people = [str(i // 2) for i in range(40)]
    parts, seen = person_parts(data, 4), []

    def train(images, truth, attributes, *, seed, **_):
        seen.append(images)
        return torch.nn.Identity()

    monkeypatch.setattr(judges, "train_classifier", train)
    HeldOutJudge.train(data, NAMES, folds=4)
    for part, images in enumerate(seen):
        assert torch.equal(images, data.images[parts != part])


def test_the_judge_learns_what_is_to_be_seen_and_survives_the_disk(tmp_path):
    labels = torch.tensor([0b00] * 80 + [0b01] * 20 + [0b10] * 20 + [0b11] * 40)
    data = coloured(labels)
    judge = HeldOutJudge.train(data, NAMES, folds=2, steps=40)
    unseen = coloured(labels, seed=2)
    parts = torch.arange(len(labels)) % 2
    scores = judge.scores(unseen.images / 127.5 - 1, parts)
    with torch.no_grad():  # of the image and of its mirror image
        shown = unseen.images[1:2] / 127.5 - 1
        by_hand = (judge.members[1](shown) + judge.members[1](shown.flip(-1))) / 2
    torch.testing.assert_close(scores[1:2], by_hand, atol=1e-4, rtol=1e-4)
    truth = label_bits(labels, 2)
    right = decided(scores, thresholds(scores, truth, parts), parts) == truth
    for i in range(2):
        assert min(right[truth[:, i] == present, i].float().mean() for present in (True, False)) > 0.95
    judge.save(tmp_path)
    loaded = HeldOutJudge.load(tmp_path, NAMES, data)
    # The kernels' layout in memory is another one, so the last digits may be.
    torch.testing.assert_close(loaded.scores(unseen.images / 127.5 - 1, parts), scores, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"expected .*: choose another --judge"):
        HeldOutJudge.load(tmp_path, NAMES, unseen)
    with pytest.raises(ValueError, match="choose another --judge"):
        HeldOutJudge.load(tmp_path, ("Red", "Green"), data)


def test_an_image_is_judged_by_the_classifier_of_its_part():
    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.head = torch.nn.Linear(1, 1)
            self.value = value

        def forward(self, images):
            return torch.full((len(images), 1), self.value)

    judge = HeldOutJudge([Constant(1.0), Constant(2.0)], ["A"], FaceImages(torch.zeros(1), torch.zeros(1)))
    assert judge.scores(torch.zeros(4, 3, 2, 2), torch.tensor([1, 0, 0, 1]))[:, 0].tolist() == [2, 1, 1, 2]


def test_an_attribute_that_never_varies_is_refused():
    with pytest.raises(ValueError, match="with and without Red, got False of all"):
        HeldOutJudge.train(coloured(torch.tensor([0b01, 0b00, 0b01])), NAMES, folds=2, steps=1)


def test_thresholds_come_from_the_other_parts_and_balance_both_errors():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.random(4000) < 0.1)[:, None]
    scores = torch.from_numpy(rng.normal(size=(4000, 1)) + 2 * truth.numpy() + 5).float()
    parts = torch.arange(4000) % 4
    limits = thresholds(scores, truth, parts)
    assert limits.flatten().tolist() == pytest.approx([6.0] * 4, abs=0.25)  # half way between the two normals
    for part in range(4):
        others = parts != part
        missed = (scores[others][truth[others]] <= limits[part]).double().mean()
        wrong = (scores[others][~truth[others]] > limits[part]).double().mean()
        assert abs(missed - wrong) < 0.005
    spoiled = scores.clone()
    spoiled[parts == 2] = -100
    assert thresholds(spoiled, truth, parts)[2] == limits[2]
    assert thresholds(spoiled, truth, parts)[1] != limits[1]


def test_softened_photographs_have_the_detail_of_the_samples():
    rng = np.random.default_rng(0)
    sharp = torch.from_numpy(rng.normal(size=(60, 3, 32, 32)) * 0.2).float()
    blurred = torch.from_numpy(gaussian_filter(sharp.numpy(), (0, 0, 1, 1), mode="mirror"))
    soft = softened(sharp, blurred.roll(1, 0))
    # By another measure than the one that it fits: neighbouring pixels' differences.
    for axis in (2, 3):
        fine = [x.diff(dim=axis).square().mean().item() for x in (sharp, blurred, soft)]
        assert fine[2] == pytest.approx(fine[1], rel=0.15)
        assert fine[2] < 0.2 * fine[0]
    same = softened(blurred, sharp)  # nothing is sharpened
    torch.testing.assert_close(same, blurred, atol=1e-5, rtol=0)


def test_a_filter_of_frequencies_is_a_gaussian_blur():
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 20, 20))).float()
    got = filtered(images, lambda f: torch.exp(-2 * (torch.pi * 1.5 * f) ** 2))
    expected = gaussian_filter(images.numpy().astype(float), (0, 0, 1.5, 1.5), mode="mirror", truncate=6)
    np.testing.assert_allclose(got, expected, atol=2e-3)  # the kernel's samples against its transform
    assert frequencies(8)[0].tolist() == [0, 0.125, 0.25, 0.375, 0.5]


def test_roughening_keeps_the_picture_and_is_repeatable():
    data = coloured(torch.arange(4).repeat(50))
    one, again = (roughened(data.images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again)
    assert one.abs().max() <= 1
    means = [one[data.labels == label].mean() for label in (0b00, 0b01)]
    assert means[1] - means[0] == pytest.approx(120 / 127.5, abs=0.15)
    assert not torch.equal(one[0], one[4])
