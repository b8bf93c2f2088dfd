"""Lightning: `Trainer(plugins=LightningPrecision("fp8"))`, as for its other FP8 libraries."""

import logging
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from unitscale.integrations.kept import find, give, keep, scaled_in, share
from unitscale.recipes import Recipe, parse
from unitscale.units import apply_recipe, unit_scale

if TYPE_CHECKING:
    from lightning.pytorch.plugins.precision import Precision
else:
    try:
        from lightning.pytorch.plugins.precision import Precision
    except ModuleNotFoundError:
        try:
            from pytorch_lightning.plugins.precision import Precision
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "LightningPrecision needs Lightning; run: pip install lightning"
            ) from None

__all__ = ["LightningPrecision"]

CALLER = "LightningPrecision"

log = logging.getLogger(__name__)


class LightningPrecision(Precision):
    """Scales the model of a LightningModule, in place, and keeps its units in every checkpoint.

    Of `fit`, `validate`, `test` and `predict`, whichever runs first scales the model; later ones
    find it scaled. What is scaled is `module`. By default that is the one child that holds all
    parameters of the LightningModule, and else the LightningModule itself. A recipe without units
    is applied (`us.apply_recipe`). Parameters, `state_dict` and optimizers stay as they are, so
    that a checkpoint can be loaded without this plugin; it then has one more key, which Lightning
    does not read. Not for `lightning.Fabric`: call `us.unit_scale` before its `setup`.

    Args:
        recipe: as for `us.unit_scale`.
        module: the path of the module to scale, as in `named_modules`.
        options: what `us.unit_scale` takes by keyword: `inner`, `remeasure`, `skip`, ...
    Raises:
        ValueError: an unknown recipe. When a run starts: no LightningModule; no module of that
            path; the LightningModule or the module is compiled; a part of it is scaled already, or
            it is scaled under another recipe.
    Source: the hooks `convert_module`, `state_dict` and `load_state_dict` of Lightning 2.6.
    """

    def __init__(
        self, recipe: str | Recipe = "fp8", *, module: str | None = None, **options: Any
    ) -> None:
        self.recipe, self.module, self.options = parse(recipe), module, options
        self.converted: nn.Module | None = None
        self.noticed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe.name!r})"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Scale what is not scaled yet; Lightning calls it when a run starts."""
        if not hasattr(module, "training_step"):
            raise ValueError(
                f"{CALLER}: got a {type(module).__name__}, which is no LightningModule; with "
                "Fabric call us.unit_scale(model) before fabric.setup(model), without this plugin."
            )
        if getattr(module, "_compiler_ctx", None) is not None:
            raise ValueError(
                f"{CALLER}: this {type(module).__name__} is compiled (torch.compile), and its "
                "steps would run around the recipe; pass the plain one."
            )
        target = self.target(module)
        scaled = {found: session for _, found, session in scaled_in(module)}
        if target not in scaled:
            scale = unit_scale if self.recipe.unit_scaled else apply_recipe
            scale(target, self.recipe, **self.options)
        elif scaled[target].recipe.name != self.recipe.name:
            raise ValueError(
                f"{CALLER}: this {type(target).__name__} is scaled already, under recipe "
                f"{scaled[target].recipe.name!r} and not {self.recipe.name!r}; call "
                "us.set_recipe(model, recipe) or us.unscale(model) first."
            )
        self.converted, self.noticed = module, False
        return module

    def target(self, module: nn.Module) -> nn.Module:
        """The module to scale."""
        if self.module is not None:
            modules: dict[str, nn.Module] = dict(module.named_modules())
            if self.module not in modules:
                children = [name for name, _ in module.named_children()]
                raise ValueError(
                    f"{CALLER}: module={self.module!r} is no module of this "
                    f"{type(module).__name__}; expected a path, as one of {children}."
                )
            return modules[self.module]
        if any(found is module for _, found, _ in scaled_in(module)):
            return module
        own = {id(p) for p in module.parameters()}
        for child in module.children():
            holds_all = own and own == {id(p) for p in child.parameters()}
            # A list of modules is never called, so that its forward would never run.
            if holds_all and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                return child
        return module

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """One step; after the first, say whether the recipe was in force."""
        result = super().optimizer_step(*args, **kwargs)
        self.notice()
        return result

    def teardown(self) -> None:
        """The run ends."""
        self.notice()
        super().teardown()

    def notice(self) -> None:
        """Warn, once, of a scaled module of which nothing ran."""
        if self.converted is None or self.noticed:
            return
        self.noticed = True
        for path, module, session in scaled_in(self.converted):
            if not session.covered and any(True for _ in module.parameters()):
                warnings.warn(
                    f"{CALLER}: nothing of {path or 'the LightningModule'!r} "
                    f"({type(module).__name__}) has run, so recipe {self.recipe.name!r} was not in "
                    "force; choose what your steps call with module=.",
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, Any]:
        """The units; Lightning calls it in every process and puts it into the checkpoint."""
        if self.converted is None:
            return {}
        share(self.converted)
        return keep(self.converted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say so where a checkpoint has no units: they are measured anew, which is correct too."""
        if type(self).__qualname__ not in checkpoint:
            log.info("%s: the checkpoint holds no units; they are measured anew", CALLER)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The units of a checkpoint, with which a run goes on as if never stopped."""
        if self.converted is None:
            raise ValueError(
                f"{CALLER}: there is no model yet to give the units of a checkpoint to."
            )
        find(self.converted, CALLER)
        give(self.converted, state_dict, CALLER)
