"""A captured graph: its tensors and their names, where in the model it runs, ops written out."""

__all__: list[str] = []
