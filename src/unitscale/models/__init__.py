"""Models: one written once and built in two parametrizations, and others to learn the method from.

`CharLMConfig` costs no import of torch, so that a command line can check its arguments first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import CharLMConfig

if TYPE_CHECKING:
    from .charlm import CharLM
    from .conv import ConvLM
    from .decoder import Decoder, mus_decoder

__all__ = ["CharLM", "CharLMConfig", "ConvLM", "Decoder", "mus_decoder"]

_HOMES = {"CharLM": "charlm", "ConvLM": "conv", "Decoder": "decoder", "mus_decoder": "decoder"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
