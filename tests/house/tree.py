"""The rules of the house, read from the source without importing it.

Each rule takes the folder of a package and yields one line per violation, so that a test can feed
it a bad tree.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "unitscale"

# Top to bottom: a room imports rooms on lower lines only. Peers on one line import neither way.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("laws", "growth", "compress", "adapt", "integrations"),
    ("anatomy",),
    ("sweep", "memory"),
    ("train",),
    ("models", "data"),
    ("deploy",),
    ("record",),
    ("report",),
    ("distributed",),
    ("units",),
    ("optim",),
    ("nn",),
    ("functional",),
    ("graph",),
    ("gemm",),
    ("recipes",),
    ("scaling", "numerics"),
    ("formats",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# What can be read, tested and used without torch; a name covers all that is below it.
TORCH_FREE = (
    "cli",
    "data",
    "formats.block",
    "formats.catalogue",
    "formats.format",
    "formats.granularity",
    "laws",
    "memory.states",
    "recipes",
    "report",
    "scaling.constraints",
    "scaling.factors",
    "scaling.quadrature",
    "sweep.cores",
    "sweep.figure",
    "sweep.folder",
    "sweep.grid",
    "sweep.interval",
    "sweep.page",
    "sweep.point",
    "sweep.pool",
    "sweep.row",
    "sweep.run",
    "sweep.summary",
    "train.config",
    "units.assign",
)

MAX_LINES = 400
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core", "base", "types"}


def layer_violations(package: Path) -> Iterator[str]:
    """Imports that go up or sideways, or through the facade `unitscale/__init__.py`."""
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room == "__init__":
            continue
        if room not in LEVEL:
            yield f"{path.relative_to(package)}: {room!r} is not a room of the house"
            continue
        for line, name in imports(path, package):
            if name.split(".")[0] != package.name or name == f"{package.name}.__version__":
                continue
            target = [*name.split("."), ""][1]
            where = f"{path.relative_to(package)}:{line}"
            if target not in LEVEL:
                yield f"{where}: imports {name}; import it from the room that defines it"
            elif target != room and LEVEL[target] <= LEVEL[room]:
                yield f"{where}: {room} imports {target}, which is not below it"


def torch_violations(package: Path) -> Iterator[str]:
    """Imports of torch, even inside functions, in files that are to be torch-free."""
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        # A command imports what it runs when it runs, so only its top level counts.
        top_level_only = module.startswith("cli")
        if any(module == free or module.startswith(free + ".") for free in TORCH_FREE):
            for line, name in imports(path, package, top_level_only=top_level_only):
                if name.split(".")[0] == "torch":
                    yield f"{path.relative_to(package)}:{line}: {module} is to be free of torch"


def size_violations(folder: Path) -> Iterator[str]:
    """Files too long to have one reason to exist."""
    for path in sorted(folder.rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(folder)}: {lines} lines, more than {MAX_LINES}"


def name_violations(folder: Path) -> Iterator[str]:
    """Files and folders whose name says nothing."""
    for path in sorted(folder.rglob("*")):
        if path.stem.strip("_") in FORBIDDEN_NAMES and (path.is_dir() or path.suffix == ".py"):
            yield f"{path.relative_to(folder)}: a name that does not say what is inside"


def public_name_violations(package: Path) -> Iterator[str]:
    """Packages that do not say what they offer."""
    for path in sorted(package.rglob("__init__.py")):
        targets = (
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        )
        if "__all__" not in targets:
            yield f"{path.relative_to(package)}: defines no __all__"


def room_of(path: Path, package: Path) -> str:
    """The first name below the package."""
    return path.relative_to(package).with_suffix("").parts[0]


def imports(
    path: Path, package: Path, *, top_level_only: bool = False
) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, those for type checkers aside."""
    own_package = path.relative_to(package.parent).with_suffix("").parts[:-1]
    for node in _statements(ast.parse(path.read_text()), top_level_only):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = own_package[: len(own_package) - node.level + 1] if node.level else ()
            origin = [*above, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)


def _statements(node: ast.AST, top_level_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield child
        yield from _statements(child, top_level_only)
