"""The API pages: every public symbol of every public room, from its signature and docstring.

Made while the site is built, so that no page can be older than the code. What is public is what
`__all__` says. A symbol without a description is an error, and a test looks for it.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["page", "rooms", "undocumented"]

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source", "Example")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
MAX_SIGNATURE = 88

# Data that is neither described in its module nor of one of our classes.
DATA = {
    "__version__": "The version of the package, as a text.",
    "GradientScale": "Any of the scales that gradients can travel with.",
    "FORMATS": "Every number format by its name. [The table](../formats.md).",
    "BLOCK_FORMATS": "Every block format by its name. [The table](../formats.md).",
    "Granularity": "Any of the ways in which values share a scale.",
    "AS_IS": "The operand that is not rounded.",
    "RECIPES": "Every recipe by its name. [The list](../catalogue.md).",
    "RIVALS": "The names of one recipe of each kind that people train with.",
    "INSIDE": "The reason of a row whose tensor lies inside of a unit-scaled op.",
}


def rooms() -> dict[str, list[str]]:
    """The public packages, the facade first, each with its public names."""
    facade = importlib.import_module("unitscale")
    found = {"unitscale": sorted(facade.__all__)}
    for name in facade.__all__:
        room = getattr(facade, name)
        if hasattr(room, "__path__"):
            found[room.__name__] = sorted(room.__all__)
    return found


def page(room: str) -> str:
    """The page of a package."""
    module = importlib.import_module(room)
    names = sorted(module.__all__)
    parts = [f"# {room}", markdown(inspect.getdoc(module) or ""), contents(module, names)]
    parts += [symbol(module, name) for name in names if not is_room(getattr(module, name))]
    return "\n\n".join(filter(None, parts)) + "\n"


def undocumented() -> list[str]:
    """The public symbols that no page can describe."""
    return [
        f"{room}.{name}"
        for room, names in rooms().items()
        for name in names
        if not description(importlib.import_module(room), name)
    ]


def is_room(value: Any) -> bool:
    """Whether a public name is a package or module, which has a page of its own."""
    return inspect.ismodule(value)


def contents(module: Any, names: list[str]) -> str:
    """The names of a room in a line, each a link."""
    links = []
    known = rooms()
    for name in names:
        value = getattr(module, name)
        own = f"{value.__name__}.md" if is_room(value) and value.__name__ in known else None
        if is_room(value) and own is None:
            links.append(f"`{name}` (a module)")
        else:
            links.append(f"[`{name}`]({own or '#' + anchor(module, name)})")
    return "Public: " + ", ".join(links) + "."


def anchor(module: Any, name: str) -> str:
    """The place of a symbol, as search engines and links know it."""
    return f"{module.__name__}.{name.strip('_')}"


def symbol(module: Any, name: str) -> str:
    """A heading, the signature, the description; for a class its public methods too."""
    value = getattr(module, name)
    parts = [f"## {name} {{ #{anchor(module, name)} }}", signature(name, value)]
    parts.append(description(module, name))
    if inspect.isclass(value):
        parts += methods(value)
    return "\n\n".join(filter(None, parts))


def signature(name: str, value: Any) -> str:
    """How a function or class is called; the text of a small value."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        text = f"{name} = {value!r}"
        return block(text) if len(text) <= MAX_SIGNATURE else ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    kind = "class " if inspect.isclass(value) else ""
    if inspect.isclass(value):
        found = found.replace(return_annotation=found.empty)
    text = ADDRESS.sub("", f"{kind}{name}{found}")
    text = short(text)
    if len(text) <= MAX_SIGNATURE:
        return block(text)
    lines, star = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            lines.append("*")
        star |= parameter.kind is parameter.VAR_POSITIONAL
        lines.append(short(ADDRESS.sub("", str(parameter))))
    returns = text.rpartition(") -> ")[2] if ") -> " in text else ""
    inner = "".join(f"    {line},\n" for line in lines)
    return block(f"{kind}{name}(\n{inner})" + (f" -> {returns}" if returns else ""))


PLACE = re.compile(r"\b(?:unitscale|torch|collections|typing|pathlib)(?:\.[a-z_]\w*)*\.(?=[A-Z])")


def short(text: str) -> str:
    """Types without the module that they are from."""
    return PLACE.sub("", text).replace("~", "")


def block(code: str) -> str:
    """Python, set as code."""
    return f"```python\n{code}\n```"


def methods(cls: type) -> Iterator[str]:
    """Public methods and properties that the class itself defines and describes."""
    for name, value in vars(cls).items():
        if name.startswith("_") or name in ("forward", "reset_parameters"):
            continue
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not (inspect.isfunction(inner) or isinstance(inner, property)):
            continue
        text = inspect.getdoc(inner)
        if not text:
            continue
        call = "" if isinstance(inner, property) else signature(name, inner)
        yield "\n\n".join(filter(None, [f"### {cls.__name__}.{name}", call, markdown(text)]))


def description(module: Any, name: str) -> str:
    """What a public symbol is, as Markdown; empty if nobody wrote it."""
    value = getattr(module, name)
    if is_room(value):
        return markdown(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        if own := value.__dict__.get("__doc__"):
            return markdown(inspect.cleandoc(own))
        return counterpart(name, value)
    if inspect.isroutine(value):
        return markdown(inspect.getdoc(value) or "")
    if text := attribute_docstrings(module).get(name) or DATA.get(name):
        return markdown(text)
    kind = type(value)
    if kind.__name__ in ("FloatFormat", "BlockFormat"):
        return f"A `{kind.__name__}`, in [the table](../formats.md)."
    return f"A `{kind.__name__}`." if kind.__module__.startswith("unitscale") else ""


def counterpart(name: str, cls: type) -> str:
    """The description of a module that is torch's with a function of ours in it."""
    import unitscale.functional as functional

    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    snake = {
        "log_sigmoid": "logsigmoid", "re_lu": "relu", "ge_lu": "gelu", "si_lu": "silu",
        "leaky_re_lu": "leaky_relu", "re_lu6": "relu6",
    }.get(snake, snake)  # fmt: skip
    known = next((c for c in cls.__mro__ if c.__module__.startswith("torch.nn")), None)
    if known is None or not hasattr(functional, snake):
        return ""
    link = f"unitscale.functional.md#unitscale.functional.{snake}"
    return f"`torch.nn.{known.__name__}`, with `constraint=`: [`functional.{snake}`]({link})."


@cache
def attribute_docstrings(module: Any) -> dict[str, str]:
    """The texts below assignments in the modules of a package: `X = 1` and then a docstring."""
    found: dict[str, str] = {}
    names = set(module.__all__)
    for file in sorted(module_folder(module).glob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for first, second in pairwise(body):
            if not isinstance(first, ast.Assign | ast.AnnAssign):
                continue
            targets = first.targets if isinstance(first, ast.Assign) else [first.target]
            text = second.value if isinstance(second, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                for target in targets:
                    if isinstance(target, ast.Name) and target.id in names:
                        found[target.id] = inspect.cleandoc(text.value)
    return found


def module_folder(module: Any) -> Path:
    """Where the files of a package are."""
    return Path(module.__file__).parent


def markdown(docstring: str) -> str:
    """A docstring of ours as Markdown: its sections get names, its arguments a list."""
    lines = docstring.expandtabs().splitlines()
    out: list[str] = []
    at = 0
    while at < len(lines):
        match = re.fullmatch(rf"({'|'.join(SECTIONS)}):\s*(.*)", lines[at])
        if match is None:
            out.append(escaped(lines[at]))
            at += 1
            continue
        inner = []
        at += 1
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" ")):
            inner.append(lines[at])
            at += 1
        out += ["", *section(match[1], match[2], inner), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def section(name: str, first: str, inner: list[str]) -> Iterator[str]:
    """A section of a docstring; what is indented once starts an item, what is deeper goes on."""
    title = {"Args": "Arguments"}.get(name, name)
    if first:
        rest = " ".join(line.strip() for line in inner)
        yield escaped(f"**{title}**: {first} {rest}".strip(), plain=False)
        return
    yield f"**{title}**"
    yield ""
    items: list[str] = []
    for line in inner:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if (
            indent <= 4
            and name not in ("Returns", "Yields")
            and ":" in line.partition(" ")[0] + ":"
        ):
            items.append(line.strip())
        elif items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    for item in items:
        head, colon, text = item.partition(": ")
        known = colon and re.fullmatch(r"[\w*,. |`]+", head)
        yield f"- `{head.strip('`')}`: {escaped(text)}" if known else f"- {escaped(item)}"


CODE = re.compile(r"`[^`]*`")


def escaped(line: str, *, plain: bool = True) -> str:
    """A line whose `<`, `*` and `[` mean themselves, but in code; indented lines are code."""
    if line.startswith("    ") or line.lstrip().startswith("|"):
        return line
    parts, last = [], 0
    for match in [*CODE.finditer(line), None]:
        text = line[last : match.start()] if match else line[last:]
        text = text.replace("<", "&lt;")
        if plain:
            text = re.sub(
                r"(?<!\*)\*(?!\*)|(?<=\w)\*\*(?=[\w(-])", lambda m: "\\*" * len(m[0]), text
            )
        parts.append(text)
        if match:
            parts.append(match.group())
            last = match.end()
    return "".join(parts)
