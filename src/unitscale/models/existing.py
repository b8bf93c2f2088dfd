"""Models that were not written for this project, by name: `gpt2`, `llama` or MODULE:FACTORY.

Imports no torch, so that a command line can check a name first.
"""

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

BUILT_IN = ("gpt2", "llama")
"""Configurations of `transformers` with about a million parameters, see `language`."""


def is_existing(name: str) -> bool:
    """Whether a model's name is one of a model that exists already, rather than of a `CharLM`."""
    return name in BUILT_IN or ":" in name


def find_factory(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """What makes the model of that name; `options` are the arguments it will be called with.

    MODULE is looked for in the working directory too, as `python -m` does.

    Raises:
        ValueError: no such module or factory in it, one that does not take these options, or
            `transformers` is needed and not installed.
    """
    if name in BUILT_IN:
        if find_spec("transformers") is None:
            raise ValueError(f"{name} needs transformers; run: pip install 'unitscale[hf]'")
        factory: Any = getattr(import_module("unitscale.models.language"), name)
    else:
        factory = import_attribute(name)
    if not callable(factory):
        raise ValueError(f"{name} is a {type(factory).__name__}; expected a function or a class")
    try:
        signature(factory).bind(**(options or {}))
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called with {dict(options or {})}: {error}; it takes "
            f"{signature(factory)}"
        ) from None
    return factory


def import_attribute(name: str) -> Any:
    """The object that MODULE:ATTRIBUTE names.

    Raises:
        ValueError: there is none, or the module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is not a model; expected MODULE:FACTORY, as in my.code:build")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and left there: the factory may import more when it is called
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"importing {module_name} failed: {error}") from error
        raise ValueError(
            f"{name}: there is no module {error.name!r}, neither installed nor in {here}"
        ) from None
    except Exception as error:
        raise ValueError(
            f"importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(attribute, names, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: module {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)
