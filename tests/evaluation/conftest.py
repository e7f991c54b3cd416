"""The two full reports, which take seconds to draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.pages import Page, digits_run, full_report, table_run


@pytest.fixture(scope="session")
def digits_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[Path]]:
    written = full_report(digits_run(tmp_path_factory.mktemp("digits")))
    return Page(written[0]), written


@pytest.fixture(scope="session")
def table_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[Path]]:
    # The folder's name is untrusted too.
    written = full_report(table_run(tmp_path_factory.mktemp("table") / "<i>run & 'more'"))
    return Page(written[0]), written
