"""The parts of drawn faces, as the experiment on concepts takes them."""

import numpy as np
import torch

from training.drawn_parts import CONCEPTS, FIRST_SEED, parts
from training.face_drawing import PARTS, draw_face, random_face


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
