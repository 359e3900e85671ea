"""``python -m datamodules.synthetic``: see `datamodules.synthetic.motion`."""

import sys

from datamodules.synthetic.motion import main

if __name__ == "__main__":  # helper processes import this file too
    sys.exit(main())
