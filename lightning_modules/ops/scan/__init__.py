"""The selective scan of Mamba: `interface.py` is what callers use, one file per backend beside it."""
