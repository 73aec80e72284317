"""`python -m hess_plugin.calibrate`: the same as `hess calibrate`, in the form that launchers take."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
