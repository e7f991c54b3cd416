"""All claims, one after the other, then docs/results.md: `make evidence`, or `make evidence-quick` for a small version.

    python -m experiments.evidence --data PATH

An interrupted run goes on where it was (``--no-resume`` starts over); a finished one leaves nothing to go on with.
"""

from __future__ import annotations

import sys
import time

import tyro

from ansn.cli.common import guarded, parsed
from experiments.lab.claim import Settings, done, publish
from experiments.lab.page import CLAIMS, claim, markdown, write_page

_NAME = "evidence"


def run(settings: Settings) -> None:
    """Every claim; each section is printed as its rows are in."""
    for name in CLAIMS:
        began = time.monotonic()
        section = publish(claim(name), settings)
        print(markdown(name, section), flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if not settings.quick:
        write_page()
        for name in CLAIMS:
            done(claim(name), settings)


def main() -> int:
    """Entry point; exit codes 0 done, 2 bad arguments, 130 interrupted."""
    settings = parsed(_NAME, lambda: tyro.cli(Settings, prog=_NAME, description=__doc__))
    return guarded(_NAME, lambda: run(settings))


if __name__ == "__main__":
    sys.exit(main())
