"""Optimizers with the u-muP learning-rate rules: one learning rate for every width and depth."""

from .groups import param_groups
from .optimizers import SGD, Adam, AdamW

__all__ = ["SGD", "Adam", "AdamW", "param_groups"]
