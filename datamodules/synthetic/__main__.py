"""``python -m datamodules.synthetic``: see `datamodules.synthetic.writing`."""

import sys

from datamodules.synthetic.writing import main

if __name__ == "__main__":  # helper processes import this file too
    sys.exit(main())
