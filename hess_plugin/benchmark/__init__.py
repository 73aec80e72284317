"""Time and memory of a whole model over the number of views: the command `hess bench`."""
