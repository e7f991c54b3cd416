"""A residual multilayer perceptron for vectors, and for any data small enough to be treated as such."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_choice, check_dropout, check_floating, check_num_classes, check_positive
from .embedding import FiLM, build_embedding, embed_condition


class ResidualLayer(nn.Module):
    """h + W_2 dropout(SiLU(W_1 FiLM(LayerNorm(h), e))), W_2 zero-initialised.

    FiLM is u (1 + s) + t with s, t linear in the embedding e [B, dim] (absent with dim 0). Input and output
    [B, hidden].
    """

    def __init__(self, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=dim == 0)
        self.film = FiLM(dim, hidden) if dim else None
        self.linear1 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        u = self.norm(h)
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)
            u = torch.addcmul(shift.to(u.dtype), u, scale.to(u.dtype))
        return h + self.linear2(self.dropout(F.silu(self.linear1(u))))


class MLP(nn.Module):
    r"""h_0 = W x + b; h_{i+1} = ResidualLayer(h_i, e); out = V SiLU(LayerNorm(h_blocks)) with V
    zero-initialised (returns 0 when new).

    e embeds the level and the class. Layer norm acts within a sample, so a sample's output never depends on
    its batch.

    Args:
        shape: of one sample, e.g. (2,) or (1, 8, 8); flattened inside and restored.
        hidden: width of the hidden layers.
        blocks: number of residual layers.
        num_classes: number of labels, or None.
        dropout: probability, in the residual layers.
        conditioning: "log" (level = log(tau)/4, [B]) or "none".
        inputs: number of tensors of the data's shape in x, one after the other along its axis 1.

    Raises:
        ValueError: a wrong option, or in `forward` a wrong shape, dtype, level or label.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 512,
        blocks: int = 3,
        num_classes: int | None = None,
        dropout: float = 0.0,
        conditioning: str = "log",
        inputs: int = 1,
    ) -> None:
        super().__init__()
        self.shape = tuple(check_positive("shape", int(n)) for n in shape)
        if not self.shape:
            raise ValueError("shape: got (), expected the shape of one sample, such as (2,)")
        self.inputs = check_positive("inputs", inputs)
        check_positive("hidden", hidden)
        check_positive("blocks", blocks)
        check_dropout(dropout)
        self.conditioning = check_choice("conditioning", conditioning, ("log", "none"))
        self.num_classes = check_num_classes(num_classes)
        size = math.prod(self.shape)
        self.embedding = build_embedding(min(hidden, 256), conditioning, num_classes)
        dim = self.embedding.dim if self.embedding is not None else 0
        self.input = nn.Linear(inputs * size, hidden)
        self.layers = nn.ModuleList(ResidualLayer(hidden, dim, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, level: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x [B, inputs * shape[0], *shape[1:]] floating, level floating [B] (ignored with conditioning "none"),
        y int64 [B] or None.

        Returns [B, *shape].
        """
        expected = (self.inputs * self.shape[0], *self.shape[1:])
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {', '.join(map(str, expected))}]")
        check_floating("x", x)
        embedding = embed_condition(self.embedding, x, level, y)
        h = self.input(x.flatten(1))
        for layer in self.layers:
            h = layer(h, embedding)
        return self.output(F.silu(self.norm(h))).unflatten(1, self.shape)
