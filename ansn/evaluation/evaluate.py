"""One evaluation of a run: draws samples, compares them with the data in named spaces, and collects the numbers."""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ansn.config import SamplingConfig, to_dict
from ansn.data import Dataset
from ansn.errors import InputError
from ansn.evaluation import classes, spaces
from ansn.evaluation.compare import KINDS, LEAST, Resampling, compare, modes, obedience, repetition
from ansn.evaluation.features import Array, Features, PixelFeatures, blocks, features_of
from ansn.evaluation.measurement import Evaluation, Measurement
from ansn.evaluation.neighbours import nearest
from ansn.evaluation.sweep import EVALUATIONS, chosen, sweep
from ansn.likelihood import bits_per_dim
from ansn.machine import cpu_name
from ansn.training.data import load
from ansn.training.pictures import as_written, draw, labels, sampler_options
from ansn.training.runs import Run

METRICS = (*KINDS, "modes", "memorisation", "likelihood")
_STEADY = 2000  # samples whose mean over blocks is worth a table
_NEIGHBOURS = 5
_TOLD_NEIGHBOURS = 1000  # samples whose neighbours are kept for the report
_PACKAGES = ("ansn", "torch", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    n: samples; None: as many as there are held-out rows, at most 10,000, and of few rows a multiple near 2000, which is
    measured in blocks (:func:`ansn.evaluation.compare.measure`), so that the floor has the same n. features:
    spaces, None for the data's default. metrics: of METRICS. pairs: most rows on either side of what compares all
    pairs. halves: for the intervals. likelihood: held-out rows for bits a dimension. sweep: samplers to compare at
    ``evaluations``, with at most ``swept`` samples (None: n). seed: of samples and halves.
    """

    n: int | None = None
    features: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = METRICS
    pairs: int = 5000
    halves: int = 40
    likelihood: int = 128
    sweep: tuple[str, ...] = ()
    evaluations: tuple[int, ...] = EVALUATIONS
    swept: int | None = None
    seed: int = 0
    batch_size: int = 256


@dataclass(frozen=True)
class Evaluated:
    """The numbers, and what a report shows beside them: samples as the model made them, the training and held-out
    data, and the shares of the classes among samples and data with who told the samples', where there are classes."""

    evaluation: Evaluation
    samples: Tensor
    train: Dataset
    test: Dataset | None
    shares: tuple[tuple[float, ...], tuple[float, ...], str] | None


def evaluate(
    run: Run,
    settings: Settings,
    *,
    data: str | None = None,
    sampling: SamplingConfig | None = None,
    samples: Tensor | None = None,
    cache: Path | None = None,
    command: str = "",
    progress: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluated:
    """Measure a run.

    Args:
        data: folder of a named data set, in place of the run's own. sampling: in place of the run's.
        samples: ``[n, *shape]`` as the model would make them, in place of drawing.
        cache: folder of trained classifiers. command: what to write as the line that makes it again.
        tell: is told what is being done.

    Raises InputError where the data cannot be read, a space cannot be made, or too few samples are finite.
    """
    _check(settings)
    return _Work(run, settings, data, cache, tell).done(sampling or run.config.sampling, samples, command, progress)


class _Work:
    """The data of an evaluation, and its numbers as they come."""

    def __init__(
        self, run: Run, settings: Settings, data: str | None, cache: Path | None, tell: Callable[[str], None]
    ) -> None:
        self.run, self.settings, self.tell = run, settings, tell
        self.resampling = Resampling(settings.halves, settings.seed)
        self.left_out: list[str] = []
        self.train, self.test, reason = datasets(run, data)
        if reason:
            self.left_out.append(f"floors, memorisation and likelihood, which need held-out data: {reason}")
        elif self.test is not None and len(self.test) < LEAST:
            self.left_out.append(f"floors and memorisation: {len(self.test)} held-out rows, fewer than {LEAST}")
        holes = [int((~known.all(1)).sum()) for data in (self.train, self.test) if data is not None
                 if (known := data.known(torch.arange(len(data)))) is not None]  # fmt: skip
        if holes:
            self.left_out.append(f"what is missing in {sum(holes):,} rows of the data: a Gaussian's draws stand for it")
        self.numbers: list[Measurement] = []
        self.shares: tuple[tuple[float, ...], tuple[float, ...], str] | None = None
        names = settings.features or spaces.default(self.train)
        tell(f"making the feature spaces {', '.join(names)}")
        self.spaces = [spaces.space(name, self.train, self.test, place=cache) for name in names]

    def done(self, sampling: SamplingConfig, samples: Tensor | None, command: str, progress: bool) -> Evaluated:
        options, seconds, asked = sampler_options(sampling), None, None
        if samples is None:
            n = self.settings.n or _default_n(len(self.test or self.train))
            self.tell(f"drawing {n} samples")
            start = time.perf_counter()
            samples = draw(
                self.run, n, self.settings.seed, progress=progress, batch_size=self.settings.batch_size, **options
            )
            seconds = time.perf_counter() - start
            known = labels(self.run, n, self.settings.seed)
            asked = None if known is None else known.numpy()
        elif self.settings.n is not None:
            samples = samples[: self.settings.n]
        samples, asked = self._finite(samples, asked)
        held = self._held_out(len(samples))
        baseline = self._baseline(len(samples))
        # A row of the sweep by the same sampler is of these samples: one sampler, one number.
        alike = seconds is not None and set(options) == {"method", "steps"}
        measured = (options["method"], options["steps"], seconds) if alike and seconds is not None else None
        quality: list[dict[str, Any]] = []
        for space in self.spaces:
            quality += self._in_space(space, samples, asked, held, baseline, measured)
        neighbours = self._memorised(samples, held)
        self._likelihood()
        found = Evaluation(
            settings={**dataclasses.asdict(self.settings), "n": len(samples), "draw": _plain(options),
                      "seconds": seconds},
            command=command, run=to_dict(self.run.config), provenance=provenance(self.run, self.spaces),
            measurements=tuple(self.numbers), quality=tuple(quality), neighbours=neighbours,
            left_out=tuple(self.left_out),
        )  # fmt: skip
        return Evaluated(found, samples, self.train, self.test, self.shares)

    def _finite(self, samples: Tensor, asked: Any) -> tuple[Tensor, Any]:
        good = torch.isfinite(samples.flatten(1)).all(1)
        if not bool(good.all()):
            count = int((~good).sum())
            self.left_out.append(f"{count} of {len(good)} samples, which hold values that are not finite")
        if int(good.sum()) < LEAST:
            raise InputError(f"-n: got {int(good.sum())} samples that are finite, expected at least {LEAST}")
        return samples[good], None if asked is None else asked[good.numpy()]

    def _baseline(self, n: int) -> Tensor:
        """Samples of the run's Gaussians, with a seed of their own: the model starts from noise of the other."""
        mixture, size, seed = self.run.mixture, self.settings.batch_size, (self.settings.seed + 1) % 2**63
        drawn = [mixture.sample(min(size, n - k), seed=seed, row=k).cpu() for k in range(0, n, size)]
        return as_written(self.run, torch.cat(drawn), seed)

    def _held_out(self, n: int) -> tuple[Tensor, Tensor | None] | None:
        """As many held-out rows as there are samples, drawn at random, and their labels."""
        if self.test is None:
            return None
        x, labels = self.test.batch(self.test.order(self.settings.seed, 0)[:n].clone())
        return x.cpu(), None if labels is None else labels.cpu()

    def _in_space(
        self, space: Features, samples: Tensor, asked: Any, held: tuple[Tensor, Tensor | None] | None, baseline: Tensor,
        measured: tuple[str, int, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Numbers in one space; rows of the sweep, which is made in the first."""
        self.tell(f"measuring in {space.name}")
        settings, x, train = self.settings, space(samples), features_of(space, self.train)
        h = None if held is None else space(held[0])
        kinds = [name for name in KINDS if name in settings.metrics]
        self.numbers += compare(
            kinds, space, x, train, h, pairs=settings.pairs, resampling=self.resampling, baseline=space(baseline)
        )
        if "modes" in settings.metrics and hasattr(space, "decide"):
            self._modes(space, x, asked, h, None if held is None else held[1])
        if space is not self.spaces[0] or not settings.sweep:
            return []
        return list(
            sweep(
                self.run, settings.sweep, settings.evaluations, space, train, h, min(len(x), settings.swept or len(x)),
                resampling=self.resampling, seed=settings.seed, batch_size=settings.batch_size, tell=self.tell,
                measured=None if measured is None else (measured[0], measured[1], x, measured[2]),
            )
        )  # fmt: skip

    def _modes(self, judge: Any, x: Array, asked: Any, h: Array | None, labels: Tensor | None) -> None:
        shares, known = classes.shares(self.train), None if labels is None else labels.numpy()
        made = modes(judge, x, h, shares, len(self.train), self.resampling)
        notes = ["" if h is None or known is None else classes.confusion(judge, h, known)]
        if asked is not None:
            notes.append("the classes were asked for in turn, so these are not weights that the model chose")
            made += obedience(judge, x, asked, h, known, self.resampling)
        added = "; ".join(filter(None, notes))
        self.numbers += [dataclasses.replace(m, note=f"{m.note}; {added}" if added else m.note) for m in made]
        own = classes.decided(judge, x, len(shares)).mean(0)
        self.shares = (tuple(own.tolist()), tuple(shares.tolist()), str(judge))

    def _memorised(self, samples: Tensor, held: tuple[Tensor, Tensor | None] | None) -> dict[str, Any] | None:
        if "memorisation" not in self.settings.metrics:
            return None
        self.tell("looking for the nearest training rows")
        pixels, most = PixelFeatures(self.train.shape, self.train.name), self.settings.pairs
        k = min(_NEIGHBOURS, len(self.train))
        rows = pixels(samples[:most])
        both = rows if held is None else np.concatenate((rows, pixels(held[0][:most])))
        distance, index = nearest(both, (pixels(x) for x in blocks(self.train, 16384)), k)
        if held is not None and len(both) - len(rows) >= LEAST:
            self.numbers += repetition(
                distance[: len(rows), :1], distance[len(rows) :, :1], len(self.train), pixels.name, self.resampling
            )
        kept = min(len(rows), _TOLD_NEIGHBOURS)
        return {"index": index[:kept].tolist(), "distance": distance[:kept].tolist(), "space": pixels.name}

    def _likelihood(self) -> None:
        if "likelihood" not in self.settings.metrics or self.settings.likelihood == 0 or self.test is None:
            return
        index = self.test.order(self.settings.seed, 0)[: self.settings.likelihood].clone()
        self.tell(f"likelihood of {len(index)} held-out rows")
        # Regions that were found are no labels, also where nothing is left of their prior.
        told = self.run.config.network.class_conditional
        # One probe a row: the interval is over rows and holds its error. A sum over regions is biased by noise.
        by_class = told and self.run.config.noise.regions == "labels"
        probes = 1 if by_class or self.run.model.noise.covariance.regions == 1 else 2
        found = bits_per_dim(
            self.run.model, self.test, index, seed=self.settings.seed, conditional=told, probes=probes
        )
        note = f"of held-out rows; interval from the standard error over rows; {found.evaluations} evaluations a row"
        if self.test.levels is not None:
            note += f"; an upper bound, dequantisation {found.dequantisation}"
        self.numbers.append(
            Measurement(
                "bits/dim", found.value, found.n, low=found.value - 1.96 * found.error,
                high=found.value + 1.96 * found.error, note=note,
            )
        )  # fmt: skip


def datasets(run: Run, root: str | None = None) -> tuple[Dataset, Dataset | None, str]:
    """The run's data as the model saw it but without flips, its held-out split, and if there is none, why.

    Raises InputError where the data cannot be read or is not the run's.
    """
    train = load(run.config, root=root, flip=False)
    if tuple(train.shape) != tuple(run.info.shape):
        raise InputError(f"--data: got rows of {list(train.shape)}, expected the run's {list(run.info.shape)}")
    if run.info.content not in ("", train.fingerprint()):
        warnings.warn(f"{train.name}: its values are not those that {run.path} was trained on", stacklevel=2)
    try:
        test = load(run.config, "test", root=root, flip=False)
    except InputError as error:
        return train, None, str(error)
    return train, test, ""


def provenance(run: Run, made: Sequence[Features]) -> dict[str, Any]:
    """Checkpoint, versions, machine and feature spaces."""
    return {
        "run": str(run.path), "step": run.step, "weights": run.weights, "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES}, "machine": cpu_name(),
        "device": str(run.model.noise.tau.device), "threads": torch.get_num_threads(),
        "features": [str(space) if type(space).__str__ is not object.__str__ else space.name for space in made],
    }  # fmt: skip


def _default_n(held_out: int) -> int:
    """As many samples as there are held-out rows, at most 10,000; where these are few, several times as many."""
    return min(held_out * max(1, round(_STEADY / held_out)), 10_000)


def _check(settings: Settings) -> None:
    for name in settings.metrics:
        if name not in METRICS:
            raise InputError(f"--metrics: got {name!r}, expected some of {', '.join(METRICS)}")
    try:
        chosen(settings.sweep)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    rules = [
        ("n", settings.n, LEAST), ("pairs", settings.pairs, LEAST), ("halves", settings.halves, 2),
        ("likelihood", settings.likelihood, 0), ("evaluations", min(settings.evaluations, default=0), 1),
        ("batch-size", settings.batch_size, 1), ("seed", settings.seed, 0),
    ]  # fmt: skip
    for name, value, least in rules:
        if value is not None and value < least:
            raise InputError(f"--{name}: got {value}, expected at least {least}")


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in options.items()}
