import numpy as np

from diffusers_xai.analysis.structure import edge_strength, foreground


def test_edges_are_sobel_s():
    image = np.random.default_rng(0).random((3, 12, 10))
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    rows = np.pad(grey, 1, mode="symmetric")
    down = sum(w * (rows[2:, 1 + k : 11 + k] - rows[:-2, 1 + k : 11 + k]) for k, w in ((-1, 1), (0, 2), (1, 1))) / 4
    right = sum(w * (rows[1 + k : 13 + k, 2:] - rows[1 + k : 13 + k, :-2]) for k, w in ((-1, 1), (0, 2), (1, 1))) / 4
    np.testing.assert_allclose(edge_strength(image), np.hypot(down, right) / 2**0.5, rtol=1e-9)
    batch = np.stack([image, image[::-1]])
    np.testing.assert_array_equal(edge_strength(batch)[0], edge_strength(image))
    np.testing.assert_allclose(edge_strength(image[:1]), edge_strength(np.repeat(image[:1], 3, axis=0)))


def test_the_foreground_is_what_fills_the_middle():
    image = np.full((1, 3, 16, 16), -0.8)
    image[0, :, 4:13, 3:12] = 0.6
    image += 0.05 * np.random.default_rng(0).normal(size=image.shape)
    expected = np.zeros((16, 16))
    expected[4:13, 3:12] = 1
    assert (foreground(image)[0] == expected).all()
    assert (foreground(-image)[0] == expected).all()
