"""torchtitan: a model converter, which its releases take by name in `model.converters`."""

from typing import Any, ClassVar

from torch import nn

from unitscale.recipes import Recipe, parse
from unitscale.units import apply_recipe, unit_scale

__all__ = ["TorchtitanConverter"]

CALLER = "TorchtitanConverter"
OTHERS = ("quantize.", "float8", "mx")
"""Beginnings of the names of converters that round products too."""


class TorchtitanConverter:
    """Scales a model between its construction and its parallelization, in place.

    ```python
    from torchtitan.protocols.model_converter import register_model_converter
    from unitscale.integrations import TorchtitanConverter

    register_model_converter(TorchtitanConverter.of("fp8"), "unitscale-fp8")
    ```

    and `converters = ["unitscale-fp8"]` in the section `[model]` of the job. FSDP, HSDP, DDP and
    activation checkpointing stay as they are. Units are not in torchtitan's checkpoints, because
    the protocol has no place for them: a resumed run measures them at its first step, which is
    correct, with other roundings than those of a run that was not stopped.

    Args:
        job_config: torchtitan's `JobConfig`.
        parallel_dims: torchtitan's `ParallelDims`.
    Raises:
        ValueError: the job compiles the model, which would run its blocks around the recipe; it
            has tensor, context, pipeline or expert parallelism; another converter rounds products.
    Source: torchtitan 0.2.2, its page on extensions and `protocols/model_converter.py`. Its main
    branch of August 2026 has no such protocol any more: it converts the model's configuration.
    """

    recipe: ClassVar[str | Recipe] = "fp8"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, job_config: Any, parallel_dims: Any) -> None:
        refuse_compilation(job_config)
        refuse_parallelism(parallel_dims)
        names = [name for name in job_config.model.converters if name.startswith(OTHERS)]
        if names:
            raise ValueError(
                f"{CALLER}: model.converters has {names} too, which would round the same products "
                "once more; leave one of them out."
            )

    @classmethod
    def of(cls, recipe: str | Recipe, **options: Any) -> type["TorchtitanConverter"]:
        """The converter of a recipe, with what `us.unit_scale` takes by keyword.

        Raises:
            ValueError: an unknown recipe.
        """
        found = parse(recipe)
        return type(cls.__name__, (cls,), {"recipe": found, "options": options})

    def convert(self, model: nn.Module) -> None:
        """Scale the model, which may be on the meta device still."""
        recipe = parse(self.recipe)
        scale = unit_scale if recipe.unit_scaled else apply_recipe
        scale(model, recipe, **self.options)

    def post_optimizer_hook(self, model: nn.Module | list[nn.Module]) -> None:
        """Nothing is left to do after a step: units are taken from the tensors themselves."""


def refuse_compilation(job_config: Any) -> None:
    """Refuse a job that compiles each block of the model: the recipe compiles the model itself."""
    compiled = job_config.compile
    if compiled.enable and "model" in compiled.components:
        raise ValueError(
            f"{CALLER}: compile.components is {list(compiled.components)}; the recipe compiles the "
            "model itself, so leave 'model' out: compile.components = ['loss']."
        )


def refuse_parallelism(parallel_dims: Any) -> None:
    """Refuse what splits a model otherwise than by its batch."""
    for name in ("tp", "cp", "pp", "ep"):
        degree = getattr(parallel_dims, name, 1)
        if degree > 1:
            raise ValueError(
                f"{CALLER}: the job has {name} of degree {degree}; recipes are checked under FSDP, "
                f"HSDP and DDP alone: set that degree to 1."
            )
