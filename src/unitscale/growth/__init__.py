"""A larger model from a trained one, with its optimizer and its units."""
