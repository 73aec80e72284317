"""The kernel package is imported from its source folder: these tests need nothing else of the project."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "torch-ext"))
