"""Geometry without models: camera conventions, similarities, nearest neighbours."""
