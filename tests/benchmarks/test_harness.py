"""The benchmarks' own arithmetic: ratios, limits, and files that say what they were measured on."""

from __future__ import annotations

import csv
import json
import math
import time

import numpy as np
import pytest
import torch

from ansn import ops
from benchmarks import provenance, scaling, workloads
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
    # A table whose rows have as many cells as its header.
    assert found.row().count("|") == found.header().splitlines()[0].count("|")


def test_contenders_take_turns_and_a_bound_on_the_time_holds():
    begun = time.perf_counter()
    taken = interleave({"a": lambda: time.sleep(0.02), "b": lambda: None}, rounds=1000, seconds=0.2)
    assert time.perf_counter() - begun < 5.0
    assert len(taken["a"]) == len(taken["b"]) < 1000
    assert np.median(taken["a"]) > 0.02 > np.median(taken["b"])


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_table_says_what_it_was_measured_on(tmp_path, suffix):
    path = tmp_path / "made" / f"table.{suffix}"
    provenance.save(path, [{"name": "a, b", "us": 1.5}, {"name": "c", "GB/s": 2.0}])
    if suffix == "json":
        held = json.loads(path.read_text())
        origin, rows = held["provenance"], held["rows"]
    else:
        lines = path.read_text().splitlines()
        origin = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert {"date", "commit", "machine", "threads", "isa", "torch"} <= set(origin)
    assert str(origin["torch"]) == torch.__version__
    assert [row["name"] for row in rows] == ["a, b", "c"]
    assert float(rows[0]["us"]) == 1.5


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path: got 'table\.txt', expected a name that ends in \.csv or \.json"):
        provenance.save(tmp_path / "table.txt", [])


def test_every_operation_has_a_line_in_the_scaling_plots_and_every_workload_runs():
    made = {}
    for line in scaling.lines():
        work = line.make(line.values[0])
        made[work.name] = work
    assert {work.operation for work in made.values()} == set(ops.operations())
    with torch.no_grad():
        for work in made.values():
            work.ours()
            work.eager()
            assert work.nbytes > 0


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
