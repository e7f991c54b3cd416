"""Linear measurements ``y = A x``: what inverse problems are made of. Each knows its adjoint exactly."""

from __future__ import annotations

import abc
import copy
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


class Operator(nn.Module, abc.ABC):
    """A linear map of one data point.

    Attributes:
        input_shape: of one data point. shape: of one measurement.
        known: None where A is the same for all data points; else bool ``[N, *shape]``, what is measured of each.

    Matrices and masks are buffers: ``.to(device)`` moves them; arithmetic is in the argument's dtype.
    """

    known: Tensor | None

    def __init__(self, input_shape: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape, self.shape = tuple(input_shape), tuple(shape)
        self.register_buffer("known", None)

    @property
    def size(self) -> int:
        """m, the numbers in one measurement."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``A x`` of ``[B, *input_shape]``: ``[B, *shape]``, x's dtype."""

    @abc.abstractmethod
    def adjoint(self, v: Tensor) -> Tensor:
        """``A^T v`` of ``[B, *shape]``: ``[B, *input_shape]``; ``<A x, v> = <x, A^T v>``."""

    def of_rows(self, row: int, rows: int) -> Operator:
        """The operator of data points ``row .. row + rows``."""
        return self

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        if value.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{name}: got shape {list(value.shape)}, expected [B, {wanted}]")
        return value


class Mask(Operator):
    """Inpainting: the coordinates where ``known`` is True, in row-major order; measurements ``[m]``.

    Args:
        known: bool, shape of a data point, or ``[H, W]`` for all channels of images. Or ``[N, *input_shape]``, another
            mask for each of N data points, as of a table with holes: measurements have the data's shape then, 0 where
            nothing is known. Batches stacked on each other share the N masks.
        input_shape: of a data point; must be given for the two latter.

    ``A A^T`` is the identity, of N masks on what is known of each. Raises ValueError for another dtype or shape, or
    where nothing is known.
    """

    index: Tensor | None

    def __init__(self, known: Tensor, input_shape: Sequence[int] | None = None) -> None:
        if known.dtype != torch.bool or not bool(known.any()):
            raise ValueError(f"known: got {known.dtype}, {int(known.sum())} of them set, expected bool with a True")
        shape = tuple(known.shape) if input_shape is None else tuple(input_shape)
        if known.ndim == len(shape) + 1 and known.shape[1:] == shape:
            super().__init__(shape, shape)
            self.known, self.index = known, None
            return
        try:
            whole = known.expand(shape)
        except RuntimeError:
            wanted = f"one that fits {list(shape)}, or [N, {', '.join(map(str, shape))}]"
            raise ValueError(f"known: got shape {list(known.shape)}, expected {wanted}") from None
        index = whole.flatten().nonzero().squeeze(1)
        super().__init__(shape, (len(index),))
        self.register_buffer("index", index)

    def of_rows(self, row: int, rows: int) -> Operator:
        if self.known is None:
            return self
        other = copy.copy(self)
        other._buffers = {"known": self.known[row : row + rows]}
        return other

    def forward(self, x: Tensor) -> Tensor:
        self._check("x", x, self.input_shape)
        return self._where_known("x", x) if self.index is None else x.flatten(1)[:, self.index]

    def adjoint(self, v: Tensor) -> Tensor:
        self._check("v", v, self.shape)
        if self.index is None:
            return self._where_known("v", v)
        out = v.new_zeros(len(v), math.prod(self.input_shape))
        return out.index_copy(1, self.index, v).unflatten(1, self.input_shape)

    def _where_known(self, name: str, value: Tensor) -> Tensor:
        assert self.known is not None
        if len(value) % len(self.known):
            raise ValueError(f"{name}: got {len(value)} rows, expected {len(self.known)}, one a mask")
        # Not a product: what is not known may be NaN.
        return torch.where(self.known, value.unflatten(0, (-1, len(self.known))), 0.0).flatten(0, 1)


class Separable(Operator):
    """``P x Q^T`` on each channel: rows by ``P`` ``[h, H]``, columns by ``Q`` ``[w, W]``, images ``[C, H, W]``."""

    rows: Tensor
    columns: Tensor

    def __init__(self, channels: int, rows: Tensor, columns: Tensor) -> None:
        super().__init__((channels, rows.shape[1], columns.shape[1]), (channels, rows.shape[0], columns.shape[0]))
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.to(x.dtype) @ self._check("x", x, self.input_shape) @ self.columns.to(x.dtype).mT

    def adjoint(self, v: Tensor) -> Tensor:
        return self.rows.to(v.dtype).mT @ self._check("v", v, self.shape) @ self.columns.to(v.dtype)


class Blur(Separable):
    """Gaussian blur of images, cut at four standard deviations (:func:`scipy.ndimage.gaussian_filter1d`).

    Args:
        input_shape: ``(C, H, W)``.
        width: standard deviation, pixels, > 0.
        boundary: ``"circular"`` (opposite edges meet) or ``"reflect"`` (mirrored at the edge, edge pixel repeated).
    """

    def __init__(
        self, input_shape: Sequence[int], width: float, boundary: Literal["circular", "reflect"] = "reflect"
    ) -> None:
        channels, height, across = _image(input_shape)
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"width: got {width}, expected a standard deviation > 0, in pixels")
        if boundary not in ("circular", "reflect"):
            raise ValueError(f"boundary: got {boundary!r}, expected 'circular' or 'reflect'")
        from scipy.ndimage import gaussian_filter1d  # slow to import: only when used

        mode = "wrap" if boundary == "circular" else "reflect"
        blur = functools.partial(gaussian_filter1d, sigma=width, axis=0, mode=mode)
        matrices = [torch.from_numpy(blur(np.eye(n))) for n in (height, across)]
        super().__init__(channels, *matrices)


class Downsample(Separable):
    """Mean of each block of ``factor`` x ``factor`` pixels of images ``(C, H, W)``.

    Raises ValueError unless the factor divides H and W.
    """

    def __init__(self, input_shape: Sequence[int], factor: int) -> None:
        channels, height, width = _image(input_shape)
        if factor < 1 or height % factor or width % factor:
            raise ValueError(f"factor: got {factor}, expected a divisor of {height} and {width}")
        super().__init__(channels, *(_block_means(n, factor) for n in (height, width)))


class Linear(Operator):
    """Any matrix ``[m, d]`` on data points of ``input_shape`` (by default ``(d,)``), flattened row-major."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, input_shape: Sequence[int] | None = None) -> None:
        if matrix.ndim != 2 or not matrix.is_floating_point() or not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"matrix: got {matrix.dtype} of shape {list(matrix.shape)}, expected finite floats [m, d]")
        shape = (matrix.shape[1],) if input_shape is None else tuple(input_shape)
        if math.prod(shape) != matrix.shape[1]:
            raise ValueError(f"matrix: got {matrix.shape[1]} columns, expected {math.prod(shape)} for {list(shape)}")
        super().__init__(shape, (matrix.shape[0],))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return self._check("x", x, self.input_shape).flatten(1) @ self.matrix.to(x.dtype).mT

    def adjoint(self, v: Tensor) -> Tensor:
        return (self._check("v", v, self.shape) @ self.matrix.to(v.dtype)).unflatten(1, self.input_shape)


def _block_means(n: int, factor: int) -> Tensor:
    return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"input_shape: got {tuple(shape)}, expected images (C, H, W)")
    channels, height, width = shape
    return channels, height, width
