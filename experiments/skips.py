"""What should a denoiser know before it learns, and what should its network see?

    python -m experiments.skips --data PATH

The denoiser begins as EDM's preconditioning (``scalar``), as the best one of the data's covariance (``wiener``) or of
regions found in the data (``mixture``), and its network sees that estimate or does not; regional noise, and the control
that tells it from conditioning on the region. Every arm has its own learning rate, for the metric that is reported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import ansn
from ansn.covariance import find
from ansn.skips import SKIPS, Seen, further_input
from experiments import mode_collapse
from experiments.lab import figure, statistics, training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import Problem, problem
from experiments.lab.statistics import Estimate, Sooner, crossings, estimate, listed, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, Setup, Trained, fit, floors, one_copy, reference
from experiments.structures import spectrum

CONTROL = "scalar"
ARMS = {
    "scalar": Setup("rho=0"),
    "scalar, seen": Setup("scalar+estimate rho=0"),
    "scalar, wiener seen": Setup("scalar+filtered rho=0"),
    "wiener": Setup("wiener rho=0"),
    "wiener, seen": Setup("wiener+estimate rho=0"),
    "mixture 10": Setup("mixture10 rho=0"),
    "mixture 10, seen": Setup("mixture10+estimate rho=0"),
    "mixture 50": Setup("mixture50 rho=0"),
    "mixture 50, seen": Setup("mixture50+estimate rho=0"),
    "mixture auto": Setup("mixtureauto rho=0"),
    "mixture auto, seen": Setup("mixtureauto+estimate rho=0"),
    "told 10": Setup("wiener rho=0", labels="network", found=10),
    "regions 10": Setup("wiener rho=0.5", labels="regions", found=10),
    "regions 10, rho=0": Setup("wiener rho=0", labels="regions", found=10),
    "told classes": Setup("wiener rho=0", labels="network"),
    "regions classes": Setup("wiener rho=0.5", labels="regions"),
}
RELATIVES = {
    "wiener, residual seen": Setup("wiener+residual rho=0"),
    "wiener, estimate and residual seen": Setup("wiener+estimate+residual rho=0"),
    "mixture 10, estimate and regions seen": Setup("mixture10+estimate+regions rho=0"),
    "wiener, estimate and deviation seen": Setup("wiener+estimate+deviation rho=0"),
}
"""Further inputs of the same kind, looked at where a run is cheap."""

PLACES = {"eight modes": ("eight", 1.0, 5.0, 0.5), "two modes": ("two", 0.1, 5.0, 0.8)}
"""Of :mod:`experiments.mode_collapse`: where the Wiener skip learns modes that are apart in a small direction late."""
IMAGES = ("digits", "mnist28", "cifar10")
RATES = (1e-3, 3e-3)
STEPS = {
    "eight modes": (75, 150, 300, 600),
    "two modes": (75, 150, 300, 600),
    "digits": (50, 100, 200, 400),
    "table": (25, 50, 100, 200, 400),
    "fields": (50, 100, 200, 400),
    "mnist28": (100, 200, 400, 800),
    "cifar10": (100, 200, 400),
}
FEW = (4, 8)  # evaluations, besides the problem's own
LEVELS = (0.1, 0.3, 1.0, 2.0)
REGIONS = ((1, "auto"), (10, "auto"), (32, "auto"), ("auto", "auto"), (10, "dense"))
"""Number and structure; dense ones up to 1,000 dimensions."""
METRICS = {
    "fd": "Frechet distance",
    "loss": "held-out weighted loss",
    "nll": "held-out negative log-likelihood, nats a dimension",
    "tv": "mode weights, total variation",
    "cov": "covariance of a mode, relative error",
}


@further_input
def filtered(seen: Seen) -> Tensor:
    """The Wiener estimate, whatever the skip."""
    return (SKIPS["wiener"].estimate(seen) - seen.mean) / seen.scale


@further_input
def residual(seen: Seen) -> Tensor:
    """``(tau L)^-1 (x~ - D_skip)``."""
    white = seen.noise.covariance.whiten(seen.x - seen.estimate, seen.region)
    return white / seen.tau_column


@further_input
def deviation(seen: Seen) -> Tensor:
    """Deviation of each coordinate given ``x~``, if the data were Gaussian, over the data's."""
    pencil = seen.noise.covariance.pencil
    weights = pencil.posterior(seen.tau, seen.region).to(seen.x.dtype)
    return pencil.structure.squares(weights, pencil.basis).sqrt().reshape(seen.x.shape) / seen.scale


@further_input
def regions(seen: Seen) -> Tensor:
    """Means of the mixture's regions, weighted by what ``x~`` says of them."""
    mixture = seen.noise.mixture
    assert mixture is not None
    shares = mixture.responsibilities(seen.x, seen.tau * seen.noise.deviation).to(seen.x.dtype)
    return ((shares @ mixture.means.flatten(1)).reshape(seen.x.shape) - seen.mean) / seen.scale


def cells(settings: Settings) -> list[Cell]:
    """One a problem and arm: its rates, then all seeds."""
    if settings.quick:
        return [{"problem": p, "arm": a, "steps": 20, "seeds": 2} for p in ("table", "two modes") for a in ARMS][::4]
    images = [name for name in ("mnist28", "cifar10") if settings.data is not None]
    out: list[Cell] = []
    for name, at in STEPS.items():
        if name in ("mnist28", "cifar10") and name not in images:
            continue
        arms = [a for a in (*ARMS, *RELATIVES) if _has(name, a)]
        out += [{"problem": name, "arm": a, "steps": at[-1], "seeds": 5 if name != "cifar10" else 2} for a in arms]
    return out + [{"problem": name, "arm": "start", "steps": 0, "seeds": 1} for name in ("digits", *images)]


def _has(name: str, arm: str) -> bool:
    if name == "cifar10":
        return arm in ("scalar", "wiener", "wiener, seen", "mixture 10, seen")
    if arm in RELATIVES:
        return name in ("digits", "fields")
    if name == "digits":
        return True
    if "classes" in arm:
        return name == "two modes"
    return "50" not in arm and arm not in ("mixture auto", "scalar, wiener seen")


@cache
def _problem(name: str, data: Path | None) -> Problem:
    if name not in PLACES:
        return problem(name, data)
    modes, half, ratio, share = PLACES[name]
    return mode_collapse.modes_problem({"modes": modes, "half": half, "ratio": ratio, "share": share})


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Quality of one arm on one problem at every step, for every seed, at the rate that is best for each metric."""
    learned = _problem(cell["problem"], settings.data)
    if cell["arm"] == "start":
        return _start(learned)
    at = tuple(step for step in STEPS[cell["problem"]] if step <= cell["steps"]) or (cell["steps"],)
    image = len(learned.shape) == 3 and learned.dim > 64
    base = replace(
        (ARMS | RELATIVES)[cell["arm"]], steps=at[-1], batch_size=64 if image else 128, decay=0.5, root=None,
        structure="separable" if image else "dense",
    )  # fmt: skip
    keys = {
        "loss": partial(training.held_out_loss, problem=learned),
        "fd": partial(training.distance, problem=learned, seed=TUNING_SEED),
    }
    if cell["problem"] in PLACES:
        keys["fd"] = lambda t: mode_collapse.judge(t.sample(1000, evaluations=20), *PLACES[cell["problem"]])["tv"]
    untuned = settings.quick or cell["problem"] == "cifar10"
    grid = RATES[1:] if untuned else RATES
    rates = training.tuned_for(learned, training.halfway(base), grid, keys)
    floor, out = floors(learned), []
    for rate in sorted(set(rates.values())):
        for_ = "+".join(name for name, value in rates.items() if value == rate)
        for seed in range(cell["seeds"]):
            for trained in fit(learned, replace(base, seed=seed, lr=rate), at):
                found = _judged(trained, learned, seed, cell["problem"], for_, trained.step == at[-1])
                out.append({
                    "for": for_, "seed": seed, "step": trained.step, "lr": rate, **found, **floor,
                    "seconds": round(trained.seconds, 3), "start": trained.model.noise.levels.start,
                    "regions": getattr(trained.model.noise.mixture, "regions", None),
                })  # fmt: skip
    return out


def _judged(
    trained: Trained, learned: Problem, seed: int, name: str, for_: str, last: bool
) -> dict[str, float | None]:
    """What is reported of a run at the rate that is best ``for_`` some metrics."""
    out: dict[str, float | None] = {"loss": training.held_out_loss(trained, learned)}
    if name in PLACES:
        judged = mode_collapse.judge(trained.sample(1000, evaluations=20, seed=seed), *PLACES[name])
        return out | judged | mode_collapse.floor(seed, *PLACES[name])
    if "fd" in for_:
        x = trained.sample(len(learned.test), evaluations=learned.evaluations, seed=seed)
        out["fd"] = training.frechet(x, learned)
        if name == "cifar10":
            out["spectrum"] = _off(x, reference(learned))
        for method, count in product(("dpmpp_2m", "gaussian_2m"), FEW if last else ()):
            out[f"fd_{method}_{count}"] = training.frechet(trained.sample(len(x), method, count, seed=seed), learned)
    # Over the regions that were found the density is summed; over classes it would be another sum.
    if last and "loss" in for_ and (trained.shares is None or trained.model.noise.covariance.regions > 1):
        held = one_copy(learned.test)[: learned.likelihood_rows]
        out["nll"] = -float(trained.log_likelihood(held, learned.likelihood_steps).mean()) / learned.dim
    return out


def _off(x: Tensor, data: Tensor) -> float:
    return float((spectrum(x) / spectrum(data)).log().square().mean().sqrt())


def _start(learned: Problem) -> list[Row]:
    """Error of each skip before any training, over the data's variance, and of the regions' samples."""
    train, held = one_copy(learned.train), one_copy(learned.test)
    rows, floor = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))], floors(learned)
    variance, out = float(train.flatten(1).var(0).mean()), []
    for count, structure in REGIONS:
        if structure == "dense" and learned.dim > 1000:
            continue
        found, told = find(rows[:10_000], count, structure, eps_floor=learned.train.quantisation)
        for batch in rows[10_000:].split(500):
            found.update(batch)
        found.covariance.freeze()
        for level in LEVELS:
            sigma = level * math.sqrt(variance)
            noisy = [ansn.ops.colored_step(part, b=sigma, seed=i) for i, part in enumerate(held.split(250))]
            clean = torch.cat([found.denoise(part, sigma) for part in noisy])
            error = float((clean - held).square().mean()) / variance
            out.append({"k": f"{count} {structure}".removesuffix(" auto"), "regions": told.regions,
                        "structure": told.structure, "tau": level, "error": error} | floor)  # fmt: skip
        drawn = found.sample(len(held)).float()
        nll = -float(found.log_prob(held, found.rounding).mean()) / learned.dim
        out[-1] |= {"fd": training.frechet(drawn, learned), "nll": nll}
    return out


# -- what the rows say -------------------------------------------------------------------------------------------

TUNED = {"fd": "fd", "tv": "fd", "cov": "fd", "loss": "loss", "nll": "loss"}
"""What the rate was chosen by where a metric is reported."""
_ONE_LOSS = [arm for arm, setup in (ARMS | RELATIVES).items() if not setup.labels]
"""Arms whose losses are of one noise and one knowledge, and so comparable."""


def of(rows: Sequence[Row], problem: str, arm: str, metric: str) -> list[Row]:
    """Rows of an arm at the rate that is best for a metric; none where it has no such number."""
    mine = [r for r in select(rows, problem=problem, arm=arm) if TUNED[metric] in str(r["for"]).split("+")]
    return [r for r in mine if r.get(metric) is not None] if metric != "loss" or arm in _ONE_LOSS else []


def last(rows: Sequence[Row]) -> list[Row]:
    """Rows of the last step."""
    return [row for row in rows if row["step"] == max(r["step"] for r in rows)]


def gain(
    rows: Sequence[Row], problem: str, arm: str, metric: str, control: str = CONTROL, at: str = "step"
) -> Sooner | None:
    """How many times fewer steps (seconds) than the control an arm needs to the control's mean at its last step."""
    ours, theirs = of(rows, problem, arm, metric), of(rows, problem, control, metric)
    if not ours or not theirs:
        return None
    end = last(theirs)
    target = estimate([r[metric] for r in end]).mean
    stop = estimate([r[at] for r in end]).mean
    first = min(r[at] for r in ours)
    reached_at = crossings(ours, metric, target, at)
    return statistics.sooner(reached_at, dict.fromkeys(reached_at, stop), first, stop)


def compared(rows: Sequence[Row], problem: str, arm: str, metric: str, control: str = CONTROL) -> Estimate | None:
    """Paired difference at the last step; below 0 is better."""
    ours, theirs = of(rows, problem, arm, metric), of(rows, problem, control, metric)
    return paired(last(ours), last(theirs), metric) if ours and theirs else None


def section(rows: list[Row], folder: Path) -> Section:
    starts, runs = select(rows, arm="start"), [r for r in rows if r["arm"] != "start"]
    problems = unique(runs, "problem")
    tables = [_start_table(starts, name) for name in unique(starts, "problem")]
    tables += [_table(runs, name) for name in problems]
    return Section(
        "What should a denoiser know before it learns, and what should its network see?",
        _answer(runs, problems),
        "`scalar` begins as EDM's preconditioning, `wiener` as the best denoiser of the data's covariance, `mixture K`"
        " of K regions found in the data without labels; `seen`: the network is given that estimate as further input"
        " (for `scalar` that is a wider layer and nothing new; `scalar, wiener seen` has the Wiener estimate as input"
        " alone). Noise is isotropic but for `regions`, whose noise has each region's own shape (rho = 0.5) and whose"
        " network is told the region; `told` is told and has isotropic noise. Adam, rate falling to 0 over the second"
        " half, averaged weights, batch 128 (images 64); each arm's rate is the better of 1 and 3e-3 under a seed that"
        " no result uses, for Frechet distance (shares of modes) and for held-out loss apart (CIFAR-10: 3e-3). Five"
        " seeds (CIFAR-10 two), paired.",
        tables, [_figure(runs, problems, folder)] if problems else (), _findings(runs, problems, starts),
        "longer runs and larger networks; other numbers of regions; natural images beyond 400 steps.",
    )  # fmt: skip


def _start_table(rows: Sequence[Row], name: str) -> tuple[str, str]:
    mine, lines = select(rows, problem=name), []
    for k in unique(mine, "k"):
        own = select(mine, k=k)
        one = select(mine, k=mine[0]["k"])
        errors = [f"{r['error']:.5f} ({r['error'] / o['error'] - 1:+.0%})" for r, o in zip(own, one, strict=True)]
        end = own[-1]
        generated = (f"{end['fd']:.3g}", f"{end['nll']:.3f}")
        lines.append([f"{k}: {own[0]['regions']}", own[0]["structure"], *errors, *generated])
    told = f"{name}, no training: error of denoising over the data's variance (against one Gaussian) at four levels,"
    told += " and the mixture as a generative model (Frechet distance of its samples, floor"
    told += f" {mine[0]['fd_floor']:.3g}; nats a dimension)"
    return told, table(["regions", "structure", *map(str, LEVELS), "fd", "nll"], lines)


def _table(rows: Sequence[Row], name: str) -> tuple[str, str]:
    metrics = ("tv", "cov", "loss") if name in PLACES else ("fd", "loss", "nll")
    arms, lines = list(dict.fromkeys(r["arm"] for r in select(rows, problem=name))), []
    for arm in arms:
        line = [arm]
        for metric in metrics:
            own = of(rows, name, arm, metric)
            line.append(f"{estimate([r[metric] for r in last(own)]).mean:.4g}" if own else "")
            found = compared(rows, name, arm, metric) if arm != CONTROL else None
            line.append(found.show(2) if found else "")
            for at in ("step", "seconds") if metric in _TIMED else ():
                found_ = gain(rows, name, arm, metric, at=at) if arm != CONTROL else None
                line.append(found_.show(1) if found_ else "")
        line.append(_cost(rows, name, arm))
        lines.append(line)
    timed = ("fewer steps", "less time")
    head = [part for m in metrics for part in (m, "less scalar", *(timed if m in _TIMED else ()))]
    end = max(r["step"] for r in select(rows, problem=name))
    floor = select(rows, problem=name)[0]
    bounded = [m for m in ("fd", "tv", "cov") if m in metrics and floor.get(f"{m}_floor")]
    told = ", ".join(f"{METRICS[m]} {floor[f'{m}_floor']:.3g}" for m in bounded)
    caption = f"{name} after {end} steps; floors: {told}; fewer steps, and less time, to the control's mean at its end"
    return caption, table(["arm", *head, "time"], lines)


def _cost(rows: Sequence[Row], name: str, arm: str) -> str:
    own, control = (last(of(rows, name, a, "fd" if name not in PLACES else "tv")) for a in (arm, CONTROL))
    if not own or not control:
        return ""
    return f"{sum(r['seconds'] for r in own) / len(own) / (sum(r['seconds'] for r in control) / len(control)):.2f}"


def _answer(rows: Sequence[Row], problems: Sequence[str]) -> str:
    best = []
    for name in problems:
        metric = "tv" if name in PLACES else "loss"
        arms = [a for a in _ONE_LOSS if of(rows, name, a, metric)]
        if not arms:
            continue
        arm = min(arms, key=lambda a: estimate([r[metric] for r in last(of(rows, name, a, metric))]).mean)
        found = compared(rows, name, arm, metric)
        told = "" if arm == CONTROL or found is None else f" ({found.show(2)} against scalar)"
        best.append(f"{name}: {arm}{told}")
    return f"Lowest at the last step, by held-out loss (modes: by their weights): {'; '.join(best)}."


def _findings(rows: Sequence[Row], problems: Sequence[str], starts: Sequence[Row]) -> list[str]:
    out = []
    for arm, control, what in (
        ("wiener", CONTROL, "The Wiener skip against EDM's preconditioning"),
        ("wiener, seen", "wiener", "The estimate as input, under the Wiener skip"),
        ("scalar, seen", CONTROL, "A wider layer that sees nothing new"),
        ("scalar, wiener seen", CONTROL, "The Wiener estimate as input alone"),
        ("mixture 10", "wiener", "Ten regions against one Gaussian"),
        ("mixture 10, seen", "wiener, seen", "Ten regions against one Gaussian, estimates seen"),
        ("mixture 10, seen", CONTROL, "Ten regions and their estimate seen against EDM's preconditioning"),
        ("regions 10", "regions 10, rho=0", "Noise of each region's shape against isotropic noise, a scale a region"),
        ("regions 10, rho=0", "told 10", "A region's own Gaussian as skip against one for all, both told the region"),
        ("told 10", "wiener", "Told the region, isotropic noise, against not told"),
        ("regions classes", "regions 10", "Classes as regions against regions that were found"),
    ):
        told = []
        for name in problems:
            for metric in ("tv", "cov") if name in PLACES else ("fd", "loss", "nll"):
                found = compared(rows, name, arm, metric, control)
                if found is not None and found.n > 1:
                    told.append((found.sign, f"{name} {metric}" + (f" ({found.show(2)})" if found.sign else "")))
        words = listed(told, _WORDS)
        if words:
            out.append(f"{what}: {words}.")
    done = {(r["problem"], r["arm"]) for r in rows}
    missing = [f"{name} {', '.join(f'`{a}`' for a in arms)}" for name in STEPS
               if (arms := [a for a in (*ARMS, *RELATIVES) if _has(name, a) and (name, a) not in done])]  # fmt: skip
    out += _sooner(rows) + _few(rows, problems)
    return [*out, f"Not measured yet: {'; '.join(missing)}."] if missing else out


_TIMED = ("fd", "tv", "loss")
_WORDS = {-1: "better", 1: "worse", 0: "not told apart"}


def _sooner(rows: Sequence[Row]) -> list[str]:
    """Steps to what the Wiener skip has at its end, on images: the others' distances are at their floors."""
    out = []
    for name in IMAGES:
        arms = ("wiener, seen", "mixture 10", "mixture 10, seen", "mixture 50, seen", "mixture auto, seen")
        gains = {arm: gain(rows, name, arm, "fd", "wiener") for arm in arms}
        parts = [f"{arm} {found.show(1)}" for arm, found in gains.items() if found]
        out += [f"{name}: {', '.join(parts)}"] if parts else []
    return [f"Times fewer steps to the Wiener skip's last Frechet distance: {'; '.join(out)}."] if out else []


def _few(rows: Sequence[Row], problems: Sequence[str]) -> list[str]:
    """Evaluations: the distance at four, against the full number."""
    out = []
    for name in (n for n in problems if n not in PLACES):
        parts = []
        for arm in ("wiener", "wiener, seen", "mixture 10", "mixture 10, seen"):
            own = last(of(rows, name, arm, "fd"))
            if own:
                few = {m: estimate([r[f"fd_{m}_4"] for r in own]).mean for m in ("dpmpp_2m", "gaussian_2m")}
                whole = estimate([r["fd"] for r in own]).mean
                parts.append(f"{arm} {few['dpmpp_2m']:.3g} and {few['gaussian_2m']:.3g} ({whole:.3g})")
        if parts:
            told = "Frechet distance at 4 evaluations of 2M and Gaussian 2M (all of them)"
            out.append(f"{name}, {told}: {'; '.join(parts)}.")
    return out


def _figure(rows: Sequence[Row], problems: Sequence[str], folder: Path) -> tuple[str, str]:
    drawn = ("scalar", "scalar, seen", "wiener", "wiener, seen", "mixture 10", "mixture 10, seen")
    picture, axes = figure.panels(len(problems))
    for axis, name in zip(axes, problems, strict=True):
        metric = "tv" if name in PLACES else "loss"
        steps = sorted({r["step"] for r in select(rows, problem=name)})
        for colour, arm in enumerate(drawn):
            own = of(rows, name, arm, metric)
            if own:
                figure.means(axis, own, "step", metric, label=arm, colour=colour)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(steps, map(str, steps))
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.set_title(f"{name}: {METRICS[metric]}", fontsize=8)
    axes[0].legend(fontsize=6)
    return "Over training, 95 % intervals", figure.save(picture, folder / "skips.png")


CLAIM = Claim("skips", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
