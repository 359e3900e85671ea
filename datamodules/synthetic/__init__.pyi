from .kitchen import generate_kitchen as generate_kitchen
from .motion import CLASSES as CLASSES
from .motion import ClipSpec as ClipSpec
from .motion import clip_spec as clip_spec
from .motion import render as render
from .motion import sample_spec as sample_spec
from .writing import generate as generate
from .writing import write_video as write_video
