"""The tests that an explanation is put to. Each gives a number for every case and seed, and what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from diffusers_xai.audit.case import Case


FRACTIONS = (0.05, 0.15, 0.35, 0.65)  # of the pixels that are deleted or inserted
PATCHES, DRAWS = 24, 2
RANDOM_MAPS = 3


def as_maps(explanation: torch.Tensor) -> np.ndarray:
    """An explanation as maps `(batch, height, width)`, float64: of an attribution the absolute values, summed."""
    values = explanation.detach().cpu().double()
    return (values.abs().sum(1) if values.ndim == 4 else values).numpy()


def full_size(explanation: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """An explanation as large as the samples: a smaller map is enlarged bilinearly."""
    if explanation.ndim == 4 or tuple(explanation.shape[1:]) == tuple(size):
        return explanation
    return F.interpolate(explanation[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def as_coarse(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps `(batch, height, width)` averaged to another map's size: what a map of that size could show of them."""
    return F.adaptive_avg_pool2d(maps.detach().cpu().double(), size)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's |ρ| of maps `(batch, height, width)`, over the pixels.

    It is 1 where both are the same, be they constant: such a map stays what it is for another model. Else it is 0
    where one is constant or not finite.
    """
    pairs = []
    for a, b in zip(first, second, strict=True):
        if np.array_equal(a, b):
            pairs.append(1.0)
            continue
        ranks = [rankdata(np.nan_to_num(values.ravel())) for values in (a, b)]
        finite = np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(ranks[0]) > 0 and np.ptp(ranks[1]) > 0
        pairs.append(abs(np.corrcoef(*ranks)[0, 1]) if finite else 0.0)
    return np.array(pairs)


def misfit(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """What the best multiple of `predicted` leaves of `true (batch, value)`: 0 is a perfect fit, 1 says nothing."""
    both = (predicted * true).sum(1)
    norms = (predicted**2).sum(1) * (true**2).sum(1)
    return (1 - np.divide(both**2, norms, out=np.zeros_like(norms), where=norms > 0)).clip(0)


def smooth_random(explanation: torch.Tensor, seed: int) -> torch.Tensor:
    """Random explanations of the same smoothness: the same power spectrum, and the values of the given one by rank."""
    generator = np.random.default_rng(seed)
    values = explanation.detach().cpu().double().numpy()
    flat = values.reshape(len(values), -1, *values.shape[-2:])
    noise = np.fft.fft2(generator.normal(size=flat.shape))
    spectrum = np.fft.fft2(flat - flat.mean((-2, -1), keepdims=True))
    field_ = np.fft.ifft2(np.abs(spectrum) * noise / np.abs(noise)).real
    order = field_.reshape(*flat.shape[:2], -1).argsort(-1).argsort(-1)
    ranked = np.take_along_axis(np.sort(flat.reshape(*flat.shape[:2], -1), -1), order, -1)
    return torch.from_numpy(ranked.reshape(values.shape)).float()


@dataclass
class Bench:
    """A model's reactions to changes of x_t, measured once and asked by all explanations.

    Args:
        case ([`Case`]): Model and samples.
        seed (`int`): Of the changes.
    """

    case: Case
    seed: int = 0
    _changes: torch.Tensor = field(init=False)
    _places: np.ndarray = field(init=False)
    _answers: np.ndarray = field(init=False)
    _sizes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._base = self._predict(self.case.sample)
        self._measure_patches()
        generator = torch.Generator().manual_seed(self.seed + 1)
        noise = torch.randn(self.case.sample.shape, generator=generator).to(self.case.sample)
        mean = self.case.images.mean(0)
        self._other = self.case.alpha**0.5 * mean + (1 - self.case.alpha) ** 0.5 * noise
        self._far = self._away(self._other[None])[0]

    def infidelity(self, explanation: torch.Tensor) -> np.ndarray:
        """How badly an explanation predicts what noise in random patches changes, `(batch,)`: 0 is perfect.

        An attribution predicts the change of the answer, f(x) − f(x − I) ≈ I·Φ, and what is left is taken relative to
        the change itself. A map predicts the size of the change of x̂_0 within the mask, up to a factor.

        Source: Yeh et al. 2019, eq. 2, relative.
        """
        if explanation.ndim == 4:
            told = torch.einsum("pbchw,bchw->bp", self._changes, explanation.to(self._changes)).double().cpu().numpy()
            return ((told - self._answers) ** 2).sum(1) / (self._answers**2).sum(1)
        squares = as_maps(explanation) ** 2
        return misfit(np.sqrt(np.einsum("phw,bhw->bp", self._places, squares)), self._sizes)

    def deletion(self, maps: np.ndarray) -> np.ndarray:
        """How far x̂_0 within the mask goes when the places of the highest ranks are replaced, of all, `(batch,)`.

        Replaced by the average image with fresh noise: 1 if what counts is at the top, the mean share of it at random.
        """
        return self._curve(maps, insert=False).mean(0)

    def insertion(self, maps: np.ndarray) -> np.ndarray:
        """How much of x̂_0 within the mask comes back when only the highest ranked places are kept, `(batch,)`."""
        return 1 - self._curve(maps, insert=True).mean(0)

    def _curve(self, maps: np.ndarray, insert: bool) -> np.ndarray:
        ranks = (-maps.reshape(len(maps), -1)).argsort(-1, kind="stable").argsort(-1).reshape(maps.shape)
        top = torch.stack([torch.from_numpy(ranks < share * ranks[0].size) for share in FRACTIONS])[:, :, None]
        top = top.to(self.case.sample.device)
        kept, replaced = (self._other, self.case.sample) if insert else (self.case.sample, self._other)
        return self._away(torch.where(top, replaced, kept)) / self._far

    def _away(self, samples: torch.Tensor) -> np.ndarray:
        """Root mean square change of x̂_0 within the mask, for `samples (n, batch, channel, height, width)`."""
        changed = self._predict(samples.flatten(0, 1)).unflatten(0, samples.shape[:2]) - self._base
        mask = torch.as_tensor(self.case.mask, device=changed.device)
        return changed[..., mask].double().square().mean((-2, -1)).sqrt().cpu().numpy()

    @torch.no_grad()
    def _predict(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.case.predict_x0(part) for part in samples.split(64)])

    def _measure_patches(self) -> None:
        sample, mask = self.case.sample, self.case.mask
        generator = np.random.default_rng(self.seed)
        height, width = mask.shape
        side = max(2, min(height, width) // 5)
        self._places = np.zeros((PATCHES, height, width))
        for place in self._places:
            top, left = generator.integers(0, height - side + 1), generator.integers(0, width - side + 1)
            place[top : top + side, left : left + side] = 1
        noise = torch.from_numpy(generator.normal(size=(PATCHES, DRAWS, 1, *sample.shape[1:]))).to(sample)
        size = 0.2 * sample.std()
        changes = size * noise * torch.from_numpy(self._places).to(sample)[:, None, None, None]
        changes = changes.expand(-1, -1, len(sample), -1, -1, -1)
        moved = self._base - self._predict((sample - changes).flatten(0, 2)).unflatten(0, changes.shape[:3])
        inside = moved * torch.as_tensor(mask, device=moved.device)
        self._changes = changes.flatten(0, 1)
        self._answers = inside.sum((3, 4, 5)).flatten(0, 1).T.double().cpu().numpy()
        self._sizes = inside.double().square().sum((3, 4, 5)).mean(1).sqrt().T.cpu().numpy()


def label_misfit(case: Case, explanation: torch.Tensor) -> np.ndarray:
    """How badly a label's explanation predicts where x̂_0 changes when the label does, `(batch,)`: 0 is perfect."""
    with torch.no_grad():
        change = (case.predict_x0(label=case.other_label) - case.predict_x0()).sum(1)
    values = as_maps(explanation)
    return misfit(values.reshape(len(values), -1), as_maps(change).reshape(len(values), -1))


def relative_change(first: torch.Tensor, others: Sequence[torch.Tensor]) -> np.ndarray:
    """The largest change of an explanation relative to itself, `(batch,)`.

    Source: Yeh et al. 2019, eq. 3 (sensitivity), by sampling.
    """
    size = first.flatten(1).double().norm(dim=1)
    changes = torch.stack([(other - first).flatten(1).double().norm(dim=1) for other in others]).amax(0)
    return (changes / size.clamp(min=1e-30)).cpu().numpy()
