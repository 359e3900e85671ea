"""Features of long videos: what they are made of, and that an interrupted extraction goes on."""

import pytest
import torch
from safetensors.torch import load_file

from datamodules.synthetic.kitchen import generate_kitchen
from datamodules.video.decode import VideoReader
from datamodules.video.resize import center_crop
from datamodules.video.sampling import clip_indices
from lightning_modules.tasks.classification import VideoClassifier
from zoo.errors import ZooError
from zoo.inference.features import extract, find_sources


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Ten videos of 6 seconds."""
    return generate_kitchen(tmp_path_factory.mktemp("features") / "kitchen", num_train=4, num_val=5, num_test=1,
                            actions=3, size=(32, 32), num_frames=12, num_workers=0, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return VideoClassifier(2, embed_dim=16, depth=1, num_frames=4, image_size=32, tubelet_size=2).eval()


def test_features_are_the_models_on_each_window(kitchen, tower, tmp_path):
    done = extract(tower, kitchen, tmp_path / "cls", window=1.0, stride=0.5)
    videos = find_sources(kitchen)
    assert done == (len(videos), len(videos), 0, 0) and len(videos) == 10
    name, path = next(iter(videos.items()))
    found = load_file(tmp_path / "cls" / f"{name}.safetensors")
    last = 6.0 - 1 / 12  # of 6 seconds at 12 frames a second
    assert found["features"].shape == (11, 16) and found["seconds"].shape == (11, 2)
    assert ((found["seconds"][:, 0] - torch.arange(11) / 2).abs() < 0.1).sum() >= 10
    assert found["seconds"].max() <= last + 1e-4
    # The fourth window by another way: the whole video decoded, its frames from 1.5 to 2.5 seconds.
    with VideoReader(path) as reader:
        positions = 18 + clip_indices(13, 4, sampling="sparse", mode="val")
        clip = center_crop(reader.read(positions, short_side=32), 32)
    with torch.no_grad():
        expected = tower.forward_features(clip.transpose(0, 1)[None])[0]
    torch.testing.assert_close(found["features"][3], expected, rtol=1e-4, atol=1e-5)

    frames = extract(tower, path, tmp_path / "frames", tokens="frames", window=1.0, stride=1.0)
    assert frames.extracted == 1
    found = load_file(tmp_path / "frames" / f"{path.stem}.safetensors")
    assert found["features"].shape[1] == 16 and len(found["features"]) == 2 * 6  # 6 windows, 2 tubelets each
    assert (found["seconds"].mean(1).diff() >= 0).all()


def test_an_interrupted_extraction_goes_on(kitchen, tower, tmp_path):
    out = tmp_path / "features"
    shares = [extract(tower, kitchen, out, shard=(k, 3), window=2.0) for k in (1, 2)]
    assert all(share.videos == share.extracted for share in shares)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = extract(tower, kitchen, out, window=2.0)
    assert done.kept == len(before) == sum(share.videos for share in shares) and done.videos == 10
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.stem for path in out.iterdir()) == sorted(find_sources(kitchen))  # nothing half-written
    with pytest.raises(ZooError, match=r"was made with other settings \(window 2\.0\); choose another folder"):
        extract(tower, kitchen, out, window=3.0)
    with pytest.raises(ZooError, match="other settings"):  # other weights
        extract(VideoClassifier(2, 16, 1, num_frames=4, image_size=32, tubelet_size=2), kitchen, out, window=2.0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.warns(UserWarning, match=r"broken\.mp4 .* \(no features of it\)"):
        assert extract(tower, broken, out, window=2.0) == (1, 0, 1, 0)


def test_which_videos_are_found(tmp_path):
    for name in ("a/videos/P01_01.MP4", "a/rgb_frames/P01_01.tar", "a/flow_frames/P01_01.tar", "a/.hidden/x.mp4",
                 "b/P02_01/frame_0000000001.jpg", "b/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_sources(tmp_path) == {"P01_01": tmp_path / "a/rgb_frames/P01_01.tar", "P02_01": tmp_path / "b/P02_01"}
    (tmp_path / "b" / "P01_01.webm").touch()
    (tmp_path / "a/rgb_frames/P01_01.tar").unlink()
    with pytest.raises(ZooError, match="have the same name"):
        find_sources(tmp_path)
    with pytest.raises(ZooError, match="holds no videos"):
        find_sources(tmp_path / "a" / ".hidden" / "nothing")
