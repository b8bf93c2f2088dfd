"""Residual branches: how much each adds, and where it is normalized.

A residual layer is `y = a * x + b * f(x)` with `a^2 + b^2 = 1`, so that unit inputs give a unit
output. A scheme says what `tau = b / a` is for branch `index` (counted from 0) of `depth`.
The factor b is applied to the branch's output forward and to its *input's* gradient backward, so
that gradients inside the branch have unit scale too (the delayed factor of the 2023 paper).
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Protocol, Self

from torch import Tensor, nn

import unitscale.functional as U
from unitscale.functional.arguments import check_mult

PLACEMENTS = ("pre", "post", "none", "res-post")


class Scheme(Protocol):
    """Anything that gives a branch its ratio."""

    def tau(self, index: int, depth: int) -> float:
        """Ratio of branch to skip weight for branch `index` of `depth`."""


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Every branch has the same share of the variance: `b^2 = share`. Source: the 2023 paper."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"Fixed: share={self.share} is not between 0 and 1 (both excluded).")

    def tau(self, index: int, depth: int) -> float:
        """sqrt(share / (1 - share)), whatever the branch."""
        return math.sqrt(self.share / (1 - self.share))


@dataclass(frozen=True, kw_only=True)
class RunningMean:
    """The input and all branches so far have equal shares: `b^2 = 1 / (index + 2)`.

    This is the plain sum `x + f1 + f2 + ...` of unit terms, held at unit scale.
    """

    def tau(self, index: int, depth: int) -> float:
        """1 / sqrt(index + 1): `index + 1` equal terms are in the stream already."""
        return 1 / math.sqrt(index + 1)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Every branch has the same `tau = b / a`."""

    ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"Ratio: ratio={self.ratio} is not a positive number.")

    def tau(self, index: int, depth: int) -> float:
        """The ratio, whatever the branch."""
        return self.ratio


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """u-muP's scheme for a stack of attention (even index) and MLP (odd index) branches.

    The mean variance of all attention and all MLP branches is `alpha_res^2` of the input's, and
    attention's is `alpha_res_attn_ratio^2` of the MLP's; with both 1 the input, all attention and
    all MLP branches contribute a third each. Source: u-muP, appendix G.
    """

    alpha_res: float = 1.0
    alpha_res_attn_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha_res", "alpha_res_attn_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Alternating: {name}={getattr(self, name)} is not positive.")

    def tau(self, index: int, depth: int) -> float:
        """a_i / sqrt(depth / 2 + n_attn * a_attn^2 + n_mlp * a_mlp^2), branches so far counted."""
        mlp = self.alpha_res * math.sqrt(2 / (1 + self.alpha_res_attn_ratio**2))
        attn = self.alpha_res_attn_ratio * mlp
        n_attn, n_mlp = (index + 1) // 2, index // 2
        own = mlp if index % 2 else attn
        return own / math.sqrt(depth / 2 + n_attn * attn**2 + n_mlp * mlp**2)


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """u-muP's two multipliers of the branches, over any scheme; both 1 give the scheme itself.

    A stream held at unit scale is `x + c_0 f_0 + c_1 f_1 + ...` over its own root mean square, with
    `c_i = tau_i * sqrt(1 + c_0^2 + ... + c_(i-1)^2)` for the scheme's tau_i. The MLP branches' c
    (odd index) is multiplied by `m = residual_mult * sqrt(2 / (1 + residual_attn_ratio^2))`, the
    attention branches' (even index) by `residual_attn_ratio * m`. So the mean square of an MLP and
    an attention branch together changes by `residual_mult^2`, whatever the ratio is.
    `Multipliers(scheme=Alternating(), ...)` is u-muP's own. Source: u-muP, appendix G.
    """

    scheme: Scheme
    residual_mult: float = 1.0
    residual_attn_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_mult(
            "Multipliers",
            residual_mult=self.residual_mult,
            residual_attn_ratio=self.residual_attn_ratio,
        )

    def tau(self, index: int, depth: int) -> float:
        """The ratio of branch `index` in the multiplied sum."""
        if self.residual_mult == self.residual_attn_ratio == 1:
            return self.scheme.tau(index, depth)
        mlp = self.residual_mult * math.sqrt(2 / (1 + self.residual_attn_ratio**2))
        square = 1.0  # mean square of the scheme's stream over that of the multiplied one
        for i in range(index + 1):
            tau = self.scheme.tau(i, depth)
            ratio = tau * mlp * (1 if i % 2 else self.residual_attn_ratio) * math.sqrt(square)
            square *= (1 + tau**2) / (1 + ratio**2)
        return ratio


class Residual(nn.Module):
    """A branch around which the input is carried: `y = a * x + b * body(x)`.

    Args:
        body: the branch; its input and output have the same shape.
        scheme: gives `tau = b / a`; see the module docstring.
        index: which branch of the stack this is, from 0.
        depth: how many branches the stack has (only `Alternating` asks).
        norm: the normalization module, or None.
        placement: "pre" `body(norm(x))`; "post" norm of the sum; "res-post" `norm(body(x))`, on
            the branch before the sum; "none".
    """

    split = staticmethod(U.residual_split)
    add = staticmethod(U.residual_add)

    def __init__(
        self,
        body: nn.Module,
        scheme: Scheme = Ratio(),
        *,
        index: int = 0,
        depth: int = 1,
        norm: nn.Module | None = None,
        placement: str = "none",
    ) -> None:
        super().__init__()
        check_placement(placement)
        if (norm is None) != (placement == "none"):
            raise ValueError(
                f"Residual: norm is {type(norm).__name__} and placement is {placement!r}; give "
                "both, or neither."
            )
        self.body = body
        self.norm = nn.Identity() if norm is None else norm
        self.placement = placement
        self.scheme = scheme
        self.place(index, depth)

    def place(self, index: int, depth: int) -> None:
        """Make this branch `index` of `depth`, which sets its ratio."""
        self.index, self.depth = index, depth
        self.tau = self.scheme.tau(index, depth)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result have the shape of the stream."""
        skip, branch = self.split(x, self.tau)
        if self.placement == "pre":
            branch = self.norm(branch)
        branch = self.body(branch)
        if self.placement == "res-post":
            branch = self.norm(branch)
        x = self.add(branch, skip, self.tau)
        return self.norm(x) if self.placement == "post" else x

    def extra_repr(self) -> str:
        """Ratio and placement."""
        return f"tau={self.tau:.4g}, placement={self.placement!r}"


class Stack(nn.Sequential):
    """Layers in turn, around which u-muP's learning rates count the residual branches.

    Rates of what is inside are divided by `sqrt(L)`, L being the number of branches that are added
    to the stream (`optim.rules`). They are counted whenever they are asked for, so layers may come
    and go; `reindex` then gives the branches their ratios anew. A stack in a stack is a part of
    one stream: the outer one counts all. A stack in a branch has a stream of its own, and the
    numbers of the two multiply. A layer that is in the stack twice adds twice.

    Args:
        layers: as for `nn.Sequential`.
        branches: how many residual branches there are, where `Residual`s do not say: a layer that
            calls `U.residual_apply` itself, or writes the sum by hand. None counts `Residual`s. A
            slice of the stack counts again.
    Raises:
        ValueError: `branches` is not an integer of at least 1.
    """

    def __init__(self, *layers: Any, branches: int | None = None) -> None:
        super().__init__(*layers)
        is_count = isinstance(branches, int) and not isinstance(branches, bool) and branches >= 1
        if branches is not None and not is_count:
            raise ValueError(f"Stack: branches is {branches!r}; expected an integer >= 1.")
        self.branches = branches

    @property
    def residual_branches(self) -> int:
        """Number of residual branches of the stream, at least 1."""
        return max(1, sum(count for _, count in stream(self)))

    @property
    def depth(self) -> int:
        """The same, by the name of the papers."""
        return self.residual_branches

    def reindex(self) -> Self:
        """Give every `Residual` of the stream its number and its ratio, after layers changed.

        Raises:
            ValueError: one `Residual` is in the stream twice, and its two ratios differ.
        """
        depth, index = self.residual_branches, 0
        places: dict[Residual, int] = {}
        for module, count in stream(self):
            if isinstance(module, Residual):
                first = places.setdefault(module, index)
                if module.scheme.tau(first, depth) != module.scheme.tau(index, depth):
                    raise ValueError(
                        f"Stack: one Residual is branch {first} and branch {index}, whose ratios "
                        f"differ under {module.scheme}; use a scheme with one ratio for all."
                    )
            index += count
        for module, index in places.items():
            module.place(index, depth)
        return self

    def uncounted(self) -> list[str]:
        """Names of the layers whose residual branches are not counted, if they have any.

        Those that call a residual function themselves; and all, if nothing is counted.
        """
        if self.branches is not None:
            return []
        is_counted = any(True for _ in stream(self))
        return [
            name
            for name, layer in self.named_children()
            if not is_counted or any(map(sums_by_hand, uncounted_modules(layer)))
        ]


def stream(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """What adds to the stream that goes through a module, in order, and how many branches it is.

    Not what is inside of a branch; a module that is there twice, twice.
    """
    if isinstance(module, Residual):
        yield module, 1
    elif isinstance(module, Stack) and module.branches is not None:
        yield module, module.branches
    else:
        for child in module._modules.values():
            if child is not None:
                yield from stream(child)


def uncounted_modules(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all below it, but for stacks that were told their number."""
    if not (isinstance(module, Stack) and module.branches is not None):
        yield module
        for child in module.children():
            yield from uncounted_modules(child)


BY_HAND = {"residual_add", "residual_apply", "residual_split"}


def sums_by_hand(module: nn.Module) -> bool:
    """Whether the code of its `forward` names a residual function."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and not isinstance(module, Residual) and bool(named_in(code) & BY_HAND)


def named_in(code: CodeType) -> set[str]:
    """What a function and those inside it look up by name."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(named_in, inner))


def check_placement(placement: str) -> None:
    """Raise ValueError, with the legal names, unless `placement` is one."""
    if placement not in PLACEMENTS:
        raise ValueError(
            f"unknown norm placement {placement!r}; use one of {', '.join(PLACEMENTS)}."
        )
