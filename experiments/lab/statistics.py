"""What seeds say: means with t intervals, paired differences, when a falling curve reaches a value, Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
WORDS = {-1: "better", 1: "worse", 0: "no difference seen"}
"""What the sign of a difference says where less is better."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and the half-width of its 95 % interval (Student's t; infinite for one seed)."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out 0, else 0; an infinite mean, of a run that diverged, counts."""
        if math.isinf(self.mean):
            return 1 if self.mean > 0 else -1
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def show(self, digits: int = 3) -> str:
        if not math.isfinite(self.mean):
            return "diverged" if math.isinf(self.mean) else "-"
        half = f" ± {self.half:.{max(digits - 1, 1)}g}" if math.isfinite(self.half) else ""
        return f"{self.mean:.{digits}g}{half}"


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent values, one a seed. Raises ValueError for none."""
    if not len(values):
        raise ValueError("values: got none, expected one for each seed")
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 1:
        return Estimate(float(x[0]), math.inf, 1)
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(float(x.mean()), half, len(x))


def select(rows: Sequence[Row], **settings: Any) -> list[Row]:
    """Rows of these settings."""
    out = list(rows)
    for name, value in settings.items():
        out = [row for row in out if row.get(name) == value]
    return out


def by_seed(rows: Sequence[Row], column: str) -> dict[int, float]:
    """The column of each seed. Raises ValueError where a seed has two."""
    out: dict[int, float] = {}
    for row in rows:
        if row["seed"] in out:
            raise ValueError(f"rows: seed {row['seed']} is there twice, expected one row a seed")
        out[row["seed"]] = math.nan if row[column] is None else float(row[column])
    return out


def unique(rows: Sequence[Row], *columns: str) -> list[Any]:
    """Values of a column, tuples of several, in the order of the rows."""
    if len(columns) == 1:
        return list(dict.fromkeys(row[columns[0]] for row in rows))
    return list(dict.fromkeys(tuple(row[name] for name in columns) for row in rows))


def mean(rows: Sequence[Row], column: str, **settings: Any) -> Estimate:
    """Of a column over the seeds of the rows of these settings."""
    return estimate(list(by_seed(select(rows, **settings), column).values()))


def paired(
    rows: Sequence[Row], control: Sequence[Row], column: str, of: Callable[[float, float], float] | None = None
) -> Estimate:
    """Mean over the seeds that both have of ``of(value, control's)``, by default the difference."""
    ours, theirs = by_seed(rows, column), by_seed(control, column)
    apart = of or (lambda a, b: a - b)
    return estimate([apart(ours[seed], theirs[seed]) for seed in ours if seed in theirs])


def log_ratio(a: float, b: float) -> float:
    """``ln(a / b)``: its mean's exponential is a geometric mean of ratios."""
    return math.log(a / b)


def ratio(found: Estimate, digits: int = 2) -> str:
    """A mean of :func:`log_ratio` as a ratio with its interval."""
    if not math.isfinite(found.half):
        return f"{math.exp(found.mean):.{digits}f}"
    return f"{math.exp(found.mean):.{digits}f} ({math.exp(found.low):.{digits}f} to {math.exp(found.high):.{digits}f})"


def reached(at: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where a curve first comes down to ``target``, between two points by the logarithm of ``at``; inf if it does not.

    ``at`` ascends and is > 0. A curve that begins below has reached it at the first point.
    """
    for i, value in enumerate(values):
        if value <= target:
            if i == 0 or not math.isfinite(values[i - 1]):
                return at[i]
            share = (values[i - 1] - target) / (values[i - 1] - value)
            return math.exp(math.log(at[i - 1]) + share * (math.log(at[i]) - math.log(at[i - 1])))
    return math.inf


def crossings(rows: Sequence[Row], column: str, target: float, at: str = "step") -> dict[int, float]:
    """Step (or second) of each seed at which a column comes down to the target; inf where it does not."""
    out = {}
    for seed in sorted(unique(rows, "seed")):
        own = sorted(select(rows, seed=seed), key=lambda row: row["step"])
        values = [math.inf if row[column] is None else float(row[column]) for row in own]
        out[seed] = reached([float(row[at]) for row in own], values, target)
    return out


@dataclass(frozen=True)
class Sooner:
    """How much sooner than a control a goal is reached. ``log``: mean of ``ln(control's / ours)``, above 0 if sooner;
    ``bound``: "at least " where some of our runs were there at the first point looked at, "at most " where some never
    were, "about " for both; each then counts as there at the first or the last point, which understates the
    difference. ``n``: seeds, without those where neither is there."""

    log: Estimate
    bound: str
    n: int

    def show(self, digits: int = 2) -> str:
        return self.bound + ratio(self.log, digits)

    def brief(self) -> str:
        """Without the interval, for a table."""
        signs = {"at least ": "≥ ", "at most ": "≤ ", "about ": "~ ", "": ""}
        return signs[self.bound] + f"{math.exp(self.log.mean):.2g}"


def sooner(ours: dict[int, float], theirs: dict[int, float], first: float, last: float) -> Sooner | None:
    """From where each seed reached the goal, inf for not; None where fewer than two seeds tell anything."""
    both = [s for s in ours if s in theirs and (math.isfinite(ours[s]) or math.isfinite(theirs[s]))]
    if len(both) < 2:
        return None
    logs = [log_ratio(min(theirs[s], last), min(ours[s], last)) for s in both]
    # A control that is there at once, or never, bounds the ratio from the other side.
    low = any(ours[s] <= first or not math.isfinite(theirs[s]) for s in both)
    high = any(not math.isfinite(ours[s]) or theirs[s] <= first for s in both)
    return Sooner(estimate(logs), "about " if low and high else "at least " if low else "at most " if high else "",
                  len(both))  # fmt: skip


def marked(shown: str, found: Estimate | None) -> str:
    """Bold where a difference is below 0 beyond its interval, italic where above."""
    return shown if found is None else {-1: f"**{shown}**", 0: shown, 1: f"*{shown}*"}[found.sign]


def listed(found: Iterable[tuple[int, str]], words: dict[int, str] = WORDS) -> str:
    """Names after the word for their sign."""
    found = list(found)
    told = {word: [name for sign, name in found if sign == which] for which, word in words.items()}
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in told.items() if names)


def table(head: Sequence[Any], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    shown = ["| " + " | ".join(str(value) for value in line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(map(str, head)) + " |", "|" + " --- |" * len(head), *shown])
