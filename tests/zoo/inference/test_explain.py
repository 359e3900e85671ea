"""Heat lies on the object that moves, and adds up to what the model loses without it; `zoo explain`."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import hub
import zoo
from datamodules.synthetic.motion import CLASSES, clip_spec, object_mask, render
from datamodules.synthetic.writing import write_video
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.tasks.regression import VideoRegressor
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.inference.explain import BASELINES, METHODS, Explanation
from zoo.inference.heat_pictures import shade

NANO = "videomamba-nano-motion"
CLIPS = 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """(path, spec) of a few generated videos."""
    folder, made = tmp_path_factory.mktemp("clips"), []
    for number in range(CLIPS):
        spec = clip_spec(1, "test", number, CLASSES[2 * number])
        write_video(folder / f"{spec.motion}.mp4", render(spec), spec.fps)
        made.append((folder / f"{spec.motion}.mp4", spec))
    return made


@pytest.fixture(scope="module")
def model():
    return zoo.load(NANO)


def log_odds(model, clip, label):
    with torch.inference_mode():
        probability = model(clip[None]).double().softmax(1)[0, model.class_names.index(label)]
    return (probability / (1 - probability)).log().item()


@pytest.mark.parametrize("method", METHODS)
def test_more_heat_on_the_object_than_its_area(model, clips, method):
    shares, areas = [], []
    for path, spec in clips:
        found = zoo.explain(model, path, method=method, steps=8)
        assert found.label == spec.motion and found.probability > 0.5
        mask = object_mask(spec)[(found.seconds * spec.fps).round().astype(int)]
        mask = F.interpolate(torch.from_numpy(mask).float()[:, None], size=found.heat.shape[1:], mode="area")[:, 0]
        support = found.heat.clamp_min(0)
        shares.append(float((support * mask).sum() / support.sum()))
        areas.append(float(mask.mean()))
    assert np.mean(shares) > 1.3 * np.mean(areas)


def test_what_comes_back(model, clips):
    path, spec = clips[0]
    heat, label, probability, frames, seconds = zoo.explain(NANO, path, tube=(4, 24))
    (best,) = zoo.predict(model, path, topk=1, num_clips=1, num_crops=1)
    assert (label, probability) == (best.label, pytest.approx(best.probability, abs=1e-6))
    assert heat.shape == (8, 48, 48) and heat.dtype == torch.float32
    assert frames.shape == (8, 3, 48, 48) and frames.dtype == torch.uint8
    assert seconds.tolist() == sorted(seconds) and 0 <= seconds[0] < seconds[-1] < spec.duration_seconds


@pytest.mark.parametrize("baseline", BASELINES)
def test_both_methods_have_all_the_log_odds_in_one_tube(model, clips, baseline):
    """What the class loses when the whole clip is covered: integrated gradients add up to it."""
    whole = {"tube": (8, 48), "baseline": baseline, "steps": 100}
    path, spec = clips[1]
    occluded, integrated = (zoo.explain(model, path, None, method, **whole) for method in METHODS)
    assert occluded.heat.min() == occluded.heat.max()
    torch.testing.assert_close(integrated.heat, occluded.heat, rtol=0.1, atol=0.0)
    if baseline == "mean":
        clip = occluded.frames.transpose(0, 1)
        covered = clip.float().mean((1, 2, 3), keepdim=True).round().byte().expand_as(clip)
        lost = log_odds(model, clip, spec.motion) - log_odds(model, covered, spec.motion)
        assert occluded.heat[0, 0, 0].item() == pytest.approx(lost, rel=1e-3)


@pytest.mark.slow
def test_tubes_are_those_of_the_definition(model, clips):
    """One at a time, without batches: half overlapping, the last ones end with the clip."""
    path, _ = clips[2]
    heat, label, _, frames, _ = zoo.explain(model, path, "grow", tube=(3, 20))
    clip = frames.transpose(0, 1)
    colour = clip.float().mean((1, 2, 3)).round().byte()
    whole = log_odds(model, clip, "grow")
    total, count = np.zeros((8, 48, 48)), np.zeros((8, 48, 48))
    for t in range(6):
        for y in (0, 10, 20, 28):
            for x in (0, 10, 20, 28):
                covered = clip.clone()
                covered[:, t : t + 3, y : y + 20, x : x + 20] = colour.view(3, 1, 1, 1)
                total[t : t + 3, y : y + 20, x : x + 20] += whole - log_odds(model, covered, "grow")
                count[t : t + 3, y : y + 20, x : x + 20] += 1
    assert label == "grow"
    np.testing.assert_allclose(heat.numpy(), total / count, atol=1e-3)


def test_a_class_of_ones_own(model, clips):
    path, spec = clips[0]
    other = next(name for name in model.class_names if name != spec.motion)
    by_name = zoo.explain(model, path, other, tube=(8, 24))
    by_index = zoo.explain(model, path, model.class_names.index(other), tube=(8, 24))
    assert by_name.label == by_index.label == other and by_name.probability < 0.5
    assert torch.equal(by_name.heat, by_index.heat)
    assert not torch.equal(by_name.heat, zoo.explain(model, path, tube=(8, 24)).heat)


def test_the_model_is_as_before(clips):
    model = zoo.load(NANO).train()
    for method in METHODS:
        zoo.explain(model, clips[0][0], method=method, tube=(8, 48), steps=2)
        assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_an_image_model_explains_a_still(tmp_path, clips):
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 1, "num_frames": None, "image_size": 32}
    hub.save(VideoClassifier(3, **sizes), tmp_path / "image")
    for method in METHODS:
        found = zoo.explain(tmp_path / "image", clips[0][0], method=method)
        assert found.heat.shape == (1, 32, 32) and found.label.startswith("class ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "growing"}, "did you mean 'grow'?"),
        ({"target": 8}, "from 0 to 7"),
        ({"method": "gradcam"}, "choose one of occlusion, integrated-gradients"),
        ({"baseline": "black"}, "choose one of mean, blur"),
        ({"tube": (9, 8)}, "the frames of tube is 9"),
        ({"tube": (8, 0)}, "the pixels of tube is 0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_arguments_are_named(model, clips, arguments, words):
    with pytest.raises(ZooError, match=r"[.?]$") as error:
        zoo.explain(model, clips[0][0], **arguments)
    assert words in str(error.value)


def test_a_regressor_has_no_classes(clips):
    sizes = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32}
    with pytest.raises(ZooError, match="predicts a number"):
        zoo.explain(VideoRegressor(**sizes), clips[0][0])


def test_without_captum_the_pip_line(model, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ZooError, match=r"pip install 'video-mamba-zoo\[explain\]'"):
        zoo.explain(model, clips[0][0], method="integrated-gradients")
    assert zoo.explain(model, clips[0][0], tube=(8, 48)).heat.shape == (8, 48, 48)


@pytest.fixture
def command(capsys):
    """`zoo explain` in this process -> exit status, standard output, standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        status = 0
        try:
            main(["explain", *map(str, arguments)])
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return call


def test_the_command_saves_pictures_and_arrays(command, clips, tmp_path):
    path, spec = clips[0]
    files = {name: tmp_path / "out" / f"heat.{name}" for name in ("png", "webp", "npz")}
    options = ["--tube", "4", "12", "--plot", files["png"], "--animation", files["webp"], "--array", files["npz"]]
    status, out, error = command(NANO, path, *options)
    assert (status, error) == (0, "") and f"{path.name}: {spec.motion}" in out
    assert all(str(file) in out for file in files.values())
    expected = zoo.explain(NANO, path, tube=(4, 12))
    with np.load(files["npz"]) as saved:
        np.testing.assert_array_equal(saved["heat"], expected.heat.numpy())
        np.testing.assert_array_equal(saved["frames"], expected.frames.numpy())
        assert saved["seconds"].tolist() == expected.seconds.tolist() and saved["label"] == spec.motion
    with Image.open(files["webp"]) as animation:
        assert (animation.n_frames, animation.size) == (8, (384, 192))  # frame and heat, four times as large
    with Image.open(files["png"]) as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**20)) > 500
    support = [float(line.split()[2].rstrip("%")) for line in out.splitlines() if " s " in line]
    shares = expected.heat.clamp_min(0).sum((1, 2))
    np.testing.assert_allclose(support, (100 * shares / shares.sum()).tolist(), atol=0.06)


def test_the_command_writes_json(command, clips, tmp_path):
    path, _ = clips[1]
    arguments = [NANO, path, "--target", "grow", "--json", "--array", tmp_path / "heat.npy"]
    status, out, error = command(*arguments, "--method", "integrated-gradients")
    assert (status, error) == (0, "")
    found, heat = json.loads(out), np.load(tmp_path / "heat.npy")
    assert (found["label"], found["method"], len(found["seconds"])) == ("grow", "integrated-gradients", 8)
    cells = heat.reshape(8, 16, 3, 16, 3).mean((2, 4))
    np.testing.assert_allclose(found["heat"], cells, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "heat.txt"], "heat.txt has none of the endings"),
        (["--animation", "heat.png"], "heat.png has none of the endings .webp, .gif"),
        (["--array", "heat.csv"], "heat.csv has none of the endings .npy, .npz"),
        (["--target", "growing"], "did you mean 'grow'?"),
    ],
)
def test_the_command_refuses_in_one_sentence(command, clips, options, words):
    status, out, error = command(NANO, clips[0][0], *options)
    assert (status, out, error.count("\n")) == (1, "", 1) and words in error


def test_colours_say_for_and_against():
    heat = torch.zeros(2, 4, 4)
    heat[0, 0, 0], heat[1, 3, 3] = 2.0, -2.0
    found = Explanation(heat, "a", 0.5, torch.full((2, 3, 4, 4), 100, dtype=torch.uint8), np.arange(2.0))
    red, green, blue = shade(found).int().unbind(1)
    assert red[0, 0, 0] > green[0, 0, 0] > blue[0, 0, 0] and red[1, 3, 3] < green[1, 3, 3] < blue[1, 3, 3]
    assert (red == blue).sum() == 30  # grey where nothing counts
