"""`python -m minivl`: the same as the `minivl` command."""

import sys

from minivl.cli import main

sys.exit(main())
