"""Copies of modules that share their tensors: how a network is called in evaluation mode while it trains."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Refused(Exception):
    """What cannot be copied, and why."""


class Copy:
    """Copies of ``modules``, in evaluation mode; of any other module the module itself.

    A copy has the dictionaries of parameters and buffers themselves, so it follows what is put there, and every
    attribute; but what refers to a module that is copied (a list of modules, a bound method) refers to its copy.
    ``constant``: parameters that require grad are the same memory, without.
    """

    def __init__(self, modules: Iterable[nn.Module], constant: bool) -> None:
        self.known, self.constant = {id(m): m for m in modules}, constant
        self.made: dict[int, Any] = {}
        self.weights: dict[int, nn.Parameter] = {}

    def of(self, module: Any) -> Any:
        """The copy. Raises Refused."""
        if id(module) not in self.known:
            return module
        if id(module) in self.made:
            return self.made[id(module)]
        kind = type(module)
        if isinstance(module, DistributedDataParallel):  # which would talk to other processes
            self.made[id(module)] = self.of(module.module)
        elif kind.__name__ == "OptimizedModule":  # torch.compile's
            self.made[id(module)] = self._fresh(kind(self.of(module._orig_mod), module.dynamo_ctx))
        elif isinstance(module, torch.jit.ScriptModule) or any(c.__name__ == "FSDPModule" for c in kind.__mro__):
            raise Refused(f"{kind.__name__} cannot be copied")
        else:
            self._plain(module)
        return self.made[id(module)]

    def _plain(self, module: nn.Module) -> None:
        out = self.made[id(module)] = object.__new__(type(module))
        # The last one is a call that was compiled, with the module in it: the copy is called as it is written.
        apart = "_parameters", "_buffers", "_compiled_call_impl"
        out.__dict__ = {name: self._referring(value) for name, value in vars(module).items() if name not in apart}
        out.__dict__["_parameters"] = self._weights(module._parameters) if self.constant else module._parameters
        out.__dict__["_buffers"] = module._buffers
        self._fresh(out)

    def _fresh(self, module: nn.Module) -> nn.Module:
        module.training = False
        return module

    def _weights(self, parameters: dict[str, nn.Parameter | None]) -> dict[str, nn.Parameter | None]:
        return {name: self._constant(p) if p is not None and p.requires_grad else p for name, p in parameters.items()}

    def _constant(self, parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) not in self.weights:
            out = self.weights[id(parameter)] = parameter.detach()  # type: ignore[assignment]
            out.__class__ = type(parameter)
            out.__dict__.update(vars(parameter))
        return self.weights[id(parameter)]

    def _referring(self, value: Any) -> Any:
        """An attribute, with copies in place of modules that are copied."""
        if isinstance(value, nn.Module):
            return self.of(value)
        if isinstance(value, types.MethodType) and id(value.__self__) in self.known:
            return types.MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, functools.partial):
            parts = self._referring(value.func), self._referring(value.args), self._referring(value.keywords)
            same = parts[0] is value.func and parts[1] is value.args and parts[2] is value.keywords
            return value if same else functools.partial(parts[0], *parts[1], **parts[2])
        if type(value) in (list, tuple):
            items = [self._referring(v) for v in value]
            return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
        if isinstance(value, dict):
            changed = {k: new for k, v in value.items() if (new := self._referring(v)) is not v}
            if not changed:
                return value
            out = value.copy()
            out.update(changed)
            return out
        if isinstance(value, types.FunctionType):
            self._check_closure(value, set())
        return value

    def _check_closure(self, function: types.FunctionType, seen: set[int]) -> None:
        """Refuses a function that has a module, which trains, in itself."""
        seen.add(id(function))
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            for one in held if isinstance(held, (list, tuple)) else held.values() if type(held) is dict else (held,):
                if id(one) in self.known or id(getattr(one, "__self__", None)) in self.known:
                    raise Refused(f"function {function.__qualname__} calls a module that trains")
                if isinstance(one, types.FunctionType) and id(one) not in seen:
                    self._check_closure(one, seen)
