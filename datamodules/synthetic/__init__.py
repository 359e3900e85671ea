"""Generated data sets whose answers are known; ``python -m datamodules.synthetic`` writes the clips of the demo.

`motion` makes clips of moving shapes and `kitchen` long videos in the format of EPIC-KITCHENS.
"""
