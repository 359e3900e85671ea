"""`zoo predict` on an exported ONNX file: the answers of the model, and what is refused."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import zoo
from datamodules.synthetic.motion import clip_spec, render
from datamodules.synthetic.writing import write_video
from lightning_modules import VideoClassifier, VideoRegressor
from zoo.commands.main import main
from zoo.deploy.onnx_model import OnnxModel
from zoo.errors import ZooError

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    pytest.skip("the exporters of older torch know no loops", allow_module_level=True)

SIZE = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "short_side": 40, "sampling": "dense"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and a regressor as files, and a clip."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    classifier = VideoClassifier(3, **SIZE, class_names=["left", "right", "up"])
    regressor = VideoRegressor(**SIZE, value_name="views", value_mean=2.0)
    zoo.export(classifier, folder / "classifier.onnx")
    zoo.export(regressor, folder / "regressor.onnx", input="float32")
    write_video(folder / "clip.mp4", render(clip_spec(0, "test", 0, "grow", size=(96, 64))), 12)
    (folder / "broken.onnx").write_bytes(bytes(range(256)))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "other.onnx"
    )
    return folder, classifier.eval(), regressor.eval()


def test_a_classifier_gives_the_same_table(folder, capsys):
    folder, model, _ = folder
    expected = zoo.predict(model, folder / "clip.mp4")
    found = zoo.predict(str(folder / "classifier.onnx"), folder / "clip.mp4")
    assert [one.label for one in found] == [one.label for one in expected]
    assert np.allclose([one.probability for one in found], [one.probability for one in expected], atol=1e-6)
    main(["predict", str(folder / "classifier.onnx"), str(folder / "clip.mp4"), "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["num_clips"], record["num_crops"]) == (4, 3)
    assert [entry["label"] for entry in record["predictions"]] == [one.label for one in expected]
    assert len(record["seconds"][0]) == 4


def test_a_regressor_gives_the_same_number(folder, capsys):
    folder, _, model = folder
    expected = zoo.predict_value(model, folder / "clip.mp4")
    assert zoo.predict_value(str(folder / "regressor.onnx"), folder / "clip.mp4") == pytest.approx(expected, abs=1e-5)
    main(["predict", str(folder / "regressor.onnx"), str(folder / "clip.mp4")])
    assert "views" in capsys.readouterr().out


def test_tables_and_windows_take_it_too(folder, tmp_path, capsys):
    folder, model, _ = folder
    words = ["predict", str(folder / "classifier.onnx"), str(folder / "clip.mp4")]
    main([*words, "-o", str(tmp_path / "labels.parquet"), "--workers", "0"])
    capsys.readouterr()
    main([*words, "--window", "1", "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    expected = zoo.timeline(model, folder / "clip.mp4", window=1)
    assert len(record["windows"]) == len(expected.seconds)
    assert record["segments"][0]["label"] == expected.segments()[0].label


@pytest.mark.parametrize(
    ("file", "words", "sentence"),
    [
        ("gone.onnx", [], "gone.onnx does not exist; check the path"),
        ("broken.onnx", [], "cannot be opened by ONNX Runtime"),
        ("other.onnx", [], "was not written by `zoo export`"),
        ("classifier.onnx", ["--frames", "8"], "num_frames cannot be changed"),
        ("classifier.onnx", ["--checkpoint", "a.pth"], "checkpoint cannot be changed"),
        ("classifier.onnx", ["--precision", "bf16"], "computes in the precision it was written with"),
    ],
)
def test_what_is_refused(folder, capsys, file, words, sentence):
    folder = folder[0]
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(folder / file), str(folder / "clip.mp4"), *words])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and sentence in error and error.count("\n") == 1


def test_metadata_of_another_kind_is_refused(folder, tmp_path):
    file = onnx.load(folder[0] / "classifier.onnx")
    for name, text in (("preprocessing", "[]"), ("class_names", "{"), ("still", "x")):
        changed = onnx.ModelProto()
        changed.CopyFrom(file)
        next(entry for entry in changed.metadata_props if entry.key == name).value = text
        onnx.save(changed, tmp_path / "changed.onnx")
        with pytest.raises(ZooError, match="was not written by"):
            OnnxModel(tmp_path / "changed.onnx")
