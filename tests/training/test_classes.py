"""Classes of few rows, where each class's noise has the shape of its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ansn.errors import InputError
from ansn.training.trainer import Trainer
from tests.training.helpers import small, trainer


def classes(folder: Path, rows: int, spread: float = 1.0, **settings: Any) -> Trainer:
    """A run on a table of forty rows of each of two classes, and ``rows`` of a third one."""
    rng, lines = np.random.default_rng(0), ["a,b,c,who"]
    for name, count, by in (("ann", 40, 1.0), ("bob's", rows, spread), ("cyd", 40, 1.0)):
        values = 3 + by * rng.normal(size=(count, 3))
        lines += [",".join([*map(str, row), name]) for row in values.tolist()]
    (folder / "rows.csv").write_text("\n".join(lines))
    table = {"dataset": str(folder / "rows.csv"), "label_column": "who", "test_fraction": 0.0, "batch_size": 16}
    labels = {"regions": "labels", "class_conditional": True, "structure": "dense", "steps": 12}
    return trainer(small(folder / "run", "table", **table | labels | settings))


@pytest.mark.parametrize(("rows", "spread", "told"), [(1, 1.0, "one row"), (7, 0.0, "rows that are all the same")])
def test_a_class_without_a_spread_is_named_before_training(rows: int, spread: float, told: str, tmp_path: Path) -> None:
    line = f'--regions: got labels where class "bob\'s" has {told}, expected two or more that differ, for each class'
    with pytest.raises(InputError, match=f"^{re.escape(line)}.*leave the class out, or --regions .*--eps$"):
        classes(tmp_path, rows, spread)
    with pytest.raises(InputError, match="one row" if rows == 1 else "all the same"):
        classes(tmp_path, rows, spread, eps=0.0)


@pytest.mark.parametrize(
    ("rows", "spread", "settings"),
    [(1, 1.0, {"eps": 0.01}), (7, 0.0, {"eps": 0.01}), (1, 1.0, {"skip": "mixture"}), (2, 1.0, {}), (0, 1.0, {})],
)
def test_a_class_of_few_rows_is_trained(rows: int, spread: float, settings: dict[str, Any], tmp_path: Path) -> None:
    """Through two epochs: the same row twice has no spread either."""
    made = classes(tmp_path, rows, spread, **settings)
    made.run()
    noise = made.model.noise.covariance
    assert noise.condition_number().isfinite().all()
    assert noise.points == 12 * 16
