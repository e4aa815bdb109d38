"""`python -m lit_prune` is the command `lit-prune`; Lightning starts further processes by it, too."""

import sys

from lit_prune.cli import main

if __name__ == "__main__":
    sys.exit(main())
