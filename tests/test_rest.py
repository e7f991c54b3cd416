"""A model that trains is called in evaluation mode by a copy of its modules: of networks as people write them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, log_likelihood, sample
from ansn.denoiser import resting, with_mode
from ansn.sampling import Draw

D = 3


class Net(nn.Module):
    """Dropout and a batch norm show whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(D), nn.Dropout(0.5), nn.Linear(D, D)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.line(self.drop(self.norm(x)))


class Listed(Net):
    """Parts in a list and in a dictionary, and an activation that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.named, self.kept = [self.norm, self.drop], {"line": self.line}, {}
        self.lock = threading.Lock()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        self.kept["x"] = x
        return self.named["line"](x)


class Bound(Net):
    """Methods as attributes, plain and in a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.way, self.end = self.way_of, functools.partial(self.end_of, factor=2.0)

    def way_of(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))

    def end_of(self, x: Tensor, factor: float) -> Tensor:
        return factor * self.line(x)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.end(self.way(x))


class Shared(Net):
    """One weight in two places, with an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(D, D)
        self.again.weight = self.line.weight
        self.line.weight.scale = 0.5

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.again(super().forward(x, level)) * self.line.weight.scale


def with_line(change: Callable[[nn.Linear], nn.Module]) -> Callable[[], Net]:
    def made() -> Net:
        net = Net()
        net.line = change(net.line)
        return net

    return made


def hooked() -> Net:
    net, kept = Net(), []
    net.line.register_forward_hook(lambda module, given, out: kept.append(out))
    return net


def compiled() -> nn.Module:
    return torch.compile(Net(), backend="eager")


def compiled_in_place() -> Net:
    net = Net()
    net.compile(backend="eager")
    return net


NETWORKS = {
    "plain": Net, "lists": Listed, "methods": Bound, "tied": Shared, "hook": hooked,
    "weight norm": with_line(nn.utils.parametrizations.weight_norm),
    "spectral norm": with_line(nn.utils.parametrizations.spectral_norm),
    "old weight norm": with_line(nn.utils.weight_norm), "compiled": compiled, "compiled in place": compiled_in_place,
}  # fmt: skip


def model(make: Callable[[], nn.Module]) -> Denoiser:
    torch.manual_seed(0)
    x = torch.randn(200, D)
    noise = NoiseModel(AdaptiveCovariance(D).update(x).freeze(), levels.karras(5.0, 0.05))
    made = Denoiser(make(), noise)
    for _ in range(3):
        made.network(x, torch.zeros(200))
    return made.train()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_it_is_as_after_eval_and_nothing_is_changed(make: Callable[[], nn.Module]) -> None:
    one, x = model(make), torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    drawn, density = sample(one, 4, steps=3), log_likelihood(one, x, steps=2, trace="exact").log_density
    assert all(m.training for m in one.modules())
    assert all(p.requires_grad and p.grad is None for p in one.parameters())
    assert torch.equal(drawn, sample(one.eval(), 4, steps=3))
    torch.testing.assert_close(density, log_likelihood(one, x, steps=2, trace="exact").log_density)


def test_a_copy_shares_what_is_put_in_the_model_later() -> None:
    one = model(Net)
    draw, copy = Draw(one, steps=3), resting(one)
    assert resting(one.eval()) is one
    one.train()
    assert not any(m.training for m in with_mode(copy))
    assert copy.network.line.weight is one.network.line.weight
    for change in (
        lambda: one.network.line.weight.data.mul_(2.0),
        lambda: setattr(one.network.line.weight, "data", torch.randn(D, D)),
        lambda: one.network.load_state_dict({k: v + 1 for k, v in one.network.state_dict().items()}, assign=True),
        lambda: setattr(one.network.line, "weight", nn.Parameter(torch.randn(D, D))),
    ):
        before = draw.batch(0, 4)
        change()
        after = draw.batch(0, 4)
        assert not torch.equal(after, before)
        assert torch.equal(after, sample(one, 4, steps=3))


def closed(one: Denoiser) -> None:
    forward = one.network.forward
    one.network.forward = lambda *args: forward(*args)


def wrapped(one: Denoiser) -> None:
    net = one.network

    @functools.wraps(net.forward)
    def calls(*args: Tensor) -> Tensor:
        return Net.forward(net, *args)

    one.network.forward = calls


def sharded(one: Denoiser) -> None:
    one.network.__class__ = type("FSDPModule", (Net,), {})


@pytest.mark.parametrize("change", [closed, wrapped, sharded])
def test_what_would_go_on_training_is_refused_until_it_is_in_evaluation_mode(change: Callable[..., None]) -> None:
    one = model(Net)
    change(one)
    for call in (lambda: sample(one, 2, steps=2), lambda: log_likelihood(one, torch.zeros(1, D), steps=1)):
        with pytest.raises(ValueError, match=r"^model: got one in training mode whose .*, expected model\.eval\(\)"):
            call()
    one.eval()
    assert torch.equal(sample(one, 2, steps=2), sample(one, 2, steps=2))
    assert log_likelihood(one, torch.zeros(1, D), steps=1).log_density.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_threads_draw_while_another_trains() -> None:
    one, failed = model(NETWORKS["old weight norm"]), []

    def draws() -> None:
        try:
            for _ in range(10):
                assert sample(one, 4, steps=2).isfinite().all()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=draws) for _ in range(3)]
    for thread in threads:
        thread.start()
    optimizer = torch.optim.SGD(one.parameters(), 1e-3)
    while any(thread.is_alive() for thread in threads):
        one(torch.randn(8, D), 0.5).square().mean().backward()
        optimizer.step()
    assert not failed
    assert all(m.training for m in one.modules())
