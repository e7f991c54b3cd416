"""InstanceNorm++, the norm of the NCSN networks, in its three forms: plain, by level index, by embedding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .embedding import FiLM

EPS = 1e-5


class Condition(NamedTuple):
    """What a RefineNet's norms are told: `level_index` int64 [B], `embedding` [B, E]; None where unused."""

    level_index: Tensor | None = None
    embedding: Tensor | None = None


class InstanceNormPlus(nn.Module):
    r"""InstanceNorm++ (Song & Ermon 2019, appendix A):

    out_c = gamma_c [ (x_c - mu_c) / sqrt(var_c + eps) + alpha_c (mu_c - m) / sqrt(v + eps) ] + beta_c,

    with mu_c, var_c the (biased) moments of channel c over its pixels, m and v the mean and unbiased variance
    of mu over the channels, eps = 1e-5. The second term returns the channel means that instance normalisation
    throws away. Every statistic belongs to one sample, so a sample's output never depends on its batch.

    gamma, alpha ~ N(1, 0.02), beta = 0; one vector each, or one row per level (the *conditional* norm of
    NCSN). With `embedding_dim`, gamma and beta are modulated: gamma (1 + s), beta + t, (s, t) linear in an
    embedding.

    Args:
        channels: C.
        num_levels: rows of the conditional table; 0 for one unconditional row.
        embedding_dim: length of `Condition.embedding`; 0 for no modulation.

    Input [B, C, H, W]; output the same shape. A single pixel or a single channel has variance 0, not NaN.
    """

    def __init__(self, channels: int, num_levels: int = 0, embedding_dim: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.num_levels = num_levels
        rows = (num_levels,) if num_levels else ()
        self.gamma = nn.Parameter(torch.empty(*rows, channels).normal_(1.0, 0.02))
        self.alpha = nn.Parameter(torch.empty(*rows, channels).normal_(1.0, 0.02))
        self.beta = nn.Parameter(torch.zeros(*rows, channels))
        self.film = FiLM(embedding_dim, channels) if embedding_dim else None

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        gamma: Tensor = self.gamma
        alpha: Tensor = self.alpha
        beta: Tensor = self.beta
        if self.num_levels:
            rows = condition.level_index
            gamma, alpha, beta = gamma[rows], alpha[rows], beta[rows]
        if self.film is not None:
            scale, shift = self.film(condition.embedding)
            gamma, beta = gamma * scale, beta + shift
        # With one channel a group, group norm is instance norm; unlike torch's instance norm it keeps
        # channels_last and takes a single pixel.
        normalised = torch.group_norm(x, self.channels, eps=EPS)
        offset = beta + gamma * alpha * self._standardised_means(x)
        if gamma.ndim == 1:
            gamma = gamma[None]
        return torch.addcmul(
            offset[..., None, None].to(normalised.dtype),
            normalised,
            gamma[..., None, None].to(normalised.dtype),
        )

    def _standardised_means(self, x: Tensor) -> Tensor:
        # Half-precision means would lose what this term is there to keep.
        means = x.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        variance = means.var(dim=1, keepdim=True, correction=1 if self.channels > 1 else 0)
        return (means - means.mean(dim=1, keepdim=True)) / torch.sqrt(variance + EPS)

    def extra_repr(self) -> str:
        return f"{self.channels}, num_levels={self.num_levels}"


class NoNorm(nn.Module):
    """No normalisation, with the signature of a norm: NCSNv2's RefineNet blocks have none."""

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        return x
