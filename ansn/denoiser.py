"""The denoiser: a network with preconditioning in whitened units; gives D, f or the score (math section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ansn import ops
from ansn.noise import NoiseModel
from ansn.ops import _checks
from ansn.rest import Copy, Refused
from ansn.skips import INPUTS, SKIPS, Seen, column

PREDICTIONS = ("denoiser", "whitened")


class Denoiser(nn.Module):
    r"""``D(x~, tau) = E[x | x~]``, made from a network; called as ``denoiser(x, sigma, **extra)``, k-diffusion's
    signature.

    With ``v^2 = 1 + tau^2`` (for tau, where R is given, the noise's deviation over the data's), ``m`` the data's mean
    and ``s`` its pixel standard deviation (from the covariance's snapshot):

    * ``prediction="denoiser"``, a network in data units::

          D = D_skip + (tau / v) s G([(x~ - m) / (v s), ...], ln(tau) / 4)

      ``skip="wiener"``: ``D_skip = m + S (S + tau^2 R)^-1 (x~ - m)``, the denoiser of Gaussian data whatever the shape
      of the noise. ``"mixture"``: that of the noise model's :class:`ansn.Mixture`, under isotropic noise.
      ``"scalar"``: ``m + (x~ - m) / v^2``, EDM's preconditioning (Karras et al. 2022, Table 1) in units where the data
      has unit variance. Where R is S the first and the last are one.
    * ``prediction="whitened"``, the paper's ``s_theta``: the network gives ``f``, and ``D = x~ + tau L f``.

    Args:
        network: ``network(x, level, y=None)``. Its attribute ``conditioning`` says what ``level`` is: ``"log"``
            ``ln(tau)/4`` float ``[B]``
            (also taken when there is no such attribute), ``"index"`` the nearest rung of the ladder, int64
            ``[B]``, ``"none"``:
            the network is called without it. It is called in the dtype of its own parameters, whatever x's is. Its
            output is a tensor of the data's shape, or an object that has one as ``sample`` or as its first item.
        noise: levels and covariance; ``tau`` below is in its units.
        prediction: what the network gives.
        precondition: False hands the network ``x~`` as it is and, for a denoiser network, takes its output as D.
        skip: a name in :data:`ansn.skips.SKIPS`. All but ``"scalar"`` are for a denoiser network with preconditioning;
            ``"wiener"``, or ``"mixture"`` where the noise model has one, is the default there (docs/results.md: it
            trains several times faster on anisotropic data). It costs two products with the covariance's basis an
            evaluation (of each region's), of which a dense structure then keeps track. Give ``"scalar"`` where there
            are fewer distinct examples than the structure needs (:meth:`ansn.covariance.Structure.points`).
        inputs: names in :data:`ansn.skips.INPUTS`, of what the network sees besides the noisy data, one after the other
            along the first axis: ``("estimate",)`` is ``(D_skip - m) / s``. The network takes ``[B, (1 + n) C, ...]``.
        label_dropout: share of the training rows whose class :meth:`withhold` hides. Above 0 the network also is the
            denoiser of data of unknown class, ``y=None``: what guidance and unconditional samples need.

    A subclass whose network needs no label to know a row's region sets ``regional = True``.
    """

    regional = False

    @property
    def summary(self) -> str:
        """Skip and inputs in a few words."""
        return f"{self.skip} skip, sees {', '.join(('noisy data', *self.inputs))}"

    def __init__(
        self,
        network: nn.Module,
        noise: NoiseModel,
        prediction: str = "denoiser",
        *,
        precondition: bool = True,
        skip: str | None = None,
        inputs: Sequence[str] = (),
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: got {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
        if not isinstance(noise, NoiseModel):
            raise TypeError(f"noise: got {type(noise).__name__}, expected a NoiseModel")
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        preconditioned = precondition and prediction == "denoiser"
        if skip is None:
            skip = "scalar" if not preconditioned else "wiener" if noise.mixture is None else "mixture"
        for name, given, known in (("skip", (skip,), SKIPS), ("inputs", inputs, INPUTS)):
            for one in given:
                if one not in known:
                    raise ValueError(f"{name}: got {one!r}, expected one of {', '.join(known)}")
                if one != "scalar" and not preconditioned:
                    expected = "prediction='denoiser' and precondition=True with it"
                    raise ValueError(f"{name}: got {one!r}, expected {expected}")
        if skip == "mixture":
            noise.check_mixture()
        seen = getattr(network, "inputs", None)
        if isinstance(seen, int) and seen != 1 + len(inputs):
            wanted = ", ".join(("noisy data", *inputs))
            raise ValueError(f"network.inputs: got {seen}, expected {1 + len(inputs)}: {wanted}")
        conditioning = getattr(network, "conditioning", "log")
        if conditioning not in ("log", "index", "none"):
            raise ValueError(f"network.conditioning: got {conditioning!r}, expected 'log', 'index' or 'none'")
        if not 0.0 <= label_dropout < 1.0:
            raise ValueError(f"label_dropout: got {label_dropout}, expected a probability in [0, 1)")
        # Kept here: the network may be wrapped later (DistributedDataParallel) and then hides it.
        self.num_classes: int | None = getattr(network, "num_classes", None)
        if label_dropout and not self.num_classes:
            raise ValueError(
                f"label_dropout: got {label_dropout} for a network without classes, expected 0, or a network that says"
                " how many there are, in its attribute num_classes"
            )
        # In this order: a state is refused before any weight is loaded.
        self.noise, self.network, self.label_dropout = noise, network, label_dropout
        self.prediction, self.precondition, self.conditioning = prediction, precondition, conditioning
        self.skip, self.inputs = skip, tuple(inputs)
        if skip != "scalar":
            noise.covariance.track()

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """``D``, shape and dtype of ``x`` ``[B, *shape]``; ``sigma`` is tau, a number, ``[]`` or ``[B]``; extra
        goes to the network."""
        tau = self._tau(x, sigma)
        if self.prediction == "whitened":
            return self.denoised_from(x, tau, region, self._network(x, tau, region, extra))
        if not self.precondition:
            return self._network(x, tau, region, extra)
        seen = self.seen(x, tau, region)
        seen.estimate = SKIPS[self.skip].estimate(seen)
        further = [INPUTS[name](seen) for name in self.inputs]
        rest = self._call(torch.cat((seen.noisy, *further), 1) if further else seen.noisy, tau, extra)
        return torch.addcmul(seen.estimate, seen.tau_column / seen.deviation * seen.scale, rest)

    def f(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """Whitened prediction ``f = (tau L)^-1 (D - x~)``, an estimate of ``-E[z | x~]``, x's shape and dtype."""
        tau = self._tau(x, sigma)
        if self.prediction == "whitened":
            return self._network(x, tau, region, extra)
        return self.noise.covariance.whiten(self(x, tau, region, **extra) - x, region) / column(tau, x)

    def score(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """Stein score of the perturbed density, ``(tau L)^-T f = Sigma^-1 (D - x~)``, x's shape and dtype."""
        tau = self._tau(x, sigma)
        f = self.f(x, tau, region, **extra)
        return self.noise.covariance.whiten(f, region, transpose=True) / column(tau, x)

    def denoised_from(self, x: Tensor, tau: Tensor, region: Tensor | None, f: Tensor) -> Tensor:
        """``D = x~ + tau L f`` of a whitened prediction at hand; ``tau`` ``[]`` or ``[B]``."""
        return self.noise.covariance.step(x, f=f.to(x.dtype), a=tau, region=region)

    def withhold(self, y: Tensor, *, seed: int, step: int, row: int = 0) -> Tensor:
        """``y`` with a share ``label_dropout`` of its labels replaced by ``num_classes``, "no class" (Ho & Salimans
        2022); int64 ``[B]``.

        Which ones is a function of (seed, step, row + r) alone. A row's region stays what it is: its noise and
        preconditioning are those of its own class, which only the network is not told.
        """
        if not self.label_dropout:
            return y
        start = torch.zeros(len(y), 1, dtype=torch.float64, device=y.device)
        z = ops.colored_step(start, b=1.0, seed=seed, row=row, step=step, stream=ops.LABELS).squeeze(1)
        assert self.num_classes is not None
        return y.masked_fill(torch.special.ndtr(z) < self.label_dropout, self.num_classes)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel need not send at every step: processes learn the noise together."""
        return [f"noise.{name}" for name, _ in self.noise.named_buffers()]

    @property
    def top(self) -> float:
        """Level that solvers of the flow start at: the ladder's start. Its top where the network has classes and the
        noise does not: the start is for data of all classes, and each is narrower."""
        levels = self.noise.levels
        if levels.start is None or (self.num_classes and self.noise.covariance.regions == 1):
            return levels.maximum
        return levels.start

    def prior(self, n: int, tau: float, **options: Any) -> Tensor:
        """Start of sampling at level ``tau``, ``[n, *shape]``: :meth:`NoiseModel.prior`, with its arguments."""
        return self.noise.prior(n, tau, **options)

    def of_rows(self, row: int, rows: int) -> Denoiser:
        """What denoises samples ``row .. row + rows - 1``: this one, unless samples differ in more than their
        noise (measurements of their own)."""
        return self

    def seen(self, x: Tensor, tau: Tensor, region: Tensor | None) -> Seen:
        """What skips and inputs are made of; ``tau`` ``[B]``."""
        covariance = self.noise.covariance
        mean, scale, unit = covariance.center, covariance.scale, covariance.unit
        if covariance.regions > 1:
            if region is None:
                count = covariance.regions
                raise ValueError(f"region: got None, expected int64 [{x.shape[0]}] because there are {count} regions")
            if _checks.readable(region):
                _checks.region_values(region, covariance.regions)
            mean, scale, unit = mean[region], scale[region], None if unit is None else unit[region]
        mean = mean.to(x.dtype).reshape(-1, *covariance.shape)
        return Seen(self.noise, x, tau, region, mean, column(scale, x), tau if unit is None else tau * unit)

    def _network(self, x: Tensor, tau: Tensor, region: Tensor | None, extra: dict[str, Any]) -> Tensor:
        return self._call(self.seen(x, tau, region).noisy if self.precondition else x, tau, extra)

    def _call(self, x: Tensor, tau: Tensor, extra: dict[str, Any]) -> Tensor:
        """The network's output, ``[B, *shape]`` in x's dtype."""
        dtype = _dtype(self.network, x.dtype)
        level: tuple[Tensor, ...] = ()
        if self.conditioning == "log":
            level = ((torch.log(tau) / 4.0).to(dtype),)
        elif self.conditioning == "index":  # nearest in the logarithm, where the ladder is even
            distance = (torch.log(tau).unsqueeze(1) - torch.log(self.noise.tau.to(tau)).unsqueeze(0)).abs()
            level = (distance.argmin(1),)
        out = tensor_of(self.network(x.to(dtype), *level, **extra))
        expected = (x.shape[0], *self.noise.covariance.shape)
        if out.shape != expected:
            raise ValueError(f"network: got an output of shape {list(out.shape)}, expected {list(expected)}")
        return out.to(x.dtype)

    def check_labels(self, y: Tensor) -> None:
        """Raises ValueError for labels ``[B]`` that the network never learned: of ``0..num_classes - 1``, and
        ``num_classes``, "no class", of a model with label dropout. A network that says no ``num_classes`` takes
        any."""
        if self.num_classes is None or not y.numel():
            return
        least, most = (int(v) for v in y.aminmax())
        if least < 0 or most > self.num_classes - (not self.label_dropout):
            no_class = f", or {self.num_classes} for no class" if self.label_dropout else ""
            got = f"{least}" if least == most else f"{least}..{most}"
            raise ValueError(f"y: got {got}, expected labels 0..{self.num_classes - 1}{no_class}")

    def _tau(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        if x.shape[1:] != self.noise.covariance.shape:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {_sizes(self.noise.covariance.shape)}]")
        _checks.floating("x", x)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if not isinstance(sigma, Tensor):
            if not 0 < sigma < math.inf:  # also of a number that a compiler has not seen
                raise ValueError(f"sigma: got {sigma}, expected a finite level > 0")
            return torch.full((x.shape[0],), float(sigma), dtype=dtype, device=x.device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, x.shape[0])):
            raise ValueError(f"sigma: got shape {list(sigma.shape)}, expected [] or [{x.shape[0]}]")
        if sigma.numel() and _checks.readable(sigma):
            low, high = (float(v) for v in (sigma.detach().aminmax() if sigma.ndim else (sigma, sigma)))
            if not 0 < low <= high < math.inf:
                raise ValueError(f"sigma: got levels {low:g} to {high:g}, expected finite ones > 0")
        return sigma.to(device=x.device, dtype=dtype).expand(x.shape[0])


_WRAPPER = (
    "or wrap it: class Wrapped(nn.Module): __init__(self, net): super().__init__(); self.net = net;"
    " forward(self, x, level): return self.net(x, level)[...]"
)


def _dtype(module: nn.Module, wanted: torch.dtype) -> torch.dtype:
    """``wanted``, if a parameter has it or none is floating, else that of the first."""
    first: list[torch.dtype] = []
    return wanted if _has(module, wanted, first) or not first else first[0]


def _has(module: nn.Module, wanted: torch.dtype, first: list[torch.dtype]) -> bool:
    # ``parameters()`` takes five times as long.
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            if parameter.dtype == wanted:
                return True
            first.append(parameter.dtype)
    return any(part is not None and _has(part, wanted, first) for part in module._modules.values())


def tensor_of(out: Any) -> Tensor:
    """A network's output: itself, its ``sample``, or its first item. TypeError where none is a tensor of numbers."""
    found = out
    if not isinstance(out, Tensor):
        found = getattr(out, "sample", out[0] if isinstance(out, (tuple, list)) and out else None)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"an output of type {type(out).__name__}"
        raise TypeError(f"network: got {kind}, expected a tensor of real numbers; {_WRAPPER}")
    return found


def unwrapped(model: nn.Module) -> Denoiser:
    """The denoiser in what DistributedDataParallel, FSDP, torch.compile, accelerate or Fabric made of it. TypeError
    naming ``model`` where there is none."""
    inner: Any = model
    while not isinstance(inner, Denoiser):
        parts = (getattr(inner, name, None) for name in ("module", "_orig_mod"))
        inner = next((part for part in parts if isinstance(part, nn.Module)), None)
        if inner is None:
            raise TypeError(f"model: got {type(model).__name__}, expected a Denoiser, as it is or wrapped for training")
    return inner


def with_mode(model: Denoiser) -> list[nn.Module]:
    """The modules for which training and evaluation may differ: all but the noise's."""
    noise = set(model.noise.modules())
    return [m for m in model.modules() if m not in noise]


def resting(model: Denoiser, *, constant: bool = False) -> Denoiser:
    """The model in evaluation mode, and with ``constant`` its parameters without gradient: as it is where nothing
    differs, else a copy of its modules, which shares all else with it. The model is left as it is, so threads may share
    it.

    Raises ValueError where a module is in training mode and cannot be copied (a sharded one, say).
    """
    modules = with_mode(model)
    at_rest = not any(m.training or isinstance(m, DistributedDataParallel) for m in modules)
    if at_rest and not (constant and any(p.requires_grad for p in model.parameters())):
        return model
    try:
        return Copy(modules, constant).of(model)
    except Refused as error:
        if not any(m.training for m in modules):
            return model
        raise ValueError(
            f"model: got one in training mode whose {error}, expected model.eval() before, or a network that can"
        ) from error


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)
