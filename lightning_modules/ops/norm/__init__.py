"""The residual sum and its RMS norm: `interface.py` is what callers use, one file per backend beside it."""
