"""A folder of generated videos with an index, models without training, and pages that serve them on loopback."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import hub
import zoo
from datamodules.synthetic.motion import CLASSES, clip_spec, render
from datamodules.synthetic.writing import write_video
from lightning_modules.tasks.mambavl import ActionRecognition
from lightning_modules.tasks.retrieval import TextVideoRetrieval

SHIPPED = "videomamba-nano-motion"
SIZE, FPS = (192, 144), 12
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
VERBS = [f"verb {number}" for number in range(8)]


def clip(motion: str, number: int, **options) -> np.ndarray:
    return render(clip_spec(3, "test", number, motion, size=SIZE, fps=FPS, **options))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A clip of each motion, and film.mp4: 24 s of four motions, 6 s each."""
    folder = tmp_path_factory.mktemp("app") / "videos"
    folder.mkdir()
    for number, motion in enumerate(CLASSES):
        write_video(folder / f"{motion}.mp4", clip(motion, number), FPS)
    scenes = [np.tile(clip(motion, 20 + i), (3, 1, 1, 1)) for i, motion in enumerate(("move_up", "grow", "move_right",
              "turn_clockwise"))]  # fmt: skip
    write_video(folder / "film.mp4", np.concatenate(scenes), FPS)
    return folder


@pytest.fixture(scope="session")
def indices(videos) -> SimpleNamespace:
    """Indices of the videos in stretches of 6 s at most: `clips` by the shipped model, which searches by clips, and
    `texts` by a text-video model without training."""
    places = SimpleNamespace(clips=videos.parent / "clips.index", texts=videos.parent / "texts.index")
    torch.manual_seed(0)
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4).eval(), videos.parent / "text_model")
    for place, model in ((places.clips, SHIPPED), (places.texts, str(videos.parent / "text_model"))):
        zoo.index(model, videos, place, window=6.0, num_workers=0)
    return places


@pytest.fixture(scope="session")
def mambavl(videos) -> Path:
    """A MambaVL without training that knows the names of its verbs."""
    torch.manual_seed(0)
    described = yaml.safe_load((Path(zoo.__file__).parent / "models/mambavl-joint-nano.yaml").read_text())["init_args"]
    nouns = [f"noun {number}" for number in range(14)]
    described["vocabulary"] |= {"verb_names": VERBS, "noun_names": nouns}
    described["text"]["vocab_size"] = 514  # bytes: no word pieces to learn
    model = ActionRecognition(3, **described)
    hub.save(model.eval(), videos.parent / "mambavl")
    return videos.parent / "mambavl"


@pytest.fixture(scope="session")
def serve():
    """``with serve(*models, index=None, **limits) as address``: a page on loopback."""

    @contextmanager
    def serving(*models: str, **options) -> Iterator[str]:
        page = zoo.web_app(models, **options)
        page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
        try:
            yield page.local_url.rstrip("/")
        finally:
            page.close(verbose=False)

    return serving
