"""Templates of the model cards that accompany pushed scores."""
