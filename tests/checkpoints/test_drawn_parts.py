"""The parts of drawn faces, as the experiment on concepts takes them."""

import numpy as np
import torch

from diffusers_xai.checkpoints.drawn_judge import DrawnFaceJudge
from diffusers_xai.checkpoints.drawn_parts import CONCEPTS, FIRST_SEED, parts, words
from diffusers_xai.checkpoints.face_drawing import BACKGROUND_COLORS, PARTS, draw_face, random_face


def test_faces_and_the_masks_of_their_parts():
    faces, masks = parts(torch.zeros(12, 3, 32, 32))
    assert faces.shape == (12, 3, 32, 32)
    assert list(masks) == list(CONCEPTS)
    drawing = draw_face(random_face(FIRST_SEED + 7), 32)
    np.testing.assert_allclose((faces[7].permute(1, 2, 0).numpy() + 1) * 127.5, drawing.image, atol=1e-3)
    eyes = sum(drawing.coverage[PARTS.index(part)] for part in ("eyes", "irises", "pupils"))
    np.testing.assert_array_equal(masks["eyes"][7], eyes >= 0.25)
    for mask in masks.values():
        assert 0 < mask.mean() < 0.6
    glasses = [random_face(FIRST_SEED + number).glasses for number in range(12)]
    assert [bool(mask.any()) for mask in masks["glasses"]] == glasses


def test_a_face_as_a_prompt_describes_it_and_where_its_words_are():
    prompt = "a smiling woman with bangs, glasses and ginger hair, green background"
    face, masks = words(torch.zeros(3, 32, 32), prompt, 2)
    assert set(masks) == {"smiling", "bangs", "glasses", "ginger hair", "green background"}
    judge = DrawnFaceJudge()
    assert judge.predict(face[None]).tolist() == [[True, False, True, False]]
    assert judge.hair_colors(face[None]) == ["ginger"]
    assert judge.background_colors(face[None]) == ["green"]
    for word, mask in masks.items():
        assert 0 < mask.mean() < 0.6, word
    assert not (masks["bangs"] & masks["green background"]).any()
    assert masks["bangs"][masks["ginger hair"]].any()
    # Colours of the face at the masks, which the drawing has there and nowhere else.
    inside = ((face.permute(1, 2, 0).numpy() + 1) * 127.5)[masks["green background"]]
    assert np.abs(np.median(inside, axis=0) - BACKGROUND_COLORS["green"]).max() < 12
    assert not torch.equal(words(torch.zeros(3, 32, 32), prompt, 3)[0], face)
