"""The structure of images: their edges, and what stands in front."""

import numpy as np
from scipy.cluster.vq import kmeans2
from skimage.filters import sobel


def edge_strength(images: np.ndarray) -> np.ndarray:
    """Sobel's gradient magnitude of the images' luminance.

    Args:
        images (`np.ndarray` of shape `(…, channel, height, width)`): Three channels are red, green and blue (Rec. 601
            weights), any other number is averaged.

    Returns:
        `np.ndarray` of shape `(…, height, width)`, float64, as `skimage.filters.sobel` has it.
    """
    images = np.asarray(images, dtype=np.float64)
    weights = (
        np.array([0.299, 0.587, 0.114]) if images.shape[-3] == 3 else np.full(images.shape[-3], 1 / images.shape[-3])
    )
    grey = np.einsum("...chw,c->...hw", images, weights)
    edges = [sobel(image) for image in grey.reshape(-1, *grey.shape[-2:])]
    return np.stack(edges).reshape(grey.shape)


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
        nearest = kmeans2(pixels, centres, iter=20, minit="matrix")[1]
        front = int((nearest[inside] == 1).mean() > (nearest[inside] == 0).mean())
        masks.append((nearest == front).reshape(height, width).astype(np.float64))
    return np.stack(masks)
