"""`python -m topiarist`."""

import sys

from topiarist.cli import main

sys.exit(main())
