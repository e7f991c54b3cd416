"""The training loop: plain PyTorch over the public pieces, resumable at every checkpoint."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ansn.config import TrainConfig, differences, resumed, to_dict, validate
from ansn.covariance.choice import AUTO, Choice
from ansn.covariance.ranks import share_basis
from ansn.data import Dataset, iterate
from ansn.distributed import (
    agreed,
    any_rank,
    as_first,
    gathered,
    mean_over_ranks,
    of_each_rank,
    orphaned,
    part,
    processes,
    say_device,
    shard,
    together,
)
from ansn.errors import InputError
from ansn.files import write_atomic
from ansn.lock import Lock, alone
from ansn.loss import dsm_loss
from ansn.machine import asked_to_end, busy
from ansn.noise import Level
from ansn.training import build, checkpoint, learning
from ansn.training.build import DataInfo
from ansn.training.data import load, same_share
from ansn.training.progress import Reporter
from ansn.training.state import Running, State

_BUSY = 0.3  # of the cores' time, from which it is said
_SLOW = 0.1  # seconds a step, from which processes agree at each to go on


class Diverged(RuntimeError):
    """The loss is no number any more; the last good checkpoint was kept."""


class Interrupted(Exception):
    """Ctrl-C, a signal that asks to end, or the time limit came; a checkpoint was written, if there was a step."""


def train(config: TrainConfig) -> Path:
    """Run, or go on with, the training that ``config`` describes. Returns the run's folder.

    Raises InputError for settings or data that cannot be used, Diverged, and Interrupted after its checkpoint was
    written.
    """
    validate(config)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    begun = time.monotonic()
    with processes(config.run.device) as (rank, world, device), contextlib.ExitStack() as stack:
        if config.optim.batch_size % world:
            raise InputError(f"--batch-size: got {config.optim.batch_size}, expected a multiple of {world} processes")
        if config.run.shard and world == 1:
            raise InputError("--shard: got one process, expected several (torchrun --nproc-per-node N)")
        say_device(device)
        folder = Path(config.run.out)
        for link in (folder / "checkpoints", folder / "tensorboard"):
            if link.is_symlink():
                got = f"a link to {link.readlink()}"
                raise InputError(f"{link}: got {got}, expected a folder that can be written and deleted in; link --out")
        try:
            lock = together(lambda: stack.enter_context(alone(folder / ".lock", folder)) if rank == 0 else None, device)
        except OSError as error:
            raise InputError(f"--out: got {error.strerror} for {folder}, expected a folder to write in") from None
        if rank == 0 and device.type == "cpu" and torch.get_num_threads() > 1 and not config.run.threads:
            taken = busy()
            if taken > _BUSY:
                # Threads that wait for one that another program keeps from running make a step many times longer.
                print(f"{taken:.0%} of the cores' time is taken: --threads 1 may be many times faster", file=sys.stderr)
        config = same_share(config)
        try:
            trainer = Trainer(config, load(config).to(device), rank, world, device, lock)
        except KeyboardInterrupt:
            kept = checkpoint.steps(folder)
            told = f"its checkpoint of step {kept[0]} is there" if kept else "nothing was kept"
            raise Interrupted(f"{folder}: interrupted before the first step; {told}") from None
        try:
            return trainer.run(begun)
        finally:
            trainer.close()


class Trainer:
    """State of one process's part in a run. :func:`train` is the way in."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, rank: int, world: int, device: torch.device,
        lock: Lock | None = None,
    ) -> None:  # fmt: skip
        self.config, self.dataset, self.rank, self.world, self.device = config, dataset, rank, world, device
        self.folder, self.step, self.lock = Path(config.run.out), 0, lock
        self.info = DataInfo.of(dataset)
        stored = self._stored()
        config = self.config
        if stored:
            with checkpoint.fitting(self.folder):
                self.levels, self.structure, self.found = stored[1].levels, stored[1].structure, stored[1].found
                build.check_fits(config, self.info, len(self.levels), self.found, stored[0])
                self.regions = None if self.found is None else build.regions(config, self.info, self.found)
        else:
            # What is wrong with the network is said before minutes of looking at the data; rungs of any number.
            build.shapes(config, self.info, rungs=2)
            if rank == 0:
                print(*self.info.understood, sep="\n", file=sys.stderr)
            x, classes = build.first_rows(config.noise, dataset, config.run.seed)
            labels = classes if config.noise.regions == "labels" else None
            if rank == 0 and config.noise.structure == AUTO:
                print(f"choosing the covariance's structure by {len(x):,} rows", file=sys.stderr)
            region = None if build.mixed(config) else labels
            choice = agreed(build.structure(config, self.info, x, region), device)
            self.config = config = build.settled(config, self.info, choice.structure)
            self.regions, self.found = learning.regions(config, self.info, x, labels, choice, rank, device)
            if self.found is not None and not build.mixed(config):
                choice = Choice(self.found.structure)
            self.structure = choice
            if rank == 0 and self.structure.rows:
                print(f"structure: {self.structure}", file=sys.stderr)
            self.levels = agreed(
                build.ladder(config, self.info, self.structure.structure, x, region, self.regions), device
            )
        self.model = build.denoiser(config, self.info, self.structure.structure, self.levels, device, self.regions)
        self.covariance = self.model.noise.covariance
        if not stored:
            if rank == 0:
                size, rules = sum(p.numel() for p in self.model.network.parameters()), self.covariance.rules
                noise = "isotropic" if rules.isotropic else rules.family
                told = f"{config.network.network}, {size:,} parameters, {self.model.summary}; noise: {noise}"
                print(f"denoiser: {told}", file=sys.stderr)
            self.covariance.orient(x.to(device), None if region is None else region.to(device))
            share_basis(self.covariance.moments)
        if config.network.class_conditional and self.covariance.regions == 1:
            if stored and "classes" in stored[0]:
                self.model.noise.class_means = stored[0]["classes"]["means"].to(self.covariance.center)
            else:
                if stored:  # of a run from before classes were kept
                    x, classes = build.first_rows(config.noise, dataset, config.run.seed)
                assert classes is not None
                self.model.noise.center_classes(x, classes, self.info.num_classes)
        network = self.model.network
        self.ema = copy.deepcopy(network).requires_grad_(False) if config.optim.ema else None
        if stored:
            with checkpoint.fitting(self.folder):
                self._restore(*stored)
        if config.run.shard:
            for each in (network, self.ema):
                if each is not None:
                    shard(each, device)
        self.weights: list[Tensor] = list(network.parameters())
        self.averages: list[Tensor] = [] if self.ema is None else list(self.ema.parameters())
        self.copied = [] if self.ema is None else list(zip(self.ema.buffers(), network.buffers(), strict=True))
        # A fused step reads moments and gradients as they lie in memory, so all have their parameter's layout.
        self.optimizer = torch.optim.AdamW(
            self.weights, config.optim.lr, eps=config.optim.adam_eps, weight_decay=config.optim.weight_decay,
            fused=True,
        )  # fmt: skip
        if stored:
            with checkpoint.fitting(self.folder):
                checkpoint.unflatten_optimizer(self.optimizer, stored[0]["optimizer"], stored[1].groups)
        self.learners = learning.learners(config, self.model, self.found, len(dataset), self.step)
        self.loss_of = torch.compile(self._loss) if config.run.compile else self._loss
        if world > 1 and not config.run.shard:
            ids = [device.index] if device.type == "cuda" else None
            self.model.network = DistributedDataParallel(network, device_ids=ids)
        self.bare = network
        self._stop = False
        self.running = stored[1].running if stored else Running()
        self._condition: tuple[int, float] = (-1, math.nan)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self, begun: float | None = None) -> Path:
        """Train to the last step, writing metrics and checkpoints. See :func:`train` for what it raises. ``begun``: the
        monotonic time that ``--max-minutes`` counts from."""
        optim, run = self.config.optim, self.config.run
        end = math.inf if run.max_minutes is None else (begun or time.monotonic()) + 60 * run.max_minutes
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not run.resume:  # only now that settings and data are known to be good
                checkpoint.remove_all(self.folder)
            write_atomic(self.folder / "config.json", json.dumps(to_dict(self.config), indent=1) + "\n")
        self.model.train()
        batches = iterate(
            self.dataset, optim.batch_size, run.seed, self.step, self.rank, self.world, stop_step=optim.steps
        )
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        sums, since = self.running.loss, self.running.steps
        before = sums[self.rank] if len(sums) == self.world else math.fsum(sums) / len(sums)
        total = torch.tensor(before, dtype=torch.float64, device=self.device)
        timed, clock = self.step, time.perf_counter()
        every, looked = 10, time.monotonic()
        reporter = Reporter(self.folder, self.step, optim.steps, show=self.rank == 0)
        with asked_to_end(self._ask), reporter:
            for step, x, y in batches:
                loss, norm = self._train_step(step, x, y, self._known(step))
                self.step = step + 1
                # The gradient too: a loss that is a number may still ruin the weights.
                finite = finite & torch.isfinite(loss) & torch.isfinite(norm)
                total, since = total + loss, since + 1
                reporter.advance(self.step)
                # Ranks must agree to stop, which costs them a synchronisation: not at every step, but of slow ones.
                stop, now = False, time.monotonic()
                if self.world == 1 or self.step % every == 0:
                    stop = any_rank(self._stop or orphaned() or now > end, self.device)
                    slow = any_rank((now - looked) / every > _SLOW, self.device)
                    every, looked = 1 if slow else 10, now
                last = self.step == optim.steps
                # Reading a value waits for a GPU: only now and then there.
                if self.device.type == "cpu" or last or stop or self.step % run.log_every == 0:
                    self._guard(bool(finite))
                if self.step % run.log_every == 0 or last or stop:
                    seconds = time.perf_counter() - clock
                    reporter.record(self._metrics(mean_over_ranks(total) / since, float(norm), since, timed, seconds))
                    timed, clock = self.step, time.perf_counter()
                    if self.step % run.log_every == 0:  # what an interrupted run says in between counts again
                        total, since = torch.zeros_like(total), 0
                if last or stop or self.step % run.checkpoint_every == 0:
                    self._guard(bool(finite) and all(bool(part(p).isfinite().all()) for p in self.weights))
                    self.running = Running(of_each_rank(total), since)
                    self._save()
                if stop:
                    raise Interrupted(f"{self.folder}: interrupted at step {self.step}; its checkpoint is there")
        return self.folder

    def close(self) -> None:
        """Let go of the wrapper that holds the process group: it must not outlive the group."""
        self.model.network, self.loss_of = self.bare, self._loss

    def _known(self, step: int) -> Tensor | None:
        """Which numbers of this rank's rows of a step are known; None where all are."""
        if self.dataset.complete:
            return None
        size = self.config.optim.batch_size
        rows = self.dataset.batch_indices(step, size, self.config.run.seed).chunk(self.world)[self.rank]
        return self.dataset.known(rows)

    def _train_step(self, step: int, x: Tensor, y: Tensor | None, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """One update of covariance and weights. Everything random is a function of (seed, step, row)."""
        optim, row = self.config.optim, self.rank * x.shape[0]
        owner = self._owners(step, row, x, y)
        y = y if self.config.network.class_conditional else None
        region = None if build.mixed(self.config) else owner
        for learner, whose in zip(self.learners, (region, owner), strict=False):
            learner.update(x, whose)
        # Dropout too: nothing to store for a resumed run, and ranks that differ.
        seed = (self.config.run.seed * 1_000_003 + step * self.world + self.rank) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for GPUs that are not there
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        perturbed, level = self.model.noise.perturb(x, region, step=step, row=row)
        y = region if y is None else y  # regions that were found
        y = None if y is None else self.model.withhold(y, seed=self.config.run.seed, step=step, row=row)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.autocast):
            loss = self.loss_of(x, perturbed, level, y, known)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = optim.clip if optim.clip > 0 else math.inf
        norm = gathered(nn.utils.clip_grad_norm_(self.weights, limit))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * self._schedule(step)
        self.optimizer.step()
        if self.averages:
            # The decay grows to its value, so that the start is forgotten.
            decay = min(optim.ema, (1 + step) / (10 + step)) if step else 0.0
            with torch.no_grad():
                averages, weights = (list(map(part, values)) for values in (self.averages, self.weights))
                torch._foreach_lerp_(averages, weights, 1.0 - decay)
                for kept, buffer in self.copied:
                    kept.copy_(buffer)
        return loss.detach(), norm

    def _loss(self, x: Tensor, perturbed: Tensor, level: Level, y: Tensor | None, known: Tensor | None) -> Tensor:
        extra: dict[str, Any] = {} if y is None else {"y": y}
        return dsm_loss(self.model, x, perturbed, level, self.config.network.metric, known=known, **extra)

    def _owners(self, step: int, row: int, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """The region of each row, of noise or skip: its class, or drawn by how likely it is of each."""
        if self.config.noise.regions == "labels":
            return labels
        regions = self.regions
        if regions is None or regions.regions == 1 or (build.mixed(self.config) and regions.covariance.frozen):
            return None
        return regions.draw(x, seed=self.config.run.seed, row=row, step=step)

    def _schedule(self, step: int) -> float:
        """Factor on the learning rate at ``step``, counted from 0."""
        optim = self.config.optim
        if step < optim.warmup:
            return (step + 1) / optim.warmup
        if optim.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - optim.warmup) / max(optim.steps - optim.warmup, 1)))

    # -- guards and reports --------------------------------------------------------------------------------------

    def _guard(self, finite: bool) -> None:
        if any_rank(not finite, self.device):
            kept = checkpoint.steps(self.folder)
            where = (
                f"the checkpoint of step {kept[0]} was kept in {self.folder}" if kept else "no checkpoint was written"
            )
            raise Diverged(
                f"loss: it or its gradient is not a number any more, seen at step {self.step}; {where}."
                " A smaller --lr or a --clip may help"
            )

    def _ask(self) -> None:
        """The first time, end after the step at hand; the second time at once."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True

    def _metrics(self, loss: float, norm: float, steps: int, timed: int, seconds: float) -> dict[str, Any]:
        """``loss``: the mean of the last ``steps``; ``seconds``: since step ``timed``."""
        values = {
            "step": self.step,
            "loss": loss,
            "steps": steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
            "samples_per_s": (self.step - timed) * self.config.optim.batch_size / seconds,
            "seconds": seconds,
            "covariance_points": self.covariance.points,
        }
        if not self.covariance.rules.isotropic:
            values["condition_number"] = self._condition_number()
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}

    def _condition_number(self) -> float:
        """The worst region's, computed again only when R has changed."""
        at = self.covariance.seen_at_refresh
        if self._condition[0] != at:
            self._condition = (at, float(self.covariance.condition_number().max()))
        return self._condition[1]

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        optimizer, groups = checkpoint.flatten_optimizer(self.optimizer)
        tensors: dict[str, dict[str, Any]] = {}
        for name, covariance in build.covariances(self.model).items():
            tensors[name], pending = covariance.state_dict(), covariance.gathered()
            if pending:  # not merged now: no bit of a run may depend on when it was stored
                tensors[f"{name}-gathered"] = pending
        tensors |= {"network": self.bare.state_dict(), "optimizer": optimizer}
        if self.model.noise.class_means is not None:
            tensors["classes"] = {"means": self.model.noise.class_means}
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        where = "meta" if self.rank else "cpu"  # all ranks give their parts, and the first alone keeps the whole
        tensors = {group: {k: gathered(v).to(where) for k, v in kept.items()} for group, kept in tensors.items()}
        if self.rank:
            return
        if self.lock is not None:
            self.lock.check()
        state = {
            "config": to_dict(self.config),
            "data": dataclasses.asdict(self.info),
            "levels": dataclasses.asdict(self.levels),
            "structure": dataclasses.asdict(self.structure),
            "found": self.found and dataclasses.asdict(self.found),
            "groups": groups,
            "running": dataclasses.asdict(self.running),
        }
        checkpoint.save(self.folder, self.step, tensors, state)

    def _stored(self) -> tuple[dict[str, dict[str, Tensor]], State] | None:
        """The checkpoint to go on from, if there is one and it is of these settings and data."""
        if not self.config.run.resume or not checkpoint.steps(self.folder):
            return None
        load_step = functools.partial(checkpoint.load, self.folder)
        tensors, state = as_first(load_step, lambda loaded: loaded[1].step, self.device)
        if "optimizer" not in tensors:
            raise InputError(f"{self.folder}: got what ansn-export wrote, expected a run of ansn-train to go on with")
        before, data, found = state.config, state.data, state.found
        known = found.regions if found is not None and before.noise.regions != "labels" else None
        self.config = resumed(before, self.config, state.structure.structure, known)
        changed = differences(before, self.config)
        if changed:
            raise InputError(
                f"{self.folder}: got other settings ({'; '.join(changed)}), expected those of the run in it; "
                "give another --out, or --no-resume"
            )
        if data.content not in ("", self.info.content) or (data.shape, data.rows) != (self.info.shape, self.info.rows):
            raise InputError(
                f"{self.folder}: got other data ({self.info.name}, {self.info.rows:,} rows), expected that of the run"
                f" in it ({data.name}, {data.rows:,} rows of other values); give another --out"
            )
        return tensors, state

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: State) -> None:
        self.model.network.load_state_dict(tensors["network"])
        for group, covariance in build.covariances(self.model).items():
            covariance.load_state_dict(tensors[group])
            covariance.load_gathered(tensors.get(f"{group}-gathered", {}))
        self.step = state.step
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        if self.rank == 0:
            more = "" if self.step < self.config.optim.steps else ", which is all that --steps asks for"
            print(f"going on from step {self.step} in {self.folder}{more}", file=sys.stderr)
