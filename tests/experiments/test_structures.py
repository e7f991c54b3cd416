"""Structures: scores of a cell, and a section that follows the rows."""

from __future__ import annotations

from pathlib import Path

from experiments import structures as claim
from experiments.lab.claim import Settings


def test_a_structure_of_too_few_rows_has_no_score_and_one_is_taken() -> None:
    rows = claim.run({"data": "fields", "n": 60}, Settings())
    assert {row["structure"]: row["score"] is None for row in rows}["dense"]
    assert sum(row["taken"] for row in rows) == 1


def test_the_answer_counts(tmp_path: Path) -> None:
    rows = [
        {"data": data, "n": n, "structure": name, "score": score, "taken": int(name == "dense")}
        for data, n, best in (("a", 1, "dense"), ("a", 2, "cosine"))
        for name, score in (("dense", 1.0), ("cosine", 0.0 if best == "dense" else 2.0))
    ]
    answer = claim.section(rows, tmp_path).answer
    assert "dense in 1, cosine in 1 of 2" in answer
    assert "of it in 1." in answer
