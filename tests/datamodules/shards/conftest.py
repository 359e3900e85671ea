import pytest

from datamodules.shards.writing import Source


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_video):
    """Nine small videos of two classes; names with dots, spaces and other letters."""
    folder = tmp_path_factory.mktemp("sources")
    videos = [make_video(folder / f"v.{i} ü.mp4", 3 + i) for i in range(9)]
    return [Source(str(video), f"class/{video.name}", {"label": i % 2}) for i, video in enumerate(videos)]
