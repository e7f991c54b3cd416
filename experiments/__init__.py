"""The evidence: one file a claim, each with its controls; `python -m experiments.evidence` runs them all."""
