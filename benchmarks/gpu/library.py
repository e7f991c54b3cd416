"""The operations as PyTorch sees them on this device: opcheck, compilation in one graph, a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import ansn
from ansn import ops
from benchmarks.gpu.step import Step
from tests.tolerances import rms_ratio


def run(step: Step) -> None:
    """opcheck of the tests' cases on every back end that runs them, then perturbation, loss, training step, a copy."""
    for name, piece in {"perturb": _perturb, "dsm_loss": _loss, "training step": _training_step}.items():
        step.run(f"fullgraph | {name}", lambda piece=piece: piece(step))
    step.run("copy | covariance", lambda: _copied(step))
    try:
        from tests.ops.test_library import CASES
    except ImportError as problem:
        # The exception's name is gone when the piece runs.
        reason = f"the tests' cases need {problem.name}, which is not installed"
        step.run("opcheck", lambda: {"refused": reason})
        return
    for case, (operation, arguments) in CASES.items():
        for name in ops.registered(operation):
            key = f"opcheck | {case} | {name}"
            step.run(key, lambda o=operation, a=arguments, n=name: _opcheck(step, o, a, n))


def calls(device: str) -> Iterator[Callable[[], object]]:
    """Each of opcheck's cases, called once; none without the tests' packages."""
    try:
        from tests.ops.test_library import CASES
    except ImportError:
        return
    for operation, arguments in CASES.values():
        call = getattr(torch.ops.ansn, operation).default
        yield lambda call=call, arguments=arguments: call(*_moved(arguments, device))


def _moved(arguments: tuple, device: str) -> tuple:
    return tuple(a.clone().to(device) if isinstance(a, Tensor) else a for a in arguments)


def _opcheck(step: Step, operation: str, arguments: tuple, name: str) -> dict[str, Any]:
    fresh = _moved(arguments, step.device)
    call = getattr(torch.ops.ansn, operation).default
    with ops.backend(name):
        try:
            call(*_moved(arguments, step.device))
        except RuntimeError as error:
            if f"cannot run on back end {name!r}" in str(error):
                return {"refused": str(error).split(": ", 1)[-1]}
            raise
        torch.library.opcheck(call, fresh)
    return {}


class _Small(nn.Module):
    conditioning = "log"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 1, 64), nn.SiLU(), nn.Linear(64, dim))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.layers(torch.cat((x, level.unsqueeze(1)), 1))


def _model(step: Step, prediction: str = "denoiser", dim: int = 48) -> tuple[ansn.Denoiser, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, dim).to(step.device)
    covariance = ansn.AdaptiveCovariance(dim, device=step.device).update(x).freeze()
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(5.0, 0.05)).to(step.device)
    return ansn.Denoiser(_Small(dim).to(step.device), noise, prediction), x


def _compare(step: Step, function: Callable[..., tuple[Tensor, ...]], x: Tensor) -> dict[str, Any]:
    """Compiled in one graph against eager, over steps: the noise must be that of the step, not the graph's first."""
    torch._dynamo.reset()
    backend = "aot_eager" if step.quick else "inductor"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    worst = 0.0
    for count in (0, 1, 4_000_000_000):
        for a, b in zip(function(x, count), compiled(x, count), strict=True):
            worst = max(worst, rms_ratio(b.detach(), a.detach()))
    row: dict[str, Any] = {"ratio": min(worst, 1e30), "compiler": backend}
    # Matrix products may be summed in another order; noise of another step would be off by 1.
    return row if worst < 1e-3 else row | {"failed": f"compiled and eager differ, RMS ratio {worst:.3g}"}


def _perturb(step: Step) -> dict[str, Any]:
    model, x = _model(step)

    def function(x: Tensor, count: int) -> tuple[Tensor, ...]:
        perturbed, level = model.noise.perturb(x, step=count)
        return perturbed, level.tau

    return _compare(step, function, x)


def _loss(step: Step) -> dict[str, Any]:
    model, x = _model(step, "whitened")

    def function(x: Tensor, count: int) -> tuple[Tensor, ...]:
        perturbed, level = model.noise.perturb(x, tau=1.0, step=count)
        return (ansn.dsm_loss(model, x, perturbed, level, reduction="none"),)

    return _compare(step, function, x)


def _copied(step: Step) -> dict[str, Any]:
    """A covariance that is copied while its report is on its way, against itself; on the last GPU, which is not the
    current one where there are several."""
    device = f"cuda:{torch.cuda.device_count() - 1}" if step.device == "cuda" else step.device
    x = torch.randn(4096, 48, generator=torch.Generator().manual_seed(0)).to(device)
    covariance = ansn.AdaptiveCovariance(48, device=device).update(x)
    found = copy.deepcopy(covariance)
    shapes = [each.update(x + 1).freeze().noise_shape() for each in (covariance, found)]
    row: dict[str, Any] = {"ratio": rms_ratio(*shapes), "where": device}
    return row if row["ratio"] == 0 else row | {"failed": "a covariance and its copy differ"}


def _training_step(step: Step) -> dict[str, Any]:
    """Forward in one graph, its backward, the optimiser: parameters after three steps, eager and compiled."""
    after = []
    backend = "aot_eager" if step.quick else "inductor"
    for compiling in (False, True):
        model, x = _model(step)

        def objective(x: Tensor, count: int, model: ansn.Denoiser = model) -> Tensor:
            perturbed, level = model.noise.perturb(x, step=count)
            return ansn.dsm_loss(model, x, perturbed, level)

        torch._dynamo.reset()
        call = torch.compile(objective, fullgraph=True, backend=backend) if compiling else objective
        optimizer = torch.optim.SGD(model.network.parameters(), 1e-2)
        for count in range(3):
            optimizer.zero_grad()
            call(x, count).backward()
            optimizer.step()
        after.append(torch.cat([p.detach().flatten() for p in model.network.parameters()]))
    worst = rms_ratio(after[1], after[0])
    row: dict[str, Any] = {"ratio": worst, "compiler": backend}
    return row if worst < 1e-4 else row | {"failed": f"parameters differ after 3 steps, RMS ratio {worst:.3g}"}
