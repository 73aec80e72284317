"""Reconstructions to look at: one HTML page that works offline, and files for any 3D program."""
