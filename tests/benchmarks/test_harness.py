"""The benchmarks' own arithmetic: ratios, limits, and files that say what they were measured on."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from ansn import ops
from benchmarks import bench_cholesky, bench_colored_step, bench_separable, peers, provenance, table, workloads
from benchmarks.gpu import speed
from benchmarks.harness import Comparison, interleave

SECONDS = {
    "ansn": np.array([1e-3, 2e-3, 1e-3]),
    "eager": np.array([3e-3, 4e-3, 2e-3]),
    "compile": np.array([5e-3, 5e-3, 5e-3]),
    "other library": np.array([1e-4, 1e-4, 1e-4]),
}


def comparison(**counted) -> Comparison:
    return Comparison("x", SECONDS, copy_bandwidth=1e9, matrix_rate=1e11, **counted)


def test_the_best_peer_is_torch_and_the_ratio_is_by_rounds():
    found = comparison()
    assert found.best == "eager"  # a peer library is no torch, however fast
    assert found.ratio("eager") == (2.0, 2.0, 2.5)
    assert Comparison("x", {"ansn": np.ones(2), "azula": np.ones(2)}).best == "azula"


@pytest.mark.parametrize(
    ("counted", "bound", "share"),
    [
        ({"bytes": 500_000}, "copy", 0.5),
        ({"flops": 10**7}, "matrix", 0.1),
        ({"bytes": 10**5, "flops": 5 * 10**7}, "matrix", 0.5),
        ({"bytes": 10**6, "flops": 10**6}, "copy", 1.0),
        ({}, "", math.nan),
    ],
)
def test_the_limit_is_the_nearer_one(counted, bound, share):
    found = comparison(**counted)
    assert found.bound == bound
    assert found.share == pytest.approx(share, nan_ok=True)
    assert found.record()["bound"] == bound


def test_contenders_take_turns_and_a_bound_on_the_time_holds():
    begun = time.perf_counter()
    taken = interleave({"a": lambda: time.sleep(0.02), "b": lambda: None}, rounds=1000, seconds=0.2)
    assert time.perf_counter() - begun < 5.0
    assert len(taken["a"]) == len(taken["b"]) < 1000
    assert np.median(taken["a"]) > 0.02 > np.median(taken["b"])


def test_a_table_says_what_it_was_measured_on(tmp_path):
    path = tmp_path / "made" / "table.csv"
    provenance.save(path, [{"name": "a, b", "us": 1.5}, {"name": "c", "GB/s": 2.0}])
    lines = path.read_text().splitlines()
    origin = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    assert {"date", "commit", "machine", "threads", "isa", "torch", "packages"} <= set(origin)
    assert origin["torch"] == torch.__version__
    assert f"numpy {np.__version__}" in origin["packages"]
    assert [(row["name"], row["us"]) for row in table.read(path)] == [("a, b", "1.5"), ("c", "")]


def test_every_operation_has_a_workload_and_every_workload_runs():
    made = [make() for make in speed.plan("cpu", quick=True)]
    assert {work.operation for work in made} == set(ops.operations())
    with torch.no_grad():
        for work in made:
            work.ours()
            work.eager()
            assert work.nbytes > 0


@pytest.mark.parametrize(
    ("bench", "size"),
    [
        (bench_separable.test_step, (bench_separable.IMAGE, 0)),
        (bench_separable.test_update, (bench_separable.DIGIT, 0)),
        (bench_separable.test_filter, (bench_separable.IMAGE, 0)),
        (bench_separable.test_filter, (bench_separable.DIGIT, 0)),
        (bench_separable.test_mixture, (0.1, 0)),
        (bench_separable.test_mixture, (3.0, 0)),
        (bench_colored_step.test_product, (16, 48, 0)),
        (bench_cholesky.test_factor, (10, 8, "float64", 0, 0)),
    ],
)
def test_the_kernel_is_measured_and_the_contenders_compute_the_same(bench, size):
    """Else the ratio would be the reference's, or compare different jobs."""
    seen = []

    def against(name, work, others=None, **_):
        calls = {"ansn": work.ours, "eager": work.eager} if isinstance(work, workloads.Workload) else work
        outs = [call() for call in (calls | (others or {})).values()]
        seen.append(name)
        if outs[0] is None or "step" in name:  # in place, or noise of each one's own
            return
        first, *rest = (torch.as_tensor(out[0] if isinstance(out, tuple) else out) for out in outs)
        for other in rest:
            torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-3)

    with ops.backend("native"):
        bench(against, *size)
    assert seen


def test_the_peer_updates_the_state_as_the_operation_does():
    """Else the ratio would compare two different jobs."""
    for size in ((7, 5), (6, 5, 6), (7, 5, 1, "diagonal")):
        work = workloads.update("cpu", *size)
        _, _, mean, scatter, _, _ = work.ours.args
        work.ours()
        work.eager()
        plain_mean, plain_scatter, *_ = work.arguments
        assert torch.allclose(mean.reshape(plain_mean.shape), plain_mean, rtol=1e-5, atol=1e-7)
        ours, eager = scatter.reshape(plain_scatter.shape), plain_scatter
        if "diagonal" not in work.name:
            ours, eager = ours.tril(), eager.tril()
        assert torch.allclose(ours, eager, rtol=1e-4, atol=1e-5)
    work = workloads.update("cpu", 7, 5)
    mean, scatter, x, count = (part.clone() if isinstance(part, torch.Tensor) else part for part in work.arguments)
    peers.update(mean.numpy(), scatter.numpy(), x.numpy(), count)
    work.eager()
    assert torch.allclose(mean, work.arguments[0], rtol=1e-5, atol=1e-7)
    assert torch.allclose(scatter.tril(), work.arguments[1].tril(), rtol=1e-4, atol=1e-5)
