"""All claims, one after the other, then docs/results.md: `make evidence`, or `make evidence-quick` for a small version.

    python -m experiments.evidence --data PATH

An interrupted run goes on where it was (``--no-resume`` starts over); a finished one leaves nothing to go on with.
"""

from __future__ import annotations

import sys

from experiments.lab.claim import main
from experiments.lab.page import CLAIMS, claim

if __name__ == "__main__":
    sys.exit(main([claim(name) for name in CLAIMS], __doc__, "evidence"))
