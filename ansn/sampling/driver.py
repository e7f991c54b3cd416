"""From a trained model to samples: :func:`sample` starts, batches and collects them; :class:`Draw` is one batch of it.

What a sample is depends on (seed, its number) alone, so whoever makes batches may cut them anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ansn import levels
from ansn.denoiser import Denoiser, resting, unwrapped, with_mode
from ansn.errors import whole
from ansn.hostread import HostRead
from ansn.sampling import schedules
from ansn.sampling.annealed_langevin import algorithm_1, annealed_langevin
from ansn.sampling.common import Callback, bar, decreasing, known_alike, label_rows
from ansn.sampling.engine import Engine, engaged, graph_or_warning
from ansn.sampling.gaussian_flow import gaussian_2m
from ansn.sampling.guidance import Guided
from ansn.sampling.multistep import dpmpp_2m, exponential_ab
from ansn.sampling.ode import euler, heun
from ansn.sampling.predictor_corrector import predictor_corrector
from ansn.sampling.schedules import SCHEDULES, Schedule, optimised
from ansn.sampling.stochastic import dpmpp_2m_sde, heun_churn

Count = Callable[[int, dict[str, Any]], int]
"""Network evaluations of a row, from the number of levels and the sampler's options."""


def _two_a_level(levels: int, options: dict[str, Any]) -> int:
    return 2 * levels - 1


def _corrected(levels: int, options: dict[str, Any]) -> int:
    return levels + (levels - 1) * options.get("corrections", 1)


def _langevin(levels: int, options: dict[str, Any]) -> int:
    return levels * options["steps"] + options.get("denoise", True)


@dataclass(frozen=True)
class Method:
    """A sampler and what a draw must know to call it.

    ``summary``: a few words for the commands' help. ``flow``: takes a schedule of few levels, of which ``steps`` is
    the number; else ``steps`` is handed on, a number for each level. ``noisy``: draws noise, and takes ``seed`` and
    ``row``. ``start``: its usual one. ``evaluations``: see :data:`Count`.
    """

    function: Callable[..., Tensor]
    summary: str = ""
    _: KW_ONLY
    flow: bool = True
    noisy: bool = False
    start: str = "gaussian"
    steps: int = 20
    evaluations: Count = lambda levels, options: levels

    @property
    def options(self) -> list[str]:
        """Names of the sampler's own arguments."""
        own = ("model", "x", "taus", "steps", "region", "seed", "row", "callback", "progress", "extra")
        return [name for name in inspect.signature(self.function).parameters if name not in own]


METHODS = {
    "dpmpp_2m": Method(dpmpp_2m, "DPM-Solver++(2M) on the probability flow", steps=12),
    "gaussian_2m": Method(gaussian_2m, "the same about the flow of Gaussian data", steps=12),
    "exponential_ab": Method(exponential_ab, "exponential Adams-Bashforth on the flow"),
    "heun": Method(heun, "Heun on the flow, two evaluations a level", evaluations=_two_a_level),
    "euler": Method(euler, "Euler on the flow"),
    "dpmpp_2m_sde": Method(dpmpp_2m_sde, "2M with noise put back", noisy=True),
    "heun_churn": Method(heun_churn, "Heun with noise put back", noisy=True, evaluations=_two_a_level),
    "predictor_corrector": Method(
        predictor_corrector, "a step down and Langevin steps there", noisy=True, evaluations=_corrected
    ),
    "langevin": Method(
        annealed_langevin, "annealed Langevin, corrected", flow=False, noisy=True, steps=100, evaluations=_langevin
    ),
    "paper": Method(
        algorithm_1, "Algorithm 1 as printed", flow=False, noisy=True, start="uniform", steps=100,
        evaluations=lambda levels, options: levels * options["steps"],
    ),
}  # fmt: skip


class Draw:
    """One way to sample a model, checked and with its schedule; :meth:`batch` draws any rows of it.

    Arguments as in :func:`sample`. ``dtype``, ``compile`` and ``cuda_graph`` are how the network is called
    (:class:`ansn.sampling.engine.Engine`); state and arithmetic of the sampler keep their dtype.
    """

    def __init__(
        self,
        model: Denoiser,
        method: str = "dpmpp_2m",
        steps: int | None = None,
        *,
        taus: Tensor | Sequence[float] | None = None,
        schedule: str | Schedule = "few_steps",
        start: str | None = None,
        seed: int = 0,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
        dtype: torch.dtype = torch.float32,
        compile: bool | str = False,
        cuda_graph: bool = False,
        **options: Any,
    ) -> None:
        model, seed = unwrapped(model), whole("seed", seed, 0)
        if guidance is not None:
            model = Guided(model, guidance, guidance_interval)
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
        self.source, self.method, self.seed = model, METHODS[method], seed
        for name in options:
            if name not in self.method.options:
                raise ValueError(
                    f"{name}: got an unknown option of {method!r}, expected {', '.join(self.method.options) or 'none'}"
                )
        steps = self.method.steps if steps is None else whole("steps", steps, 1)
        # On the host: what reads a level must not wait for a GPU, and a sampler takes them over once.
        known = _schedule(model, self.method, steps, schedule, options) if taus is None else taus
        self.taus = decreasing(known.cpu() if isinstance(known, Tensor) else torch.tensor(known, dtype=torch.float64))
        self.start = start or self.method.start
        self.options = options if self.method.flow else options | {"steps": steps}
        self.settings: dict[str, Any] = {
            "method": method, "levels": self.taus.tolist(), "start": self.start, "seed": seed,
            "dtype": str(dtype).removeprefix("torch."),
        } | {name: value for name, value in self.options.items() if not callable(value)}  # fmt: skip
        capture = graph_or_warning(model.noise.tau.device) if cuda_graph else None
        self._engine = functools.partial(Engine, dtype=dtype, compile=compile, capture=capture)
        self._engage()

    def _engage(self) -> None:
        model = resting(self.source)
        self.model = engaged(model, self._engine(model.network))

    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of what is sampled: the model's structure, weights, covariance and levels, and the
        numbers that a denoiser around it keeps as plain attributes."""
        digest = hashlib.sha256(f"{self.source}{self.source.noise.levels}".encode())
        for part in (m for m in self.source.modules() if isinstance(m, Denoiser)):
            plain = {k: v for k, v in vars(part).items() if isinstance(v, (int, float, str, tuple)) and k != "training"}
            digest.update(repr(sorted(plain.items())).encode())
        for name, value in sorted(self.source.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def batches(
        self, blocks: Iterable[tuple[int, int]], y: Tensor | None = None, **told: Any
    ) -> Iterator[tuple[int, Tensor]]:
        """``(row, samples)`` on the host for each ``(row, rows)`` of ``blocks``, in their order.

        ``y``: labels of all samples, int64 ``[n]``; ``told``: callback and progress of :meth:`batch`. On a GPU a batch
        is on its way to pinned memory while the next one is drawn; at most two are alive.
        """
        before: tuple[int, HostRead] | None = None
        for row, rows in blocks:
            read = HostRead(self.batch(row, rows, None if y is None else y[row : row + rows], **told))
            if before is not None:
                yield before[0], before[1].wait()
            before = row, read
            if read.arrived():
                yield row, read.wait()
                before = None
            del read  # what is not awaited here must not live through the next batch
        if before is not None:
            yield before[0], before[1].wait()

    @property
    def evaluations(self) -> int:
        """Network evaluations that a sample takes."""
        return self.method.evaluations(len(self.taus), self.options)

    @classmethod
    def within(cls, model: Denoiser, method: str, evaluations: int, **options: Any) -> Draw:
        """The draw of most steps that takes no more evaluations than these; arguments else as for :class:`Draw`.

        Raises ValueError if one step takes more.
        """
        one = cls(model, method, 1, **options)
        for steps in range(evaluations, 0, -1):
            levels = steps if one.method.flow else len(one.taus)
            if one.method.evaluations(levels, one.options | {"steps": steps}) <= evaluations:
                return cls(model, method, steps, **options)
        raise ValueError(f"evaluations: got {evaluations}, expected {one.evaluations} or more, one step of {method!r}")

    @torch.no_grad()
    def batch(
        self, row: int, rows: int, y: Tensor | None = None, *, callback: Callback | None = None, progress: bool = False
    ) -> Tensor:
        """Samples ``row .. row + rows - 1``, on the model's device; ``y``: their labels, int64 ``[rows]``."""
        if any(m.training for m in with_mode(self.model)):  # put into training mode since
            self._engage()
        model, noise = self.model.of_rows(row, rows), self.model.noise
        region, y = known_alike(model, noise.draw_regions(rows, seed=self.seed, row=row), y)
        extra: dict[str, Any] = {} if y is None else {"y": y}
        if model.num_classes and y is None and not model.label_dropout:
            raise ValueError(
                f"y: got None for a network of {model.num_classes} classes trained without label dropout, expected a"
                " label or int64 [n]"
            )
        x = model.prior(rows, float(self.taus[0]), region=region, y=y, seed=self.seed, row=row, start=self.start)
        if self.method.noisy:
            extra |= {"seed": self.seed, "row": row}
        out = self.method.function(
            model, x, self.taus, region=region, callback=callback, progress=progress, **self.options, **extra
        )
        return out.clone() if out.is_inference() else out  # one that a later graph may hold


def sample(
    model: Denoiser,
    n: int,
    method: str = "dpmpp_2m",
    steps: int | None = None,
    *,
    taus: Tensor | Sequence[float] | None = None,
    schedule: str | Schedule = "few_steps",
    start: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    y: int | Tensor | Sequence[int] | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] = (0.0, math.inf),
    progress: bool = False,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Draw ``n`` samples, ``[n, *shape]`` on the CPU, in data units.

    Args:
        model: the denoiser, as it is or wrapped for training; its device is used. It is not touched: what is in
            training mode stays so, and is called as in evaluation mode.
        method: a name in :data:`METHODS`, which says what each one is.
        steps: number of levels, of ``"langevin"`` and ``"paper"`` steps a level; by default :attr:`Method.steps`.
        taus: levels to use instead, decreasing ``[N]``.
        schedule: spacing of the levels between the ladder's start and its end, for all but Langevin: a name in
            :data:`ansn.sampling.schedules.SCHEDULES`, a function ``(top, bottom, n)``, or ``"optimised"``
            (:func:`ansn.sampling.schedules.optimised` for this solver, for 2M where it draws noise; it costs some
            evaluations: keep its result as ``taus``).
        start: ``"gaussian"`` or ``"uniform"``, see :meth:`NoiseModel.prior`; the default of ``"paper"`` is
            uniform, else gaussian.
        batch_size: samples at a time; the images do not depend on it beyond rounding.
        seed: sample i depends on (seed, i) and on nothing else.
        y: class labels, a number or int64 ``[n]``, for a class-conditional network. Where the covariance has one region
            for each of the network's classes, they are the regions too, by default drawn in the data's proportions.
            Else None draws unconditional samples, from a model trained with label dropout.
        guidance, guidance_interval: weight, and the levels where it acts, of :class:`ansn.sampling.Guided`.
        dtype: ``torch.bfloat16`` runs the network under autocast; what is returned stays float32.
        compile: compile the network once, with torch.compile. cuda_graph: replay its call as a CUDA graph; a
            warning says why where that cannot be.
        progress: show a bar. callback: see :data:`ansn.sampling.Callback`; called for every batch.
        options: to the sampler (``eps``, ``convention``, ``precondition``, ``denoise``).

    Raises ValueError naming the argument.
    """
    n, batch_size = whole("n", n, 1), whole("batch_size", batch_size, 1)
    draw = Draw(model, method, steps, taus=taus, schedule=schedule, start=start, seed=seed, guidance=guidance,
                guidance_interval=guidance_interval, **options)
    if options.get("noise_sampler") is not None and n > batch_size:
        raise ValueError(f"noise_sampler: got n = {n} > batch_size = {batch_size}, expected one batch")
    labels = label_rows(y, n)
    # A short progress bar over batches when there are several, over steps when there is one.
    several = n > batch_size
    blocks = [(row, min(batch_size, n - row)) for row in range(0, n, batch_size)]
    told: dict[str, Any] = {"callback": callback, "progress": progress and not several}
    drawn = draw.batches(bar(blocks, progress and several, "Sampling"), labels, **told)
    return torch.cat([x for _, x in drawn])


def _schedule(model: Denoiser, method: Method, n: int, schedule: str | Schedule, options: dict[str, Any]) -> Tensor:
    ladder = model.noise.levels
    if method.flow:
        names = schedules.names()
        if isinstance(schedule, str) and schedule not in names:
            raise ValueError(f"schedule: got {schedule!r}, expected a function or one of {', '.join(names)}")
        if len(ladder) == 1:
            return model.noise.tau[:1]
        if schedule == "optimised":
            # For the solver itself; the noise of a stochastic one would hide how far it is from the flow.
            solver = dpmpp_2m if method.noisy else functools.partial(method.function, **options)
            return optimised(model, n, model.top, ladder.minimum, sampler=solver)
        return (SCHEDULES[schedule] if isinstance(schedule, str) else schedule)(model.top, ladder.minimum, n)
    if ladder.training == "ladder":
        return model.noise.tau
    # A ladder of a few Karras levels is too coarse for Langevin: rungs that overlap, by NCSNv2's rule.
    overlapping = levels.geometric(ladder.maximum, ladder.minimum, dim=model.noise.covariance.dim)
    return torch.tensor(overlapping.tau, dtype=torch.float64)
