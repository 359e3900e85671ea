"""bfloat16 in products: everything that answers about videos takes it, tables note it, and scans stay in float32."""

import json
from types import SimpleNamespace

import pytest
import torch

import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.ops import use_backend
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.inference.features import VideoFeatures
from zoo.inference.long_videos import timeline
from zoo.inference.precision import check_precision, inference, multiplies_bfloat16
from zoo.tables.fill import check_settings

NANO = "videomamba-nano-motion"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return zoo.load(NANO)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    generate(folder, num_train=0, num_val=0, num_test=2, classes=("grow", "shrink"), num_frames=8, size=(48, 40),
             num_workers=0, progress=False)  # fmt: skip
    return sorted(map(str, folder.rglob("*.mp4")))


def features(model, clip, precision):
    return torch.tensor(VideoFeatures(model, precision=precision)([clip])["features"][0])


ANSWERS = {
    "predict": lambda *a: torch.tensor([one.probability for one in zoo.predict(*a[:2], topk=99, precision=a[2])]),
    "features": lambda *a: zoo.extract_features(*a[:2], precision=a[2]),
    "predictor": lambda *a: torch.tensor(zoo.VideoPredictor(a[0], topk=99, precision=a[2])([a[1]])["probabilities"][0]),
    "extract": features,
    "index": lambda *a: torch.tensor(zoo.VideoEmbedder(a[0], precision=a[2])([a[1]])["vector"][0]),
    "timeline": lambda *a: timeline(*a[:2], precision=a[2]).probabilities[0],
}


@pytest.mark.filterwarnings("ignore:This CPU has no instructions")
@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_differ_by_the_rounding_of_bfloat16(model, clips, kind):
    exact, rounded = (ANSWERS[kind](model, clips[0], precision) for precision in ("fp32", "bf16"))
    assert rounded.dtype == exact.dtype == torch.float32
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_products_are_bfloat16_and_the_residual_stream_is_float32(model, backend):
    block, seen = model.net.layers[0], []
    hooks = [
        block.mixer.in_proj.register_forward_hook(lambda *a: seen.append(a[2].dtype)),
        block.register_forward_hook(lambda *a: seen.append(a[2][1].dtype)),
    ]
    video = torch.zeros(1, 3, 8, 48, 48, dtype=torch.uint8)
    with use_backend(backend), inference("bf16", CPU):
        assert model(video).isfinite().all()
    assert seen == [torch.bfloat16, torch.float32]
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16), inference("fp32", CPU):
        model(video)
    assert seen[2:] == seen[:2]  # what a caller has chosen stays
    for hook in hooks:
        hook.remove()


def test_an_index_keeps_to_its_precision(model, clips, tmp_path, capsys):
    pytest.importorskip("lancedb")
    out = str(tmp_path / "my.index")
    command = ["index", NANO, *clips, "-o", out, "--workers", "0", "--json"]
    main([*command, "--precision", "bf16"])
    assert json.loads(capsys.readouterr().out)["indexed"] == 2
    with pytest.raises(SystemExit):
        main(command)
    assert "my.index was made with other settings (precision bf16)" in capsys.readouterr().err


def test_tables_from_before_there_was_a_choice_are_float32():
    check_settings("a.parquet", {"window": 2.0}, {"window": 2.0, "precision": "fp32"})
    with pytest.raises(ZooError, match=r"^a.parquet was made with other settings \(precision fp32\)"):
        check_settings("a.parquet", {"window": 2.0}, {"window": 2.0, "precision": "bf16"})


def test_a_precision_that_does_not_exist_is_refused(model, clips):
    with pytest.raises(ZooError, match=r"^precision is 'half'; choose one of fp32, bf16\.$"):
        zoo.predict(model, clips[0], precision="half")


@pytest.mark.parametrize(
    ("cpu_info", "fast"),
    [
        ("vendor_id : AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16 avx512vbmi\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs : bf16\n", False),
        ("", False),
    ],
)
def test_a_cpu_without_bfloat16_is_warned_about(cpu_info, fast, recwarn, monkeypatch):
    assert multiplies_bfloat16(cpu_info) is fast
    monkeypatch.setattr("datamodules.storage.processes.cpu_info", lambda: cpu_info)
    check_precision("bf16", CPU)
    check_precision("fp32", CPU)
    check_precision("bf16", SimpleNamespace(type="cuda"))
    sentence = (
        "This CPU has no instructions for bfloat16 (avx512_bf16, AMX), so bf16 is slower here than fp32; omit it."
    )
    assert [str(one.message) for one in recwarn] == ([] if fast else [sentence])
