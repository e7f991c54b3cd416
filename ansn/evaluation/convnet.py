"""Features of a small convolutional classifier, for images of 16 pixels a side and more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ansn.data import Dataset, iterate
from ansn.evaluation.features import Array, check_labels, classifier_line

_BATCH = 128


class _Network(nn.Module):
    """Two convolutions with pooling, a hidden layer whose activations are the features, and the classes."""

    def __init__(self, shape: tuple[int, int, int], features: int, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.first = nn.Conv2d(channels, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), features)
        self.classes = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x - 0.5)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x))


class ConvFeatures:
    """Activations of the hidden layer of a convolutional network trained on a data set's own labels, Adam at 1e-3.

    A minute or two for 60,000 images of 28 x 28 on two CPU cores; :mod:`ansn.evaluation.spaces` keeps it on disk.

    Args:
        train: labelled images, at least 4 x 4. epochs: over them. width: p. seed: of weights and batches.
        state: weights of an earlier one, to take in place of training.

    Attributes:
        name: such as ``"mnist-conv-64"``. n: training rows. accuracy: None until :meth:`score` is asked for it.

    Raises ValueError for data that is not labelled images.
    """

    def __init__(
        self,
        train: Dataset,
        *,
        epochs: int = 2,
        width: int = 64,
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        if train.labels is None or train.kind != "image" or min(train.shape[1:]) < 4:
            raise ValueError(f"train: got {train.kind} {list(train.shape)}, expected labelled images of 4 x 4 or more")
        check_labels(train.labels, train.labels)
        channels, height, self._side = train.shape
        self._shape = (channels, height, self._side)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _Network(self._shape, width, train.num_classes)
        if state is not None:
            self.network.load_state_dict(dict(state))
        else:
            self._fit(train, epochs, seed)
        # Channels last: a third of the time.
        self.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name = f"{train.name}-conv-{width}"
        self.n = len(train)
        self.accuracy: float | None = None

    def _fit(self, train: Dataset, epochs: int, seed: int) -> None:
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        steps = max(1, epochs * len(train) // _BATCH)
        for _, x, y in iterate(train, batch_size=min(_BATCH, len(train)), seed=seed, stop_step=steps):
            loss = F.cross_entropy(self.network(x.cpu()), y.cpu())  # type: ignore[union-attr]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, p]`` of ``x`` ``[n, *shape]``. Raises ValueError for another shape or values not finite."""
        return np.concatenate([self.network.features(rows).double().numpy() for rows in self._batches(x)])

    def predict(self, x: Tensor) -> NDArray[np.int64]:
        """The likeliest class of each row, ``[n]``."""
        return self.decide(self(x))

    def decide(self, features: Array) -> NDArray[np.int64]:
        """The likeliest class of rows whose features are known, ``[n]``."""
        return self.network.classes(torch.from_numpy(features).float()).argmax(1).numpy()

    def score(self, x: Tensor, labels: Tensor) -> float:
        """Share of right labels; kept as ``accuracy``."""
        self.accuracy = float((self.predict(x) == labels.cpu().numpy()).mean())
        return self.accuracy

    def __str__(self) -> str:
        return classifier_line(self.name, self.accuracy, self.n)

    def _batches(self, x: Tensor) -> list[Tensor]:
        if tuple(x.shape[1:]) != self._shape:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [n, {', '.join(map(str, self._shape))}]")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x.flatten(1))).any(1).sum())
            raise ValueError(f"x: got values that are not finite in {bad} of {len(x)} rows, expected finite ones")
        return list(x.detach().float().cpu().split(_BATCH))
