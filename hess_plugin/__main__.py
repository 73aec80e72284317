"""`python -m hess_plugin` is `hess`."""

import sys

from .cli import main

sys.exit(main())
