"""How far a recipe holds in a scaled model: its products by what multiplies them, and what is left.

The number that sums it up is `coverage`, the share of multiply-adds whose operands are rounded.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from unitscale.graph.capture import checkpointed
from unitscale.graph.name import unused_name
from unitscale.units.count import multiply_adds
from unitscale.units.products import Multiplied, maker, multiplied
from unitscale.units.session import Session, shorten

__all__ = ["Product", "Summary", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product of a model.

    Args:
        name: of its result, as in `us.unit_rows`.
        by: what multiplies its operands.
        why: why it is in full precision; None of one that is rounded.
        macs: multiply-adds of the forward product in one call, on the inputs that it was captured
            with.
    """

    name: str
    by: str
    why: str | None
    macs: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a recipe does in a model; prints as a table.

    Args:
        model: the name of its class.
        recipe: the name of the recipe.
        rounds: whether the recipe rounds anything.
        units: how many tensors have a unit.
        steps: training calls so far, of this model: those before it grew or was pruned are not
            among them.
        products: those of every graph that ran.
        plain: modules, by path, that ran without the recipe, and why.
        plain_macs: their multiply-adds.
        unseen: modules that own parameters and have not run in any graph, nor beside one.
        unused: parameters, by name, that no graph took, of modules of which other parts ran.
        suspended: whether the model runs in full precision now, inside of `full_precision`.
        breaks: why torch.compile broke the graph; products that plain code between two graphs makes
            of tensors alone are not known, and not counted.
    """

    model: str
    recipe: str
    rounds: bool
    units: int
    steps: int
    products: tuple[Product, ...]
    plain: dict[str, str]
    plain_macs: int
    unseen: tuple[str, ...]
    breaks: tuple[str, ...] = ()
    suspended: bool = False
    unused: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the multiply-adds whose operands are rounded; 0 before anything has run.

        Inside of `full_precision` it is that of the calls before.

        Those of modules that ran without the recipe count too, by their matrices: exact for linear
        and recurrent layers, an estimate for others.
        """
        total = self.plain_macs + sum(product.macs for product in self.products)
        rounded = sum(product.macs for product in self.products if product.why is None)
        return rounded / total if total else 0.0

    def __str__(self) -> str:
        has_run = bool(self.products or self.plain)
        of = "known multiply-adds" if self.breaks else "multiply-adds"
        covered = f"{self.coverage:.1%} of {of} rounded, " if has_run else ""
        lines = [
            f"{self.model}, recipe {self.recipe}: {covered}"
            f"{self.units} tensor{'' if self.units == 1 else 's'} with a unit, "
            f"{self.steps} training call{'' if self.steps == 1 else 's'}"
        ]
        if self.suspended:
            lines.append("  now in full precision (us.full_precision); what follows is of before")
        if not has_run:
            since = "" if self.steps == 0 else " under this recipe"
            lines.append(f"  nothing has run{since} yet: call the model first")
        total = (self.plain_macs + sum(product.macs for product in self.products)) or 1
        kinds: dict[tuple[str, str | None], list[Product]] = {}
        for product in self.products:
            kinds.setdefault((product.by, product.why), []).append(product)
        for (by, why), found in sorted(kinds.items(), key=lambda kind: kind[0][1] is not None):
            share = sum(product.macs for product in found) / total
            text = by if why is None else f"{by}: {why}"
            names = "" if why is None else f" ({shortened([p.name for p in found])})"
            lines.append(f"  {len(found):4} products  {share:6.1%}  {text}{names}")
        for path, why in self.plain.items():
            lines.append(f"  not covered: {path or 'the model itself'}: {why}")
        if self.unseen and (self.products or self.plain):
            lines.append(f"  has not run: {shortened(self.unseen)}")
        if self.unused and (self.products or self.plain):
            lines.append(f"  not used by what has run: {shortened(self.unused)}")
        if self.breaks:
            lines.append(
                "  not known: products of two activations in code between two graphs, which runs "
                f"as it is and is not counted ({shortened(self.breaks)})"
            )
        return "\n".join(lines)


def shortened(names: list[str] | tuple[str, ...]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def counted(reasons: Iterable[str]) -> tuple[str, ...]:
    """Each reason once, with how often it was given."""
    times = Counter(reasons)
    return tuple(f"{why} ({n} times)" if n > 1 else why for why, n in times.items())


def summarize(session: Session) -> Summary:
    """The summary of a session's model as it is now."""
    session.terms.collect()
    model = session.model
    found: dict[str, Product] = {}
    for name, node, runs, product in products(session):
        if name not in found:
            macs = multiply_adds(node) * runs
            found[name] = Product(name=name, by=product.by, why=product.why, macs=macs)
    unseen: list[str] = []
    unused: list[str] = []
    # FSDP2 gives a graph other parameters than the model has afterwards, by the same names.
    given = {
        prefix + name
        for executable in session.executables
        for prefix in executable.places
        for _, name in executable.slots
    }
    ran = {id(p) for n, p in model.named_parameters() if n in given} if model is not None else set()
    ran |= session.covered
    for path, module in model.named_modules() if model is not None else ():
        own = {name: id(p) for name, p in module._parameters.items() if p is not None}
        names = {f"{path}.{name}" if path else name for name in own}
        is_seen = names & given or session.covered.intersection(own.values())
        if not own or is_seen or path in session.plain:
            continue
        if not path or any(id(p) in ran for p in module.parameters()):
            unused += sorted(names)
        else:
            unseen.append(path)
    return Summary(
        model=type(model).__name__,
        recipe=session.recipe.name,
        rounds=session.recipe.rounds,
        units=session.held(),
        steps=session.store.step - session.store.began,
        products=tuple(found.values()),
        plain=dict(session.plain),
        plain_macs=sum(session.plain_macs.values()),
        unseen=tuple(unseen),
        breaks=counted(map(shorten, session.breaks)),
        suspended=session.suspended,
        unused=tuple(unused),
    )


def products(session: Session) -> Iterator[tuple[str, fx.Node, int, Multiplied]]:
    """Every product of every graph that ran, how often in a call, and what multiplies it.

    Those whose results have no unit too: a tuple, as recurrent layers return, or complex numbers.
    """
    for executable in session.executables:
        for prefix, place in executable.places.items():
            seen: Counter[str] = Counter()
            for node in nodes_of(executable.module.graph):
                gemm = place.program.rounded.get(node)
                found = multiplied(node, session.recipe, gemm, prefix=prefix)
                if found is not None and maker(node) is node:
                    tensor = executable.tensors.get(node)
                    name = unused_name(node, seen) if tensor is None else tensor.name
                    yield prefix + name, node, place.runs, found


def nodes_of(graph: fx.Graph) -> Iterator[fx.Node]:
    """The calls of a graph, with those of the checkpoints in it."""
    for node in graph.nodes:
        if node.op.startswith("call_"):
            body = checkpointed(node)
            yield from [node] if body is None else nodes_of(body.graph)
