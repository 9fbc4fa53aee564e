"""The judge of drawn faces is exact: on faces it was not made with, with noise, in other sizes."""

import numpy as np
import pytest
import torch

from diffusers_xai.checkpoints.drawn_judge import DrawnFaceJudge, soft_probabilities, things
from diffusers_xai.checkpoints.face_drawing import ATTRIBUTES, draw_face, random_face


HELD_OUT = 50_000_000  # seeds that set no threshold


def drawn(count, size=32):
    """Faces, and their pictures (face, 3, height, width) in [-1, 1]."""
    faces = [random_face(HELD_OUT + i) for i in range(count)]
    images = np.stack([draw_face(face, size).image for face in faces])
    return faces, torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def faces_and_images():
    return drawn(600)


def truth(faces):
    return torch.tensor([list(face.labels.values()) for face in faces])


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.06])
def test_every_attribute_of_every_face_is_right(faces_and_images, noise):
    faces, images = faces_and_images
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    wrong = (DrawnFaceJudge().predict(images) != truth(faces)).sum(0)
    assert dict(zip(ATTRIBUTES, wrong.tolist(), strict=True)) == dict.fromkeys(ATTRIBUTES, 0)


@pytest.mark.parametrize("size", [48, 64])
def test_other_sizes(size):
    faces, images = drawn(60, size)
    assert torch.equal(DrawnFaceJudge().predict(images), truth(faces))


def test_colours_by_name(faces_and_images):
    faces, images = faces_and_images
    judge = DrawnFaceJudge()
    assert judge.hair_colors(images) == [face.hair_color for face in faces]
    assert judge.background_colors(images) == [face.background_color for face in faces]


def test_mirrored_pictures_and_a_blank_one(faces_and_images):
    faces, images = faces_and_images
    assert torch.equal(DrawnFaceJudge().predict(images.flip(-1)), truth(faces))
    assert DrawnFaceJudge().measure(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_soft_answers_are_nearly_the_judges_and_have_gradients(faces_and_images):
    faces, images = faces_and_images
    images = images.clone().requires_grad_()
    told = soft_probabilities(images)
    right = ((told > 0.5) == truth(faces)).float().mean(0)
    assert right.min() > 0.99  # all of them here
    told.sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_each_measure_answers_to_its_own_attribute():
    """Switching one label of a face moves its own measure across the threshold, and no other measure across."""
    judge = DrawnFaceJudge()
    fields = ("bangs", "male", "smiling", "wearing_lipstick")
    for seed in range(HELD_OUT, HELD_OUT + 15):
        for i, field in enumerate(fields):
            pair = [draw_face(random_face(seed, **{field: value}), 32).image for value in (False, True)]
            seen = judge.predict(torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2) / 127.5 - 1)
            assert seen[:, i].tolist() == [False, True]
            assert torch.equal(seen[0, torch.arange(4) != i], seen[1, torch.arange(4) != i])


def test_what_it_sees_by_the_captions_words(faces_and_images):
    faces, images = faces_and_images
    seen = things(images)
    for word, expected in {
        "man": [face.male for face in faces],
        "smiling": [face.smiling for face in faces],
        "blond hair": [face.hair_color == "blond" for face in faces],
        "green background": [face.background_color == "green" for face in faces],
    }.items():
        assert seen[word].tolist() == [float(value) for value in expected], word
