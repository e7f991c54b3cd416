"""Published weights of NCSN and NCSNv2, by Song and Ermon's module names (github.com/ermongroup/ncsn and ncsnv2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .normalization import InstanceNormPlus
from .refinenet import RefineNet

# What stages and RefineNet blocks are called, in the order in which they are run: Deepest has its added ones as "31".
_STAGES = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 3 31 4 5"}
_REFINE = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 31 3 4 5"}
_OUTSIDE = {"stem": "begin_conv", "norm": "normalizer", "output": "end_conv"}
_INSIDE = {"adapt": "adapt_convs", "fuse": "msf", "pool": "crp", "output": "output_convs"}


def from_published(state: Mapping[str, Tensor], network: RefineNet) -> dict[str, Tensor]:
    """The state_dict of `network` that holds the published weights; `network.load_state_dict` takes it.

    A published checkpoint is a list, of which the first item is a state_dict: `torch.load(path, weights_only=True)[0]`,
    and NCSNv2's last one, `[-1]`, the moving average of the same names, which the paper samples with. Each tensor is
    used once, as it is; a level's row of NCSN's norms is cut into gamma, alpha and beta. `module.` before all names
    (DataParallel) is removed. NCSNv2's `sigmas` is the ladder, no weight, and left out: give the network `sigma`.

    Args:
        state: published names to tensors.
        network: NCSN, NCSNv2, NCSNv2Deeper or NCSNv2Deepest of the same channels, `ngf` and `num_levels`, as published:
            no labels, no embedding of the level, one input; NCSN with levels.

    Raises:
        ValueError: `NAME: got X, expected Y` for a name that is missing or unknown, a wrong shape, another network.
    """
    if network.inputs != 1 or network.embedding is not None or getattr(network, "num_levels", 1) == 0:
        kind = type(network).__name__
        raise ValueError(f"network: got {kind} of other norms or inputs, expected {kind} as published")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    given = {name.removeprefix(prefix): value for name, value in state.items()}
    given.pop("sigmas", None)
    out: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        if not isinstance(module, InstanceNormPlus | nn.Conv2d):
            continue
        name = _name(path, network)
        if isinstance(module, InstanceNormPlus) and module.num_levels:
            rows = _take(given, f"{name}.embed.weight", (module.num_levels, 3 * module.channels))
            out |= {f"{path}.{k}": v for k, v in zip(("gamma", "alpha", "beta"), rows.chunk(3, 1), strict=True)}
        else:
            out |= {f"{path}.{k}": _take(given, f"{name}.{k}", v.shape) for k, v in module.named_parameters()}
    if given:
        raise ValueError(f"{next(iter(given))}: got a name of no module, expected those of {type(network).__name__}")
    return out


def _take(given: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    value = given.pop(name, None)
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        got = "nothing" if value is None else f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name}: got {got}, expected shape {list(shape)}")
    return value


def _name(path: str, network: RefineNet) -> str:
    """The published name of the norm or convolution at `path`."""
    head, *rest = path.split(".")
    if not rest:
        return _OUTSIDE[head]
    depth, at = len(network.stages), int(rest[0])
    if head == "stages":
        block, part = rest[1:]
        pooled = network.get_submodule(f"stages.{at}.{block}").down and part in ("conv2", "shortcut")
        return f"res{_STAGES[depth].split()[at]}.{block}.{part.replace('norm', 'normalize')}{'.conv' if pooled else ''}"
    *branch, kind, index = rest[2:]
    if rest[1] in ("adapt", "output"):  # units of two convolutions, counted from 1
        unit, place = divmod(int(index), 2)
        inside = ".".join([*branch, f"{unit + 1}_{place + 1}_{kind[:-1]}"])
    else:
        inside = f"{kind}.{index}"
    return f"refine{_REFINE[depth].split()[at]}.{_INSIDE[rest[1]]}.{inside}"
