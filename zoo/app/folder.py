"""The folder of this process for uploads and examples, which other users of the machine cannot read.

Gradio reads when it is imported where uploads go, so this module comes before it. GRADIO_TEMP_DIR names another folder
for uploads.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile

from zoo.errors import ZooError

__all__ = ["FOLDER"]

if importlib.util.find_spec("gradio") is None:
    raise ZooError("The page needs Gradio; install it: pip install 'video-mamba-zoo[app]'.")

FOLDER = tempfile.mkdtemp(prefix="zoo-app-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
if not os.environ.get("GRADIO_TEMP_DIR"):
    os.environ["GRADIO_TEMP_DIR"] = os.path.join(FOLDER, "uploads")
