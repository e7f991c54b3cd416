"""Math section 8, items 8 and 9: resuming continues bit for bit; one seed, one noise in any batch and back end."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, dsm_loss, levels, networks, ops, sample
from ansn.covariance import STRUCTURES
from tests.oracles import randn
from tests.tolerances import BATCH_INVARIANCE, RATIO, rms_ratio

SHAPE = (2, 2)


def build(structure: str = "dense") -> tuple[Denoiser, torch.optim.Optimizer]:
    torch.manual_seed(0)
    noise = NoiseModel(AdaptiveCovariance(SHAPE, structure=structure), levels.karras(5.0, 0.05), seed=7)
    model = Denoiser(networks.MLP(SHAPE, hidden=16, blocks=1), noise)
    return model, torch.optim.SGD(model.network.parameters(), lr=0.05)


def train(model: Denoiser, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        x = randn(12, *SHAPE, seed=step, dtype=torch.float32) + 1.0
        model.noise.update(x)
        if step == 11:
            model.noise.covariance.freeze()
        loss = dsm_loss(model, x, *model.noise.perturb(x, step=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("pause", [3, 10, 12, 15])
def test_resuming_continues_bit_for_bit(structure, pause):
    """Before and after the freeze: weights, covariance, losses and samples."""
    model, optimizer = build(structure)
    losses = train(model, optimizer, 0, 20)
    first, its = build(structure)
    begun = train(first, its, 0, pause)
    resumed, other = build(structure)
    resumed.load_state_dict(load(save(first.state_dict())))
    assert begun + train(resumed, other, pause, 20) == losses
    assert bits(resumed) == bits(model)
    assert torch.equal(sample(resumed, 5, "heun", 4), sample(model, 5, "heun", 4))


def test_r_does_not_change_after_the_freeze():
    model, optimizer = build()
    train(model, optimizer, 0, 12)
    before = {name: b.clone() for name, b in model.noise.covariance.named_buffers()}
    train(model, optimizer, 12, 20)
    sample(model, 4, "langevin", 2)
    for name, buffer in model.noise.covariance.named_buffers():
        assert torch.equal(buffer, before[name])


def halves(noise: NoiseModel, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """As two ranks would perturb a batch."""
    parts = [noise.perturb(x[i : i + 6], step=step, row=i) for i in (0, 6)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1].tau for p in parts])


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ranks_draw_the_noise_of_the_whole_batch(name, structure):
    model, optimizer = build(structure)
    train(model, optimizer, 0, 3)
    x = randn(12, *SHAPE, dtype=torch.float32)
    with ops.backend(name):
        whole, level = model.noise.perturb(x, step=5)
        parts, taus = halves(model.noise, x, step=5)
    assert torch.equal(taus, level.tau)
    assert rms_ratio(parts, whole) < 1e-6


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("method", ["heun", "langevin"])
def test_back_ends_agree_on_the_samples(structure, method):
    """Training levels, perturbation and samples: those of the reference."""
    model, optimizer = build(structure)
    train(model, optimizer, 0, 12)
    x = randn(12, *SHAPE, dtype=torch.float32)
    results = {}
    for name in ("auto", "reference"):
        with ops.backend(name):
            results[name] = (*model.noise.perturb(x, step=5)[:1], sample(model, 6, method, 5, seed=1))
    assert rms_ratio(results["auto"][0], results["reference"][0]) < 10 * RATIO["colored_step"][torch.float32]
    spread = float(results["reference"][1].std())
    assert float((results["auto"][1] - results["reference"][1]).abs().max()) < BATCH_INVARIANCE * max(1.0, spread)
