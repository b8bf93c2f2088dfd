"""Serve a model in the numerics that it was trained in: export, and reading exports back."""

from unitscale.deploy.export import Export, export
from unitscale.deploy.load import load
from unitscale.deploy.verify import verify

__all__ = ["Export", "export", "load", "verify"]
