"""The package where the system lacks what Linux has."""

import subprocess
import sys

from datamodules.synthetic.writing import generate

# Removed before anything of ours is imported; libraries may take them for granted on a system that calls itself Linux.
WITHOUT = """
import os, signal, sys
import av, lightning, torch, torchdata.stateful_dataloader, torchvision, webdataset
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None
for module, names in {
    os: "register_at_fork fork forkpty sched_getaffinity sched_setaffinity pread preadv pwrite O_NONBLOCK mkfifo chown "
        "getuid geteuid getpgid killpg setsid statvfs sysconf getloadavg posix_fadvise",
    signal: "SIGKILL SIGALRM SIGHUP SIGPIPE SIGUSR2 SIGCHLD pthread_sigmask setitimer alarm",
}.items():
    for name in names.split():
        vars(module).pop(name, None)
"""

EVERYTHING = """
import importlib, pkgutil
import datamodules
for name in datamodules.__all__:
    getattr(datamodules, name)
for module in pkgutil.walk_packages(datamodules.__path__, "datamodules."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

SHARDS = """
root, shards = sys.argv[1:]
from datamodules import VideoFolder
from zoo.commands.main import main
options = {"num_frames": 4, "image_size": 32, "short_side": 32, "batch_size": 2, "sampling": "sparse",
           "frame_stride": 1, "interpolation": "bilinear", "resize": "crop"}
main(["shard", root, "-o", shards, "--json"])
same = []
for folder in (root, shards):
    data = VideoFolder(folder, num_workers=0, **options)
    data.setup("test")
    same.append([(item["label"], item["video"]) for item in data.datasets["test"]])
for (label, video), (other_label, other) in zip(*same, strict=True):
    assert label == other_label and video.equal(other) and video.any()
data = VideoFolder(shards, num_workers=0, **options)
data.setup("fit")
assert len(list(data.train_dataloader())) == 1
print("done")
"""


def test_what_windows_lacks(tmp_path):
    """Every module and public name, and shards written and read."""
    generate(tmp_path / "data", num_train=2, num_val=2, num_test=2, size=(64, 48), classes=("grow", "shrink"),
             num_frames=4, num_workers=0, progress=False)  # fmt: skip
    command = [sys.executable, "-c", WITHOUT + EVERYTHING + SHARDS, str(tmp_path / "data"), str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
