"""The closed forms of METHOD's section on known truth, written once more in plain numpy and scipy, for one sample."""

import itertools

import numpy as np
from scipy.special import softmax
from scipy.stats import multivariate_normal


def gaussian(mean, covariance, x, alpha):
    """E[x_0|x_t] and Cov[x_0|x_t] under N(mean, covariance), by solving the joint normal equations."""
    marginal = alpha * covariance + (1 - alpha) * np.eye(len(mean))
    gain = np.sqrt(alpha) * np.linalg.solve(marginal, covariance).T
    return mean + gain @ (x - np.sqrt(alpha) * mean), covariance - np.sqrt(alpha) * gain @ covariance


def mixture(means, covariances, shares, x, alpha):
    """E[x_0|x_t], Cov[x_0|x_t] and P(component|x_t)."""
    log = [
        np.log(share) + multivariate_normal.logpdf(x, np.sqrt(alpha) * m, alpha * c + (1 - alpha) * np.eye(len(m)))
        for m, c, share in zip(means, covariances, shares, strict=True)
    ]
    weights = softmax(log)
    parts = [gaussian(m, c, x, alpha) for m, c in zip(means, covariances, strict=True)]
    mean = sum(w * part[0] for w, part in zip(weights, parts, strict=True))
    second = sum(w * (c + np.outer(m, m)) for w, (m, c) in zip(weights, parts, strict=True))
    return mean, second - np.outer(mean, mean), weights


def empirical(images, x, alpha):
    """E[x_0|x_t], Cov[x_0|x_t] and the share of each image."""
    weights = softmax([-np.sum((x - np.sqrt(alpha) * image) ** 2) / (2 * (1 - alpha)) for image in images])
    mean = weights @ images
    return mean, (images - mean).T * weights @ (images - mean), weights


def texture_covariance(images):
    """The covariance over all images and all shifts of each, wrapped around, of `images (image, channel, …)`."""
    away = images - images.mean(0)
    axes = tuple(range(2, images.ndim))
    shifts = itertools.product(*(range(size) for size in images.shape[2:]))
    stacked = np.concatenate([np.roll(away, shift, axis=axes).reshape(len(away), -1) for shift in shifts])
    return stacked.T @ stacked / len(stacked)
