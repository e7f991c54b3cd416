"""Settings that take their choices from a registry, so that a list exists once: help, command line and stored settings
ask the registry.

Annotations are text (``from __future__ import annotations``) that is read anew whenever a command line or a file is,
so a name that was added to a registry at run time is a choice too.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal


def choice(names: Iterable[str], *others: str | None, many: bool = False) -> Any:
    """For ``Annotated[str, choice(NAMES)]``: one of the names or of ``others``; ``many``: a tuple of them.

    ``None`` among the others is for ``str | None``. Where entries of the registry have a ``summary``, the help of one
    choice says it beside the name.
    """
    entries = names.items() if isinstance(names, Mapping) and not many else ()
    words = "; ".join(f"{name}: {entry.summary}" for name, entry in entries if getattr(entry, "summary", ""))
    kind: Any = Literal.__getitem__((*names, *others))
    if many:
        word: Any = Literal.__getitem__((*names, *(other for other in others if other is not None)))
        kind = tuple[word, ...] | None if None in others else tuple[word, ...]
    more = {"metavar": f"{{{','.join(names)}}} ..."} if many else {}
    # tyro gives the default of a choice as the text of a list of words.
    return _argument(lambda default: _bracketed(words, re.sub(r"[\[\]',]", "", default)), constructor=kind, **more)


def suggestion(names: Iterable[str], *others: str) -> Any:
    """For a setting that takes more than the names: the help lists them."""
    return _argument(lambda default: _bracketed(", ".join((*names, *others)), default))


def _argument(hint: Callable[[str], str], **options: Any) -> Any:
    import tyro  # slow to import: only when a command line or stored settings are read

    return tyro.conf.arg(help_behavior_hint=hint, **options)


def chosen_from(hint: Any) -> Any:
    """The type that an annotation stands for: of a choice, ``Literal`` of what it may be."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint
    kind, *notes = typing.get_args(hint)
    factories = [getattr(note, "constructor_factory", None) for note in notes]
    return next((factory() for factory in factories if factory is not None), kind)


def _bracketed(words: str, default: str) -> str:
    parts = [words] * bool(words) + [f"default: {default}"] * bool(default)
    return f"({'; '.join(parts)})" if parts else ""
