"""Head sensitivity from scenes with ground truth; knows nothing of sparse attention."""
