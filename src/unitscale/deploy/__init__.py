"""Serve a model in the numerics that it was trained in: export, and reading exports back."""

from unitscale.deploy.export import Export, export

__all__ = ["Export", "export"]
