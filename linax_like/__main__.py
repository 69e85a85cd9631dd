"""`python -m linax_like` is `linax-like`."""

import sys

from .cli import main


sys.exit(main())
