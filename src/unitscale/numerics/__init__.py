"""Statistics of tensors that say how well a number format holds them."""
