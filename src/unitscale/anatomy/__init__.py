"""Models of `transformers` whose sizes can change: their parameters, shapes, units and folders.

What `growth` and `compress` both read. A leaf of the house imports no other, so it stands below.
"""

__all__: list[str] = []
