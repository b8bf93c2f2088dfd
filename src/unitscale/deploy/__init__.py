"""Serve a model: in the numerics that it was trained in, or quantized when it is finished."""

from unitscale.deploy.export import Export, export
from unitscale.deploy.load import load
from unitscale.deploy.quantize import quantization, quantize
from unitscale.deploy.quantized import QuantizedLayer
from unitscale.deploy.scheme import SCHEMES, Scheme
from unitscale.deploy.sensitivity import Sensitivity, sensitivity
from unitscale.deploy.summary import Quantization
from unitscale.deploy.verify import verify

__all__ = [
    "SCHEMES",
    "Export",
    "Quantization",
    "QuantizedLayer",
    "Scheme",
    "Sensitivity",
    "export",
    "load",
    "quantization",
    "quantize",
    "sensitivity",
    "verify",
]
