"""The C++ program of docs/deploy.md, compiled and run where a compiler and the headers of ONNX Runtime are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import zoo
from lightning_modules import VideoClassifier

PAGE = Path(__file__).parents[3] / "docs/deploy.md"
# The wheel of onnxruntime has the library without its headers, Debian 13 has libonnxruntime-dev.
FOLDERS = (os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime",
           "/usr/include/onnxruntime/core/session", "/usr/local/include")  # fmt: skip


@pytest.mark.slow
def test_the_program_gives_what_the_model_gives(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    headers = next((folder for folder in FOLDERS if folder and Path(folder, "onnxruntime_cxx_api.h").is_file()), None)
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not (compiler and headers and libraries):
        pytest.skip("needs a C++ compiler, and the headers of ONNX Runtime in ONNXRUNTIME_INCLUDE")
    (tmp_path / "classify.cpp").write_text(re.search(r"```cpp\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    library = tmp_path / "libonnxruntime.so.1"  # the name that programs look for; the wheel's has the whole version
    library.symlink_to(libraries[-1])
    subprocess.run(
        [compiler, "-std=c++17", "classify.cpp", f"-I{headers}", library, f"-Wl,-rpath,{tmp_path}",
         "-o", "classify"], check=True, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    torch.manual_seed(0)
    model = VideoClassifier(3, embed_dim=16, depth=1, num_frames=4, image_size=32).eval()
    zoo.export(model, tmp_path / "model.onnx")
    video = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    video.numpy().tofile(tmp_path / "clip.raw")
    found = subprocess.run(
        [tmp_path / "classify", "model.onnx", "clip.raw"], capture_output=True, text=True, check=True, cwd=tmp_path,
        timeout=600,
    ).stdout.split()  # fmt: skip
    with torch.no_grad():
        assert np.abs(np.array(found, float) - model(video)[0].numpy()).max() < 1e-4
