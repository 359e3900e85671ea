"""The page of `zoo app`: classify a clip, search an index, ask about a video (docs/app.md).

Gradio reads when it is imported where uploads go, so this is settled here: a folder that other users of the machine
cannot read, and that goes with the process, unless GRADIO_TEMP_DIR names one.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile

from zoo.errors import ZooError

if importlib.util.find_spec("gradio") is None:
    raise ZooError("The page needs Gradio; install it: pip install 'video-mamba-zoo[app]'.")
if not os.environ.get("GRADIO_TEMP_DIR"):
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="zoo-app-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
