"""The folder of this process for uploads and examples, which other users of the machine cannot read.

Gradio reads when it is imported where uploads go, so this module comes before it. GRADIO_TEMP_DIR names another folder
for uploads.
"""

import atexit
import os
import shutil
import tempfile

from zoo.extras import need

__all__ = ["FOLDER"]

need("gradio", "app", "The page needs Gradio")

FOLDER = tempfile.mkdtemp(prefix="zoo-app-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
if not os.environ.get("GRADIO_TEMP_DIR"):
    os.environ["GRADIO_TEMP_DIR"] = os.path.join(FOLDER, "uploads")
