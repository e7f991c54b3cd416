"""NCSN and NCSNv2 against the published structure: counts, shapes by stage, an independent forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ansn.networks import NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from ansn.networks.normalization import Condition, InstanceNormPlus
from tests.networks.helpers import TOL, awaken, count


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        assert count(NCSN(channels=1, ngf=64, num_levels=10)) == 7_638_657
        assert count(NCSNv2(channels=3, ngf=128)) == 29_694_083


def conv_shapes(module: torch.nn.Module) -> list[tuple[tuple[int, ...], bool, tuple[int, int]]]:
    return [
        (tuple(m.weight.shape), m.bias is not None, m.dilation)
        for m in module.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]


@pytest.mark.parametrize("network", [NCSN(1, ngf=4, num_levels=3), NCSNv2(1, ngf=4)], ids=["ncsn", "ncsnv2"])
def test_convolutions_of_every_stage(network):
    def conv(outputs, inputs, k=3, bias=True, d=1):
        return ((outputs, inputs, k, k), bias, (d, d))

    n, m = 4, 8
    expected = [
        [conv(n, n)] * 4,
        [conv(n, n), conv(m, n), conv(m, n, k=1), conv(m, m), conv(m, m)],
        [conv(m, m, d=2)] * 5,
        [conv(m, m, d=4)] * 5,
    ]
    assert [sorted(conv_shapes(stage)) for stage in network.stages] == [sorted(e) for e in expected]

    def refine(inputs, outputs, units):
        adapt = [conv(c, c, bias=False) for c in inputs for _ in range(4)]
        fuse = [conv(outputs, c) for c in inputs] if len(inputs) > 1 else []
        return adapt + fuse + [conv(outputs, outputs, bias=False)] * (2 + 2 * units)

    expected = [refine([m], m, 1), refine([m, m], m, 1), refine([m, m], n, 1), refine([n, n], n, 3)]
    assert [sorted(conv_shapes(block)) for block in network.refine] == [sorted(e) for e in expected]
    assert conv_shapes(network.stem) == [conv(n, 1)]
    assert conv_shapes(network.output) == [conv(1, n)]


def test_norms_and_pools_of_the_two_networks():
    def norms(module):
        return [m for m in module.modules() if isinstance(m, InstanceNormPlus)]

    ncsn, ncsnv2 = NCSN(1, ngf=4, num_levels=3), NCSNv2(1, ngf=4)
    # Two a residual block, one before the output; NCSN adds one for each convolution of a RefineNet block.
    assert len(norms(ncsnv2)) == 17
    refine_convs = sum(len(conv_shapes(block)) for block in ncsn.refine)
    assert len(norms(ncsn)) == 17 + refine_convs
    assert all(m.gamma.shape == (3, m.channels) for m in norms(ncsn))
    assert all(m.gamma.shape == (m.channels,) for m in norms(ncsnv2))
    assert all(isinstance(b.pool.pool, torch.nn.AvgPool2d) for b in ncsn.refine)
    assert all(isinstance(b.pool.pool, torch.nn.MaxPool2d) for b in ncsnv2.refine)


# The published forward pass, written once more without the package's rearrangements: instance norm by torch,
# one mean pool per branch by strided sums, every fusion resized even where the sizes agree.


def oracle_norm(norm: torch.nn.Module, x: Tensor, level: Tensor | None) -> Tensor:
    if not isinstance(norm, InstanceNormPlus):
        return x
    pick = (lambda p: p[level]) if level is not None else (lambda p: p[None])
    gamma, alpha, beta = (pick(p)[..., None, None] for p in (norm.gamma, norm.alpha, norm.beta))
    means = x.mean((2, 3))
    means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
    return gamma * (F.instance_norm(x, eps=1e-5) + alpha * means[..., None, None]) + beta


def oracle_pool(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def oracle(network: torch.nn.Module, x: Tensor, level: Tensor | None) -> Tensor:
    def residual(block, h):
        u = block.conv1(F.elu(oracle_norm(block.norm1, h, level)))
        u = block.conv2(F.elu(oracle_norm(block.norm2, u, level)))
        shortcut = h if block.shortcut is None else block.shortcut(h)
        return oracle_pool(shortcut) + oracle_pool(u) if block.down else shortcut + u

    def units(module, h):
        for i in range(0, len(module.convs), 2):
            u = module.convs[i](F.elu(oracle_norm(module.norms[i], h, level)))
            h = module.convs[i + 1](F.elu(oracle_norm(module.norms[i + 1], u, level))) + h
        return h

    def refine(block, xs):
        hs = [units(a, h) for a, h in zip(block.adapt, xs, strict=True)]
        h = hs[0]
        if block.fuse is not None:
            h = sum(
                F.interpolate(
                    conv(oracle_norm(norm, u, level)),
                    size=xs[0].shape[2:],
                    mode="bilinear",
                    align_corners=True,
                )
                for norm, conv, u in zip(block.fuse.norms, block.fuse.convs, hs, strict=True)
            )
        h = path = F.elu(h)
        for norm, conv in zip(block.pool.norms, block.pool.convs, strict=True):
            path = oracle_norm(norm, path, level)
            if isinstance(network, NCSN):
                path = F.avg_pool2d(path, 5, stride=1, padding=2, count_include_pad=True)
            else:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            path = conv(path)
            h = h + path
        return units(block.output, h)

    h = network.stem(2 * x - 1)
    layers = []
    for stage in network.stages:
        h = residual(stage[1], residual(stage[0], h))
        layers.append(h)
    h = refine(network.refine[0], [layers[3]])
    h = refine(network.refine[1], [layers[2], h])
    h = refine(network.refine[2], [layers[1], h])
    h = refine(network.refine[3], [layers[0], h])
    return network.output(F.elu(oracle_norm(network.norm, h, level)))


@pytest.mark.parametrize("kind", ["ncsn", "ncsn unconditional", "ncsnv2"])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (12, 16)])
def test_forward_is_the_published_one(kind, size):
    torch.manual_seed(0)
    network = {
        "ncsn": lambda: NCSN(2, ngf=6, num_levels=3),
        "ncsn unconditional": lambda: NCSN(2, ngf=6, num_levels=None),
        "ncsnv2": lambda: NCSNv2(2, ngf=6),
    }[kind]()
    awaken(network.double())
    x = torch.rand(3, 2, *size, dtype=torch.float64)
    level = torch.tensor([2, 0, 1]) if kind == "ncsn" else None
    torch.testing.assert_close(network(x, level), oracle(network, x, level), **TOL["float64"])


@pytest.mark.parametrize(("size", "inner"), [(28, 14), (32, 16), (8, 4), (7, 4)])
def test_dilated_stages_keep_the_resolution(size, inner):
    network = NCSNv2(1, ngf=4)
    shapes = []
    for stage in network.stages:
        stage[1].register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[1:])))
    out = network(torch.rand(2, 1, size, size))
    assert shapes == [(4, size, size)] + [(8, inner, inner)] * 3
    assert out.shape == (2, 1, size, size)


def test_output_is_divided_by_sigma():
    network = NCSNv2(1, ngf=4)
    x, sigma = torch.rand(3, 1, 8, 8), torch.tensor([50.0, 1.0, 0.01])
    torch.testing.assert_close(network(x, sigma=sigma), network(x) / sigma[:, None, None, None])


def test_unconditional_networks_ignore_the_level():
    x = torch.rand(2, 1, 8, 8)
    for network in (NCSN(1, ngf=4, num_levels=0), NCSNv2(1, ngf=4)):
        assert network.conditioning == "none"
        assert torch.equal(network(x), network(x, torch.tensor([1, 2])))


def test_level_conditioning_starts_as_the_unconditional_network_and_then_matters():
    torch.manual_seed(3)
    plain = NCSNv2(1, ngf=4)
    told = NCSNv2(1, ngf=4, conditioning="log", num_classes=3)
    assert count(told) > count(plain)
    told.load_state_dict(plain.state_dict(), strict=False)
    x, level = torch.rand(4, 1, 8, 8), torch.linspace(-1.7, 1.7, 4)
    torch.testing.assert_close(told(x, level), plain(x))
    awaken(told)
    same = x[:1].expand(4, -1, -1, -1)
    assert (told(same, level)[1:] - told(same, level)[:-1]).abs().amax((1, 2, 3)).min() > 1e-4
    y = torch.tensor([0, 1, 2, 3])
    assert (
        told(same, level[:1].expand(4), y)[1:] - told(same, level[:1].expand(4), y)[:-1]
    ).abs().amax() > 1e-4


def test_each_level_of_ncsn_has_its_own_norm():
    network = awaken(NCSN(1, ngf=4, num_levels=3))
    x = torch.rand(1, 1, 8, 8)
    outs = [network(x, torch.tensor([i])) for i in range(3)]
    assert min((outs[i] - outs[j]).abs().max() for i, j in [(0, 1), (0, 2), (1, 2)]) > 1e-3


# --- InstanceNorm++


def test_norm_matches_its_formula():
    torch.manual_seed(0)
    norm = awaken(InstanceNormPlus(5).double())
    x = torch.randn(3, 5, 6, 7, dtype=torch.float64) * 3 + 1
    out = norm(x, Condition())
    for b in range(3):
        mu = [x[b, c].mean() for c in range(5)]
        m = sum(mu) / 5
        v = sum((u - m) ** 2 for u in mu) / 4
        for c in range(5):
            normal = (x[b, c] - mu[c]) / torch.sqrt(((x[b, c] - mu[c]) ** 2).mean() + 1e-5)
            expected = (
                norm.gamma[c] * (normal + norm.alpha[c] * (mu[c] - m) / torch.sqrt(v + 1e-5)) + norm.beta[c]
            )
            torch.testing.assert_close(out[b, c], expected, **TOL["float64"])


def test_norm_initialisation():
    torch.manual_seed(0)
    norm = InstanceNormPlus(4000)
    for p in (norm.gamma, norm.alpha):
        assert abs(p.mean().item() - 1) < 2e-3
        assert abs(p.std().item() - 0.02) < 2e-3
    assert not norm.beta.any()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 1, 1, 1), (2, 1, 3, 3), (2, 4, 1, 5)])
def test_norm_has_no_nan_at_its_edges(shape):
    norm = InstanceNormPlus(shape[1])
    x = torch.rand(shape, requires_grad=True)
    out = norm(x, Condition())
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


def test_norm_of_a_constant_image_is_finite():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    out = InstanceNormPlus(3)(x, Condition())
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


def test_means_keep_float32_in_half_precision():
    # In bfloat16, 1000 and 1001 are one number; their standardised difference must survive.
    x = torch.stack([torch.full((8, 8), 1000.0), torch.full((8, 8), 1008.0)])[None].bfloat16()
    x[0, 0, ::2] = 1008.0
    norm = InstanceNormPlus(2)
    torch.nn.init.ones_(norm.gamma)
    torch.nn.init.ones_(norm.alpha)
    means = norm(x, Condition()).float().mean((2, 3))
    torch.testing.assert_close(means, torch.tensor([[-(0.5**0.5), 0.5**0.5]]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("cls", "least"), [(NCSN, 4), (NCSNv2, 4), (NCSNv2Deeper, 8), (NCSNv2Deepest, 16)])
def test_too_small_an_image_is_refused(cls, least):
    network = cls(1, ngf=4, **({"num_levels": 0} if cls is NCSN else {}))
    assert torch.isfinite(network(torch.rand(2, 1, least, least + 1))).all()
    for size in (1, least - 1):
        with pytest.raises(ValueError, match=f"x: got {size}x{size}, expected at least {least}x{least}"):
            network(torch.rand(1, 1, size, size))
        with pytest.raises(ValueError, match=f"shape: got {size}x{size}, expected at least .* for {cls.__name__}"):
            cls.for_shape((1, size, size))


@pytest.mark.parametrize("network", [NCSN(2, 4, None, inputs=2), NCSNv2(2, 4, inputs=2)], ids=["ncsn", "ncsnv2"])
def test_rescale_maps_every_input(network):
    x = torch.rand(2, 4, 8, 8)
    rescaled = awaken(network)(x)
    network.rescale = False
    assert torch.equal(network(2 * x - 1), rescaled)
