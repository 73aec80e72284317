"""Every example in a docstring of the package is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import hess_plugin

ACT_ON_IMPORT = {"hess_plugin.auto", "hess_plugin.__main__"}
# Installed from folders of their own, where walking the package does not lead.
MAPPED = (
    "hess_plugin.hub_cards",
    "hess_plugin.kernels.hess_attention",
    "hess_plugin.kernels.hess_attention.reference",
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hess_plugin.__path__, "hess_plugin.")
    if module.name not in ACT_ON_IMPORT
)


@pytest.mark.parametrize("name", [*MODULES, *MAPPED])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found() -> None:
    attempted = doctest.testmod(importlib.import_module("hess_plugin.sparsity.budgets")).attempted
    assert attempted > 0
