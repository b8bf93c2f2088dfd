"""What is not in this project, by name: models (`gpt2`, `llama`), MODULE:NAME and FILE.py:NAME.

Imports no torch, so that a command line can check a name first.
"""

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

BUILT_IN = ("gpt2", "llama")
"""Configurations of `transformers` with about a million parameters, see `language`."""


def is_existing(name: str) -> bool:
    """Whether a model's name is one of a model that exists already, rather than of a `CharLM`."""
    return name in BUILT_IN or ":" in name


def find_factory(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """What makes the model of that name; `options` are the arguments it will be called with.

    MODULE is looked for in the working directory too, as `python -m` does; FILE.py:FACTORY is
    imported from where it is.

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


def import_attribute(name: str, what: str = "model") -> Any:
    """The object that MODULE:NAME or FILE.py:NAME says.

    Args:
        what: what the object is to be, for the error.
    Raises:
        ValueError: there is none, or the module cannot be imported.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        called = "FACTORY" if what == "model" else "NAME"
        raise ValueError(
            f"{name!r} is not a {what}; expected MODULE:{called} or FILE.py:{called}, as in "
            "my.code:build"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and left there: the factory may import more when it is called
    try:
        if module_name.endswith(".py"):
            file = Path(module_name)
            if not file.is_file():
                raise ValueError(f"{name}: there is no file {module_name}")
            module: Any = import_file(file.resolve())
        else:
            module = import_module(module_name)
    except ValueError:
        raise
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


def import_file(file: Path) -> ModuleType:
    """The module that a file is, which may import its neighbours; imported once.

    It has the file's own name, unless that hides another module: `random.py`, say.

    Raises:
        ValueError: it cannot be imported.
    """
    name = file.stem
    known = sys.modules.get(name)
    if known is None or not is_of(known, file):
        if known is not None or (find_spec(name) is not None and not is_of(find_spec(name), file)):
            name = f"model_in_{name}"
        known = sys.modules.get(name)
    if known is not None and is_of(known, file):
        return known
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"importing {file} failed: {type(error).__name__}: {error}") from error
    return module


def is_of(module: Any, file: Path) -> bool:
    """Whether a module, or the place where one would be found, is this file."""
    place = getattr(module, "__file__", None) or getattr(module, "origin", None)
    return place is not None and Path(place).resolve() == file
