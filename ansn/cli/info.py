"""`ansn-info`: what is installed, what was built, which back end runs what, and what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

import ansn
from ansn import ops
from ansn.cli.common import guarded, parsed
from ansn.covariance import Mixture
from ansn.ops import native
from ansn.training import Run, load_run
from ansn.training.places import shipped

_DESCRIPTION = "Tell versions, devices, native kernels and back ends; with a run, what it holds."
_SHARES = 12  # at most, of regions


@dataclass(frozen=True)
class Arguments:
    """What to tell."""

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """A run to describe as well: folder, name of one that comes with ansn, or hf://OWNER/NAME of a hub."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-info", lambda: tyro.cli(Arguments, prog="ansn-info", description=_DESCRIPTION))
    return guarded("ansn-info", lambda: _tell(arguments.run))


def _tell(run: str | None) -> None:
    lines = {
        "ansn": ansn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton", "not installed; only a GPU needs it"),
        "numpy": _version("numpy"),
        "CPU threads": str(torch.get_num_threads()),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that this torch sees",
    }
    if native.module is None:
        lines["native module"] = f"missing: {native.missing}"
    else:
        build = native.module.build_info()
        lines["native module"] = ", ".join(f"{k} {_text(v)}" for k, v in build.items() if not k.startswith("cuda"))
        lines["CUDA kernels"] = (
            f"built with CUDA {build['cuda_version']} for {_text(build['cuda_architectures'])}"
            if build["cuda"]
            else "not built (needs nvcc; `ANSN_CUDA=ON pip install -e .` says what is missing)"
        )
        lines["instruction set"] = f"{native.module.cpu_isa()} (of {_text(native.module.supported_isas())})"
    lines["back end"] = f"{ops.current_backend()} (ANSN_BACKEND or ansn.ops.backend)"
    lines["shipped runs"] = ", ".join(shipped()) or "none"
    for name in ops.operations():
        lines[name] = ", ".join(ops.registered(name))
    if run is not None:
        found = load_run(run)
        network = sum(p.numel() for p in found.model.network.parameters())
        lines["run"] = f"{found.path}, step {found.step}"
        size = f"{found.info.name}: {found.info.kind} of {'x'.join(map(str, found.info.shape))}"  # of an earlier format
        lines["data"] = "\n".join(found.info.understood or (size,))
        lines["network"] = f"{found.config.network.network}, {network:,} parameters, {found.model.summary}"
        covariance = found.model.noise.covariance
        of = "of the noise: " if found.model.noise.mixture else ""
        condition, rank = (float(v.max()) for v in (covariance.condition_number(), covariance.effective_rank()))
        shown = f"condition number {condition:.4g}, effective rank {rank:.1f}"
        lines["covariance"] = f"{of}{covariance.extra_repr()}; {shown}"
        ladder = found.model.noise.levels
        mixture, mixed = found.mixture, found.model.noise.mixture is not None
        of_regions = found.found is not None and not mixed
        lines["structure"] = f"{covariance.structure.name}, that of the regions" if of_regions else str(found.structure)
        if found.found is not None or mixture.regions > 1:
            lines["regions"] = _regions(found, mixture)
        few, structure = int((~mixture.covariance.enough()).sum()), mixture.covariance.structure
        if few:
            of = f"{few} of {mixture.regions} regions have" if mixture.regions > 1 else "it has"
            start = "isotropic in the skip" if mixed else "the denoiser starts from EDM's preconditioning"
            lines["too few points"] = (
                f"{of} fewer than the {structure.points():,} distinct ones that {structure.name} needs, so S counts as"
                f" R: {start}"
            )
        lines["levels"] = f"{len(ladder)}, tau {ladder.maximum:.4g} to {ladder.minimum:.4g}, {ladder.training}"
    width = max(map(len, lines))
    for name, value in lines.items():
        for i, line in enumerate(value.split("\n")):
            print(f"{'' if i else name:<{width}}  {line}")


def _regions(run: Run, mixture: Mixture) -> str:
    """How they were found, how large they are, what for."""
    told = str(run.found)
    if run.config.noise.regions == "labels":
        told = f"{mixture.regions}, {mixture.covariance.structure.name} (the data's classes)"
    shares = [f"{share:.1%}" for share in mixture.weights.sort().values.tolist()]
    if len(shares) > _SHARES:
        shares[_SHARES // 2 : -_SHARES // 2] = ["..."]
    use = "each with its own noise" if run.model.noise.mixture is None else "each a Gaussian of the skip"
    return f"{told}; {use}; shares {' '.join(shares)}"


def _version(package: str, missing: str = "not installed") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return missing


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
