"""The kernel package, built from `kernels/torch-ext` (see setup.cfg)."""
