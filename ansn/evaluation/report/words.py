"""The page in words: title, summary, what each measurement means."""

from __future__ import annotations

import math
from typing import Any

from ansn.evaluation.report.page import Material

_MEANINGS = (
    ("frechet", "Distance between the Gaussians of the means and covariances of samples and reference in the named"
     " features (Dowson and Landau 1982); it sees two moments and nothing else."),
    ("fid", "The Frechet distance in the features of Inception-v3, at 50,000 samples (Heusel et al. 2017)."),
    ("kernel", "Squared maximum mean discrepancy with a polynomial kernel in the named features, unbiased, so that it"
     " may fall below 0 (Binkowski et al. 2018)."),
    ("precision", "Share of samples that lie within the neighbourhoods of the reference: fidelity (Kynkäänniemi et al."
     " 2019)."),
    ("recall", "Share of the reference that lies within the neighbourhoods of samples: variety (Kynkäänniemi et al."
     " 2019)."),
    ("density", "How many neighbourhoods of the reference hold a sample, relative to what the reference itself has:"
     " fidelity, robust to outliers (Naeem et al. 2020)."),
    ("coverage", "Share of the reference's neighbourhoods that hold a sample: variety, robust to outliers (Naeem et al."
     " 2020)."),
    ("sliced", "Wasserstein-2 distance of one-dimensional projections, averaged over random directions."),
    ("energy", "Energy distance: twice the mean distance between samples and reference less the mean distances within"
     " each (Székely and Rizzo 2013); 0 only for equal distributions."),
    ("mode", "How far the shares of the classes among the samples are from those of the data: half the sum of their"
     " differences, 0 to 1."),
    ("bits", "Negative log-likelihood of held-out data by the probability flow, in bits for each coordinate."),
    ("log-likelihood", "Log-likelihood of held-out data by the probability flow, in nats."),
    ("nearest", "Distance from a sample to its nearest training row, beside that of held-out rows: one that is much"
     " smaller tells of memorised data."),
    ("memor", "Share of samples that are nearer to a training row than nearly all held-out rows are."),
    ("accuracy", "Share of samples whose class a classifier tells as the one asked for."),
)  # fmt: skip


def meaning(name: str) -> str | None:
    """One sentence on a measurement, by a word of its name."""
    plain = name.lower().replace("_", " ").replace("é", "e")
    return next((text for word, text in _MEANINGS if word in plain), None)


def number(value: float | None) -> str:
    """Four significant digits; nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def title(m: Material) -> str:
    return f"{m.run.info.name}: evaluation at step {m.run.step:,}"


def summary(m: Material) -> str:
    """The run and its first measurements in a paragraph."""
    run, info, config = m.run, m.run.info, m.run.config
    parameters = sum(p.numel() for p in run.model.network.parameters())
    size = "×".join(map(str, info.shape))
    classes = f" in {info.num_classes} classes" if info.num_classes else ""
    count = "" if m.train is None else f"{len(m.train):,} "
    kind = "images" if info.kind == "image" else "rows"
    c = run.model.noise.covariance
    told = (
        f"A network ({config.network.network}, {parameters:,} parameters) was trained for {run.step:,} steps of"
        f" {config.optim.batch_size} on {info.name} ({count}{kind} of {size}{classes}), with noise of a"
        f" {c.structure.name} covariance ({c.rules.family}). {len(m.samples):,} samples were drawn from it."
    )
    measured = [v for v in m.evaluation.measurements if v.value is not None and math.isfinite(v.value)]
    for v in measured[:1]:
        told += f" {_told(v)}"
    if not measured:
        told += " Nothing was measured."
    return told


def footer() -> str:
    return "Written by ansn-evaluate; the page holds all of its pictures and fetches nothing."


def _told(v: Any) -> str:
    """A measurement and its floor as a sentence."""
    features = f" in {v.features}" if v.features else ""
    told = f"{v.name[:1].upper()}{v.name[1:]}{features} is {number(v.value)} at n = {v.n:,}"
    if v.floor is None:
        return told + "."
    if v.floor_n is not None and v.floor_n != v.n:
        return f"{told}; {v.floor_n:,} held-out rows have {number(v.floor)} (the floor)."
    ratio = f"; this is {v.value / v.floor:.2f} times that" if v.better == "lower" and v.floor > 0 else ""
    return f"{told}, where held-out data has {number(v.floor)} (the floor){ratio}."
