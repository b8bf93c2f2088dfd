"""The model of a plan, at any depth, from a configuration of `transformers` or a factory.

It is built of fake tensors: shapes and dtypes without numbers, so that 70 billion parameters take
no memory.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from unitscale.models.existing import find_factory
from unitscale.models.next_byte import as_loss
from unitscale.train.device import DTYPES
from unitscale.train.initial import failing

CONFIG = "config.json"

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
"""What configurations call the number of their layers."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from.

    Args:
        name: for people.
        config: of `transformers`; None for a factory.
        factory: MODULE:FACTORY, or a built-in name; None for a configuration.
        options: the arguments of the factory.
        dtype: "fp32" or "bf16".
    """

    name: str
    dtype: str
    config: Mapping[str, Any] | None = None
    factory: str | None = None
    options: Mapping[str, Any] | None = None

    @property
    def depth(self) -> int | None:
        """The number of layers, if all of them are alike and it can be changed; else None."""
        if self.config is None:
            return None
        name = next((name for name in DEPTHS if name in self.config), None)
        depth = self.config.get(name) if name else None
        # A list with an entry for each layer says that they differ.
        lists = [value for value in self.config.values() if isinstance(value, list)]
        alike = all(len(value) != depth or len(set(map(str, value))) == 1 for value in lists)
        return depth if isinstance(depth, int) and alike else None

    def build(self, depth: int | None = None) -> nn.Module:
        """The model as `model(ids, targets) -> loss`, with so many layers.

        Call it inside of `without_memory`.

        Raises:
            ModelError: its code failed. ValueError: as `find_factory`.
        """
        if self.config is None:
            assert self.factory is not None
            options = dict(self.options or {})
            factory = find_factory(self.factory, options)
            with failing(f"{self.factory} failed with {options}"), in_dtype(self.dtype):
                return as_loss(factory(**options), self.name)
        from transformers import AutoConfig, AutoModelForCausalLM

        values = dict(self.config)
        if depth is not None:
            values |= {name: depth for name in DEPTHS if name in values}
            for key, value in values.items():
                if isinstance(value, list) and len(value) == self.depth:
                    values[key] = value[:depth]
        values |= {"use_cache": False}
        values.pop("dtype", None)
        values.pop("torch_dtype", None)
        with failing(f"{self.name}: transformers cannot build it"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.for_model(**values)
            make: Any = AutoModelForCausalLM.from_config
            model = make(config, dtype=DTYPES[self.dtype])
        return as_loss(model, self.name)


@contextmanager
def in_dtype(name: str) -> Iterator[None]:
    """Inside, floating-point tensors are made in this dtype; fake ones cannot be moved to it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[name])
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """Inside, every new tensor is fake. The random state is left as it was."""
    state = torch.random.get_rng_state()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            yield mode
    finally:
        torch.random.set_rng_state(state)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration of `transformers`, as config.json of a model holds it.

    Args:
        path: of the file, or of the model's folder.
    Raises:
        ValueError: a folder without it, no JSON object, or none with a `model_type` that
            `transformers` knows; the package is not installed.
        OSError: it cannot be read.
    """
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} has no {CONFIG}; expected a model's folder, or that file")
        path = path / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; expected a model's config.json") from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        what = "no model_type" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(
            f"{path} holds {what}; expected a config.json of transformers, with a model_type such "
            "as 'llama'"
        )
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ModuleNotFoundError as error:
        raise ValueError("--config needs transformers; run: pip install 'unitscale[hf]'") from error
    if found["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{path}: transformers has no causal language model of model_type "
            f"{found['model_type']!r}"
        )
    return found
