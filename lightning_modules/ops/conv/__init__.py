"""The short depthwise convolution of Mamba: `interface.py` is what callers use, one file per backend beside it."""
