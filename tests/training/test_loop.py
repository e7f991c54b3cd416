"""What a step does: learning rate, clipping, averaged weights, covariance, metrics, each against its formula."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ansn.data import iterate, load_dataset
from ansn.errors import InputError
from ansn.sampling import sample
from ansn.training import build, checkpoint, export_run, load_run, train
from ansn.training import trainer as trainer_module
from ansn.training.data import load
from ansn.training.progress import Reporter, read_metrics
from ansn.training.trainer import Trainer
from tests.tolerances import EXACT
from tests.training.helpers import assert_same_tensors, metrics, small, tensors, trained, trainer

FLOAT32 = 1e-6  # relative: a few dozen roundings
FACTOR = 1e-6  # relative: a float32 factor, squared


class Watched(Trainer):
    """Keeps the weights after every step, and the gradient as the optimiser sees it."""

    def run(self) -> Path:
        self.after: list[list[Tensor]] = []
        self.gradients: list[float] = []
        update = self.optimizer.step

        def step(*args: Any, **options: Any) -> Any:
            rows = [p.grad.double().flatten() for p in self.bare.parameters() if p.grad is not None]
            self.gradients.append(float(torch.cat(rows).norm()))
            return update(*args, **options)

        self.optimizer.step = step  # type: ignore[method-assign]
        return super().run()

    def _train_step(self, *args: Any) -> Any:
        out = super()._train_step(*args)
        self.after.append([p.detach().double().clone() for p in self.bare.parameters()])
        return out


def watch(out: Path, **settings: Any) -> Watched:
    config = small(out, **settings)
    watched = Watched(config, load(config), 0, 1, torch.device("cpu"))
    watched.run()
    return watched


def batches(run: Path, until: int) -> tuple[np.ndarray, np.ndarray]:
    """The digits that steps 0 .. until-1 saw and their labels, float64."""
    config = load_run(run).config
    seen = list(iterate(load_dataset("digits"), config.optim.batch_size, config.run.seed, stop_step=until))
    x = torch.cat([x for _, x, _ in seen]).double().flatten(1)
    y = torch.cat([y for _, _, y in seen if y is not None])
    return x.numpy(), y.numpy()


# -- optimiser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ema", "steps"), [(0.9, 30), (0.995, 30), (0.0001, 5)])
def test_averaged_weights_against_a_loop_by_hand(tmp_path: Path, ema: float, steps: int) -> None:
    run = watch(tmp_path, ema=ema, steps=steps, lr=1e-2)
    average = run.after[0]
    for t, weights in enumerate(run.after[1:], start=1):
        decay = min(ema, (1 + t) / (10 + t))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    names = [name for name, _ in run.bare.named_parameters()]
    stored = tensors(tmp_path)
    far = 0.0
    for name, a, w in zip(names, average, run.after[-1], strict=True):
        torch.testing.assert_close(stored[f"ema/{name}"].double(), a, rtol=1e-5, atol=FLOAT32)
        torch.testing.assert_close(stored[f"network/{name}"].double(), w, rtol=0, atol=0)
        far = max(far, float((a - w).abs().max()))
    assert ema < 0.5 or far > 1e-3  # the average is not just the weights


def test_load_run_gives_the_average_or_the_weights(tmp_path: Path) -> None:
    run = trained(tmp_path, lr=1e-2)
    stored = tensors(run)
    for ema, group in ((True, "ema"), (False, "network")):
        for name, value in load_run(run, ema=ema).model.network.state_dict().items():
            assert torch.equal(value, stored[f"{group}/{name}"]), name


def test_no_average_is_kept_without_ema(tmp_path: Path) -> None:
    run = trained(tmp_path, ema=0.0, steps=3)
    assert not any(name.startswith("ema/") for name in tensors(run))
    for name, value in load_run(run, ema=True).model.network.state_dict().items():
        assert torch.equal(value, tensors(run)[f"network/{name}"])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_learning_rates(tmp_path: Path, schedule: str, warmup: int) -> None:
    run = trained(tmp_path, schedule=schedule, warmup=warmup, steps=30, log_every=1, lr=2e-3)
    for t, line in enumerate(metrics(run)):
        expected = 2e-3
        if t < warmup:
            expected *= (t + 1) / warmup
        elif schedule == "cosine":
            expected *= 0.5 * (1 + math.cos(math.pi * (t - warmup) / (30 - warmup)))
        assert line["lr"] == pytest.approx(expected, rel=EXACT), t
    last = metrics(run)[-1]["lr"]
    assert last == 2e-3 if schedule == "constant" else last < 2e-5


def test_a_warm_up_longer_than_the_run(tmp_path: Path) -> None:
    run = trained(tmp_path, schedule="cosine", warmup=100, steps=5, log_every=1, lr=1e-3)
    assert [line["lr"] for line in metrics(run)] == pytest.approx([1e-5, 2e-5, 3e-5, 4e-5, 5e-5])


def test_clipping(tmp_path: Path) -> None:
    free = watch(tmp_path / "free", clip=0.0, steps=8, log_every=1)
    norms = [line["gradient_norm"] for line in metrics(tmp_path / "free")]
    assert free.gradients == pytest.approx(norms, rel=1e-5)
    limit = min(norms) / 2
    held = watch(tmp_path / "held", clip=limit, steps=8, log_every=1)
    assert held.gradients == pytest.approx([limit] * 8, rel=1e-3)
    reported = metrics(tmp_path / "held")
    assert all(line["gradient_norm"] > limit for line in reported), "the norm before clipping is what is reported"
    loose = watch(tmp_path / "loose", clip=1e6, steps=8)
    assert loose.gradients == free.gradients


def test_adam_eps_and_weight_decay_reach_the_optimiser(tmp_path: Path) -> None:
    built = trainer(small(tmp_path, adam_eps=1e-5, weight_decay=0.25, lr=3e-4))
    (group,) = built.optimizer.param_groups
    assert (group["eps"], group["weight_decay"], group["lr"]) == (1e-5, 0.25, 3e-4)


def test_the_fused_step_is_adamw_and_an_older_run_goes_on_without_it(tmp_path: Path) -> None:
    """Of weights whose channels are last: the fused step of a CPU reads memory and asks for no layout."""
    settings: dict[str, Any] = {"network": "unet", "width": 8, "multipliers": (1, 2), "steps": 6, "checkpoint_every": 3}
    built = [trainer(small(tmp_path / name, **settings)) for name in ("fused", "older")]
    built[1].optimizer.param_groups[0]["fused"] = None
    for one in built:
        one.run()
        for p in one.bare.parameters():
            assert p.grad is not None
            assert {v.stride() for v in (p.grad, *one.optimizer.state[p].values()) if v.ndim} <= {p.stride()}
    fused, older = (tensors(one.folder) for one in built)
    assert any(not p.is_contiguous() for p in built[0].bare.parameters())
    assert built[0].optimizer.param_groups[0]["fused"]
    for name, value in fused.items():
        assert torch.allclose(value, older[name], rtol=1e-4, atol=1e-6), name
    shutil.rmtree(built[1].folder / "checkpoints" / "step-00000006")
    assert_same_tensors(tensors(train(built[1].config)), older)


# -- covariance ------------------------------------------------------------------------------------------------


def test_covariance_is_that_of_the_data_seen(tmp_path: Path) -> None:
    run = trained(tmp_path, steps=25)
    x, _ = batches(run, 25)
    covariance = load_run(run).model.noise.covariance
    assert covariance.seen == 25 * 32 == float(covariance.count)
    scale = np.abs(np.cov(x.T)).max()
    np.testing.assert_allclose(covariance.mean[0].numpy(), x.mean(0), rtol=0, atol=EXACT)
    np.testing.assert_allclose(covariance.covariance()[0].numpy(), np.cov(x.T), rtol=0, atol=EXACT * scale)


def test_frozen_covariance_does_not_change_a_bit(tmp_path: Path) -> None:
    """freeze_after = 300 at batches of 32: the tenth batch is the last one learned."""
    run = trained(tmp_path, freeze_after=300)
    covariance = load_run(run).model.noise.covariance
    assert covariance.frozen
    assert covariance.seen == 320
    x, _ = batches(run, 10)
    s = np.cov(x.T)
    np.testing.assert_allclose(covariance.covariance()[0].numpy(), s, rtol=0, atol=EXACT * np.abs(s).max())
    # R = (1 - rho) t I + rho S + eps I of exactly these points: the last refresh was at the freeze.
    trace = np.trace(s) / 64
    eps = max(1e-3 * trace, 1 / (12 * 16**2))  # the digits have 17 grey levels
    r = 0.5 * s + (0.5 * trace + eps) * np.eye(64)
    np.testing.assert_allclose(covariance.noise_shape()[0].numpy(), r, rtol=0, atol=FACTOR * np.abs(r).max())

    early, late = ({k: v for k, v in tensors(run, step).items() if k.startswith("covariance/")} for step in (30, 40))
    assert all(torch.equal(early[k], late[k]) for k in late)
    assert {line["covariance_points"] for line in metrics(run) if line["step"] >= 10} == {320}
    assert len({line["condition_number"] for line in metrics(run) if line["step"] >= 10}) == 1


def test_without_a_limit_it_learns_on(tmp_path: Path) -> None:
    run = trained(tmp_path, freeze_after=None)
    covariance = load_run(run).model.noise.covariance
    assert not covariance.frozen
    assert [line["covariance_points"] for line in metrics(run)] == [32 * s for s in range(5, 41, 5)]
    assert any(not torch.equal(v, tensors(run, 30)[k]) for k, v in tensors(run).items() if k.startswith("covariance/"))


def test_one_covariance_for_each_class(tmp_path: Path) -> None:
    run = trained(tmp_path, structure="dense", regions="labels", class_conditional=True, freeze_after=None)
    x, y = batches(run, 40)
    covariance = load_run(run).model.noise.covariance
    assert covariance.count.tolist() == np.bincount(y, minlength=10).tolist()
    for k in range(10):
        s = np.cov(x[y == k].T)
        np.testing.assert_allclose(covariance.mean[k].numpy(), x[y == k].mean(0), rtol=0, atol=EXACT)
        np.testing.assert_allclose(covariance.covariance()[k].numpy(), s, rtol=0, atol=EXACT * np.abs(s).max())
    losses = [line["loss"] for line in metrics(run)]
    assert all(math.isfinite(v) for v in losses)


def test_regions_need_labels_and_a_network_that_knows_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--regions: got labels, expected --class-conditional"):
        train(small(tmp_path, regions="labels"))
    rows = tmp_path / "rows.npy"
    np.save(rows, np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    for settings in ({"regions": "labels", "class_conditional": True}, {"class_conditional": True}):
        with pytest.raises(InputError, match=r"rows.npy.*, expected a labelled data set"):
            train(small(tmp_path, dataset=str(rows), **settings))


def test_a_wrong_network_is_refused_before_the_data_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "first_rows", lambda *_: pytest.fail("looked"))
    for network in ("mlp", "unet"):
        with pytest.raises(InputError, match=r"dropout: got 2"):
            train(small(tmp_path, network=network, dropout=2.0))


@pytest.mark.parametrize(("taken", "threads", "said"), [(0.6, None, True), (0.1, None, False), (0.6, 2, False)])
def test_busy_cores_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: float,
    threads: int | None, said: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer_module, "busy", lambda: taken)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises(InputError, match="missing"):
        train(small(tmp_path, threads=threads, dataset=str(tmp_path / "missing.npy")))
    assert ("60% of the cores' time is taken: --threads 1" in capsys.readouterr().err) == said


# -- levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"tau_max": 0.0}, {"tau_max": 0.001}, {"tau_min": 0.0}, {"rungs": 0}, {"rungs": 1}])
@pytest.mark.parametrize("kind", ["karras", "geometric"])
def test_levels_that_make_no_ladder_are_refused(tmp_path: Path, kind: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "[-_]")):
        train(small(tmp_path, ladder=kind, **wrong))


def test_the_papers_single_level(tmp_path: Path) -> None:
    config = small(tmp_path, ladder="paper")
    built = trainer(config)
    assert built.levels.tau == pytest.approx((2.4 / math.sqrt(64),))
    assert build.DataInfo.of(built.dataset).shape == (1, 8, 8)


# -- learning, and what is told of it --------------------------------------------------------------------------


def test_the_loss_falls(tmp_path: Path) -> None:
    toy = {"dataset": "toy2d", "skip": "wiener", "width": 64}
    run = trained(tmp_path, batch_size=128, steps=300, lr=3e-3, log_every=50, **toy)
    losses = [line["loss"] for line in metrics(run)]
    # EDM's weight makes it 1 for the linear part of the preconditioning alone; much of that is the floor.
    assert losses[0] == pytest.approx(1.0, rel=0.05)
    assert losses[-1] < 0.9


def test_autocast_trains_to_nearly_the_same(tmp_path: Path) -> None:
    plain, half = (
        [line["loss"] for line in metrics(trained(tmp_path / str(flag), autocast=flag, steps=20, log_every=1))]
        for flag in (False, True)
    )
    assert half != plain
    assert half == pytest.approx(plain, rel=0.02)


@pytest.mark.slow
def test_compiled_training_is_the_same_to_rounding(tmp_path: Path) -> None:
    plain, compiled = (
        metrics(trained(tmp_path / str(flag), compile=flag, steps=20, log_every=1)) for flag in (False, True)
    )
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-4)


def test_lines_of_metrics(tmp_path: Path) -> None:
    run = trained(tmp_path, steps=12, log_every=5)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert all(line["samples_per_s"] > 0 and line["seconds"] > 0 and line["condition_number"] >= 1 for line in lines)
    # A line's loss is the mean over the steps since the last one.
    single = [line["loss"] for line in metrics(trained(tmp_path / "each", steps=12, log_every=1))]
    means = [np.mean(single[:5]), np.mean(single[5:10]), np.mean(single[10:])]
    assert [line["loss"] for line in lines] == pytest.approx(means, rel=1e-5)
    assert list((run / "tensorboard").glob("events*"))


def test_progress_survives_a_number_that_json_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A singular R has no condition number, and an overflow no norm: such values are written as null."""
    values = {"step": 1, "loss": 1.0, "samples_per_s": 2.0, "condition_number": None, "gradient_norm": None}
    with Reporter(tmp_path, 0, 2, show=True) as reporter:
        reporter.record(values)
    assert read_metrics(tmp_path / "metrics.jsonl") == [values]
    assert "loss 1.0000" in capsys.readouterr().err


def test_checkpoints_come_at_the_interval_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda run, step, *rest: saved.append(step) or save(run, step, *rest))
    run = trained(tmp_path, steps=25)
    assert saved == [10, 20, 25]
    assert checkpoint.steps(run) == [25, 20]


# -- label dropout ---------------------------------------------------------------------------------------------


def test_the_network_is_not_told_withheld_labels_and_the_region_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Tensor, Tensor]] = []
    loss_of = Trainer._loss

    def hook(self: Trainer, x: Tensor, perturbed: Tensor, level: Any, y: Tensor, known: Tensor | None) -> Tensor:
        told.append((level.region, y))
        return loss_of(self, x, perturbed, level, y, known)

    monkeypatch.setattr(Trainer, "_loss", hook)
    trained(tmp_path, class_conditional=True, regions="labels", label_dropout=0.25)
    region, y = (torch.cat(parts) for parts in zip(*told, strict=True))
    hidden = y == 10
    assert torch.equal(region[~hidden], y[~hidden])
    assert bool((region[hidden] < 10).all())
    n = len(y)
    assert abs(float(hidden.double().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)


@pytest.mark.parametrize("label_dropout", [0.0, 0.2])
def test_no_class_is_learned_only_where_labels_are_withheld(tmp_path: Path, label_dropout: float) -> None:
    settings = {"class_conditional": True, "label_dropout": label_dropout, "ema": 0.0}
    fresh = trainer(small(tmp_path / "fresh", **settings)).bare.state_dict()["embedding.table.weight"].clone()
    run = trained(tmp_path / "run", **settings)
    table = tensors(run)["network/embedding.table.weight"]
    assert not torch.equal(table[:10], fresh[:10])
    assert torch.equal(table[10], fresh[10]) == (label_dropout == 0.0)
    assert load_run(run).model.label_dropout == label_dropout


def test_samples_of_a_class_start_about_the_class_s_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rows that the run begins with, also from a stored run and an exported one, whatever the skip."""
    run = load_run(trained(tmp_path / "run", class_conditional=True, label_dropout=0.1, skip="mixture", regions=2))
    data = load_dataset("digits")
    x, labels = data.batch(data.order(run.config.run.seed, 0))
    means = torch.stack([*(x[labels == k].mean(0) for k in range(10)), x.mean(0)])
    torch.testing.assert_close(run.model.noise.class_means, means, rtol=0, atol=1e-6)
    exported = load_run(export_run(run, tmp_path / "out", "out")).model.noise
    assert torch.equal(exported.class_means, run.model.noise.class_means)
    starts, y = [], torch.arange(600) % 11
    prior = exported.prior

    def kept(*args: Any, **options: Any) -> Tensor:
        starts.append((options["y"], prior(*args, **options)))
        return starts[-1][1]

    monkeypatch.setattr(type(exported), "prior", lambda self, *args, **options: kept(*args, **options))
    sample(run.model, 600, steps=1, y=y)
    seen, start = (torch.cat(parts) for parts in zip(*starts, strict=True))
    assert torch.equal(seen, y)
    away = (start - means[y]).flatten(1)
    error = away.std() / len(away) ** 0.5
    assert bool((away.mean(0).abs() < 5 * error).all())
    assert bool((away[y == 0].mean(0).abs() < 5 * away.std() / int((y == 0).sum()) ** 0.5).all())
