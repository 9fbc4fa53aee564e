"""How much of an image's structure a map shows."""

import numpy as np


def edge_strength(images: np.ndarray) -> np.ndarray:
    """Sobel's gradient magnitude of the images' luminance.

    Args:
        images (`np.ndarray` of shape `(…, channel, height, width)`): Three channels are red, green and blue (Rec. 601
            weights), any other number is averaged.

    Returns:
        `np.ndarray` of shape `(…, height, width)`, float64. Borders repeat the outermost pixels.
    """
    images = np.asarray(images, dtype=np.float64)
    weights = (
        np.array([0.299, 0.587, 0.114]) if images.shape[-3] == 3 else np.full(images.shape[-3], 1 / images.shape[-3])
    )
    grey = np.einsum("...chw,c->...hw", images, weights)
    padded = np.pad(grey, [(0, 0)] * (grey.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    dx = padded[..., :, 2:] - padded[..., :, :-2]
    dy = padded[..., 2:, :] - padded[..., :-2, :]
    gx = (dx[..., :-2, :] + 2 * dx[..., 1:-1, :] + dx[..., 2:, :]) / 4
    gy = (dy[..., :, :-2] + 2 * dy[..., :, 1:-1] + dy[..., :, 2:]) / 4
    return np.hypot(gx, gy)


def foreground(images: np.ndarray) -> np.ndarray:
    """A two-class segmentation of each image by colour: k-means, the class that fills the middle being the foreground.

    Args:
        images (`np.ndarray` of shape `(image, channel, height, width)`): In any range.

    Returns:
        `np.ndarray` of shape `(image, height, width)`, float64: 1 for the foreground, 0 elsewhere.
    """
    masks = []
    for image in np.asarray(images, dtype=np.float64):
        channels, height, width = image.shape
        pixels = image.reshape(channels, -1).T
        middle = np.zeros((height, width), dtype=bool)
        middle[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        inside = middle.ravel()
        centres = np.stack([pixels[inside].mean(0), pixels[~inside].mean(0)])
        for _ in range(20):
            nearest = ((pixels[:, None] - centres) ** 2).sum(-1).argmin(1)
            moved = np.stack([pixels[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in (0, 1)])
            if np.allclose(moved, centres):
                break
            centres = moved
        front = int((nearest[inside] == 1).mean() > (nearest[inside] == 0).mean())
        masks.append((nearest == front).reshape(height, width).astype(np.float64))
    return np.stack(masks)


def map_correlation(maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Absolute Pearson correlation of maps with targets over the pixels; 0 where one is constant.

    Args:
        maps (`np.ndarray` of shape `(…, height, width)`): Maps.
        targets (`np.ndarray` of a shape that broadcasts with it): What they are compared with.

    Returns:
        `np.ndarray` of shape `(…)`, in [0, 1].
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (maps, targets))
    a, b = a - a.mean((-2, -1), keepdims=True), b - b.mean((-2, -1), keepdims=True)
    norms = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    return np.abs((a * b).sum((-2, -1))) / np.where(norms > 0, norms, np.inf)
