"""What a network is told beside its input, as one vector: the noise level and the class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_labels, check_log_level, check_num_classes

# level = log(tau)/4 lies in [-1.73, 1.73] for tau in [1e-3, 1e3]. The slowest wave is monotonic over twice
# that range, so no two levels look alike; the fastest turns by 1.6 rad where tau changes by a fifth.
LOWEST_FREQUENCY = 0.5
HIGHEST_FREQUENCY = 32.0


class LevelFeatures(nn.Module):
    r"""Sinusoidal features of the noise level (Vaswani et al. 2017, section 3.5; EDM's `c_noise`).

    features_j(level) = sqrt(2) [cos(w_j level), sin(w_j level)],  w_j geometric from 0.5 to 32 rad,

    with unit mean square. The frequencies are fixed, so nothing here is random or learned.

    Args:
        dim: number of features, even and at least 4.

    Input: level [B], floating, log(tau)/4. Output: [B, dim], same dtype.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim: got {dim}, expected an even number of features, at least 4")
        ratio = torch.linspace(0.0, 1.0, dim // 2, dtype=torch.float64, device="cpu")
        frequencies = LOWEST_FREQUENCY * (HIGHEST_FREQUENCY / LOWEST_FREQUENCY) ** ratio
        self.register_buffer("frequencies", torch.tensor(frequencies.float().tolist()), persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies.to(level.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1) * 2**0.5


class ConditionEmbedding(nn.Module):
    r"""Embedding of the level, the class, or both:

    e = SiLU( W_2 SiLU(W_1 features(level) + b_1) + b_2 + table[y] ).

    The table has num_classes + 1 rows. Row num_classes is "no class": used where y is None, and for the rows
    whose label a caller withholds by passing y = num_classes (classifier-free guidance, Ho & Salimans 2022).

    Args:
        dim: length of e.
        level: whether e depends on the level.
        num_classes: number of classes, or None for no labels.

    Raises:
        ValueError: neither a level nor classes to embed; or, in `forward`, a wrong level or label.
    """

    def __init__(self, dim: int, level: bool, num_classes: int | None) -> None:
        super().__init__()
        self.num_classes = check_num_classes(num_classes)
        if not level and num_classes is None:
            raise ValueError("level, num_classes: got neither, expected a level or classes to embed")
        self.dim = dim
        self.features = LevelFeatures(64) if level else None
        self.hidden = nn.Linear(64, dim) if level else None
        self.project = nn.Linear(dim, dim) if level else None
        self.table = nn.Embedding(num_classes + 1, dim) if num_classes is not None else None

    def forward(self, level: Tensor | None, y: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Embed. level [batch] floating or ignored, y [batch] int64 or None. Returns [batch, dim]."""
        check_labels(y, self.num_classes, batch)
        parts = []
        if self.features is not None and self.hidden is not None and self.project is not None:
            features = self.features(check_log_level(level, batch).to(self.hidden.weight.dtype))
            parts.append(self.project(F.silu(self.hidden(features))))
        if self.table is not None and self.num_classes is not None:
            labels = y if y is not None else torch.full((batch,), self.num_classes, device=device)
            parts.append(self.table(labels))
        return F.silu(parts[0] if len(parts) == 1 else parts[0] + parts[1])


def build_embedding(dim: int, conditioning: str, num_classes: int | None) -> ConditionEmbedding | None:
    """The embedding that a network with this `conditioning` needs; None where it is told nothing."""
    if conditioning != "log" and num_classes is None:
        return None
    return ConditionEmbedding(dim, level=conditioning == "log", num_classes=num_classes)


def embed_condition(
    embedding: ConditionEmbedding | None, x: Tensor, level: Tensor | None, y: Tensor | None
) -> Tensor | None:
    """[B, dim] for the rows of x; None for a network that is told nothing (a label is then an error)."""
    if embedding is None:
        check_labels(y, None, x.shape[0])
        return None
    return embedding(level, y, x.shape[0], x.device)


class FiLM(nn.Module):
    """Feature-wise scale and shift (Perez et al. 2018) from an embedding: s, t with out = h (1 + s) + t.

    Zero-initialised, so that a new network starts as its unconditional self.
    Input: [B, dim]. Output: (1 + s, t), each [B, channels].
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(embedding).chunk(2, dim=1)
        return 1 + scale, shift
