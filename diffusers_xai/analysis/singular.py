"""Leading singular triplets of a Jacobian that is never formed, and how many directions count in it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Jacobian:
    """The derivative of a function at points, as a linear map that is applied from either side.

    Args:
        function (`Callable`): Rows `(row, …)` -> rows `(row, …)`, each output row depending on its input row alone.
        points (`torch.Tensor` of shape `(batch, …)`): Where it is differentiated.
        inputs (`torch.Tensor`, *optional*): Weights that broadcast against a point, such as a mask of the pixels that
            may be moved, and
        outputs (`torch.Tensor`, *optional*): against an output: of the pixels that are looked at.
        max_rows (`int`): Rows in one call of the function.

    Attributes:
        products (`int`): Jacobian-vector and vector-Jacobian products done so far, for each point.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        points: torch.Tensor,
        *,
        inputs: torch.Tensor | None = None,
        outputs: torch.Tensor | None = None,
        max_rows: int = 64,
    ):
        self._function, self._points, self._inputs, self._outputs = function, points, inputs, outputs
        self._together = max(1, max_rows // len(points))
        self._graph: _Graph | None = None
        self.products = 0

    @property
    def shape(self) -> torch.Size:
        """The shape of one point."""
        return self._points.shape[1:]

    @property
    def batch(self) -> int:
        """Number of points."""
        return len(self._points)

    @property
    def output_shape(self) -> torch.Size:
        """The shape of one output."""
        return self._graph_of(1 if self._graph is None else len(self._graph.leaf) // self.batch).output.shape[1:]

    def push(self, directions: torch.Tensor) -> torch.Tensor:
        """J v for directions `(batch, direction, dim)` -> `(batch, direction, dim of the output)`, float64."""

        # By differentiating Jᵀu, which is linear in u: attention's kernels and others have no forward derivative.
        def product(graph: _Graph, rows: torch.Tensor) -> torch.Tensor:
            weighted = _weighted(rows.view_as(graph.leaf), self._inputs)
            (pushed,) = torch.autograd.grad(graph.pulled, graph.cotangent, weighted, retain_graph=True)
            return _weighted(pushed, self._outputs)

        return self._products(product, directions)

    def pull(self, directions: torch.Tensor) -> torch.Tensor:
        """Jᵀ u for directions `(batch, direction, dim of the output)` -> `(batch, direction, dim)`, float64."""

        def product(graph: _Graph, rows: torch.Tensor) -> torch.Tensor:
            weighted = _weighted(rows.view_as(graph.output), self._outputs)
            (pulled,) = torch.autograd.grad(graph.output, graph.leaf, weighted, retain_graph=True)
            return _weighted(pulled, self._inputs)

        return self._products(product, directions)

    def _products(
        self, product: Callable[["_Graph", torch.Tensor], torch.Tensor], directions: torch.Tensor
    ) -> torch.Tensor:
        self.products += directions.shape[1]
        found = []
        for part in directions.to(self._points).split(self._together, dim=1):
            rows = product(self._graph_of(part.shape[1]), part.flatten(0, 1))
            found.append(rows.unflatten(0, part.shape[:2]).flatten(2).double())
        return torch.cat(found, dim=1)

    def _graph_of(self, copies: int) -> "_Graph":
        """The graph of the function with every point `copies` times; the last one is kept."""
        if self._graph is None or len(self._graph.leaf) != copies * self.batch:
            self._graph = None  # before the next one takes its memory
            self._graph = _Graph(self._function, self._points.repeat_interleave(copies, dim=0))
        return self._graph


class _Graph:
    """The graph of a function at rows, and that of its transposed derivative."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor):
        # The fused kernels of attention cannot be differentiated twice.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self.leaf = rows.detach().clone().requires_grad_()
            self.output = function(self.leaf)
            self.cotangent = torch.zeros_like(self.output, requires_grad=True)
            (self.pulled,) = torch.autograd.grad(self.output, self.leaf, self.cotangent, create_graph=True)


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets: J ≈ Σ_k left_k · value_k · right_kᵀ.

    Attributes:
        values (`torch.Tensor` of shape `(batch, count)`): Singular values, falling, float64.
        right (`torch.Tensor` of shape `(batch, count, dim)`): Directions of the input, of norm 1.
        left (`torch.Tensor` of shape `(batch, count, dim of the output)`): What they do to the output, of norm 1.
        residuals (`torch.Tensor` of shape `(batch, count)`): |Jᵀ left − value · right| as a share of the largest
            value. A singular value is off by about the square of that, relative to the gap to the next.
    """

    values: torch.Tensor
    right: torch.Tensor
    left: torch.Tensor
    residuals: torch.Tensor


def leading_triplets(
    jacobian: Jacobian, count: int, *, iterations: int = 12, tolerance: float = 1e-3, seed: int = 0
) -> Triplets:
    """The largest singular values and their directions, by block power iteration that keeps all powers.

    A block of random directions is multiplied by J and Jᵀ in turn, and the triplets are the best ones within the space
    of all blocks so far (Rayleigh–Ritz); that converges far faster than the last block alone does. An iteration takes
    `count` products from either side.

    Source: Musco and Musco 2015, *Randomized Block Krylov Methods*; Golub, Luk and Overton 1981.

    Args:
        jacobian ([`Jacobian`]): The linear map.
        count (`int`): How many triplets.
        iterations (`int`): How many iterations at most, and
        tolerance (`float`): the residual from which on fewer are enough.
        seed (`int`): Of the first block.

    Raises:
        ValueError: If there are fewer than `count` directions.
    """
    batch, dim = jacobian.batch, jacobian.shape.numel()
    if not 1 <= count <= dim:
        raise ValueError(f"Expected a count in 1..{dim}, the number of values of a point, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)
    basis = block[:, :0]
    images: torch.Tensor | None = None
    for _ in range(iterations):
        # Householder's QR: at right angles to the basis even where nothing new is left in the block.
        stacked = torch.linalg.qr(torch.cat([basis, block], dim=1).mT).Q.mT
        new = stacked[:, basis.shape[1] :]
        basis = torch.cat([basis, new], dim=1)
        pushed = jacobian.push(new).to(basis)
        images = pushed if images is None else torch.cat([images, pushed], dim=1)
        left, values, mixing = torch.linalg.svd(images.mT, full_matrices=False)
        left, values = left.mT[:, :count], values[:, :count]
        right = mixing[:, :count] @ basis
        residual = jacobian.pull(left).to(basis) - values[..., None] * right
        scale = values[:, :1].clamp(min=torch.finfo(torch.float64).tiny)
        residuals = residual.norm(dim=-1) / scale
        block = residual[:, : dim - basis.shape[1]]
        if residuals.max() <= tolerance or block.shape[1] == 0:
            break
    return Triplets(values, right, left, residuals)


def local_dimension(jacobian: Jacobian, triplets: Triplets, *, probes: int = 8, seed: int = 0) -> torch.Tensor:
    """How many directions count: (Σσ²)² / Σσ⁴ over all singular values, `(batch,)`.

    It is d where d singular values are equal and the others zero, and it does not depend on their scale. The leading
    ones are taken as they are, the sums over the others are estimated by random signs, a product from either side for
    each.

    Source: Hutchinson 1990; Meyer et al. 2021, *Hutch++*, for the deflation.

    Args:
        jacobian ([`Jacobian`]): The linear map.
        triplets ([`Triplets`]): Its leading ones.
        probes (`int`): Random signs.
        seed (`int`): Of the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (jacobian.batch, probes, jacobian.shape.numel())
    signs = 2.0 * torch.randint(2, shape, generator=generator).double() - 1

    def beside(rows: torch.Tensor) -> torch.Tensor:
        return rows - rows @ triplets.right.mT @ triplets.right

    pushed = jacobian.push(beside(signs))
    pulled = beside(jacobian.pull(pushed).to(signs))
    squares = triplets.values.square().sum(1) + pushed.to(signs).square().sum(2).mean(1)
    fourths = triplets.values.pow(4).sum(1) + pulled.square().sum(2).mean(1)
    return squares.square() / fourths.clamp(min=torch.finfo(torch.float64).tiny)


def most_products(count: int, iterations: int, probes: int) -> int:
    """Products from either side together that [`leading_triplets`] and [`local_dimension`] take at most."""
    return 2 * (count * iterations + probes)


def _weighted(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return values if weights is None else values * weights.to(values)
