"""What the commands share: a user's mistake is one line and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ansn.errors import InputError
from ansn.training import Diverged, Interrupted


def guarded(name: str, command: Callable[[], None]) -> int:
    """Run a command; exit code 0 done, 1 training diverged, 2 bad arguments or input, 130 interrupted."""
    try:
        command()
    except (InputError, MemoryError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 0
    return 0
