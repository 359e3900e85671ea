"""Measures exported models: forms of the scan in ONNX Runtime, a whole model beside our own path, and int8 weights.

    python benchmarks/export.py [--threads 1] [--rounds 9] [--clips 160]

Times are the processor's (of all threads), since other programs disturb the clock; cases take turns, and medians are
printed. `--parts scan model int8` chooses.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from common import RESULTS, machine, machine_slug, save
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

import zoo
from datamodules.synthetic.motion import CLASSES, clip_spec, render
from datamodules.synthetic.writing import write_video
from zoo.deploy.onnx_file import OPSET

STATES = 16
CHUNK = 40


class Scan(nn.Module):
    """Both directions of one layer, in the order in which they are scanned: u and delta (length, batch, 2, channels), B
    and C (length, batch, 2, states) -> (length, batch, 2, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rates = torch.arange(1.0, STATES + 1)[:, None].expand(2, STATES, channels)
        self.A = nn.Parameter(-rates.contiguous(), requires_grad=False)

    def zeros(self, u: Tensor) -> Tensor:
        return u.new_zeros(u.shape[1], *self.A.shape)

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """As it was kept: the channels innermost, everything inside of one loop."""
        inputs = [delta.unsqueeze(3), (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3)]
        return loop(step, self.zeros(u), inputs, self.A)[1].squeeze(3)


class StatesInnermost(Scan):
    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        def step(h: Tensor, dt: Tensor, x: Tensor, b: Tensor, c: Tensor, A: Tensor) -> list[Tensor]:
            h = torch.exp(dt * A) * h + x * b
            return [h, torch.matmul(h, c)]

        A = self.A.transpose(1, 2).contiguous()
        inputs = [delta.unsqueeze(4), (delta * u).unsqueeze(4), B.unsqueeze(3), C.unsqueeze(4)]
        return loop(step, u.new_zeros(u.shape[1], *A.shape), inputs, A)[1].squeeze(4)


class PerDirection(Scan):
    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        found = []
        for k in range(2):
            inputs = [
                t[:, :, k] for t in (delta.unsqueeze(3), (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3))
            ]
            found.append(loop(step, u.new_zeros(u.shape[1], *self.A.shape[1:]), inputs, self.A[k])[1].squeeze(2))
        return torch.stack(found, dim=2)


class DecayOutside(Scan):
    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        def step(h: Tensor, a: Tensor, x: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
            h = a * h + x * b
            return [h, torch.matmul(c, h)]

        decay = torch.exp(delta.unsqueeze(3) * self.A)
        inputs = [decay, (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3)]
        return loop(step, self.zeros(u), inputs)[1].squeeze(3)


class EightTokens(Scan):
    """Eight tokens in a step: fewer steps, and one exponential for all eight."""

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        def step(h: Tensor, dt: Tensor, x: Tensor, b: Tensor, c: Tensor, A: Tensor) -> list[Tensor]:
            decays, added, states = torch.exp(dt * A).unbind(0), (x * b).unbind(0), []
            for a, new in zip(decays, added, strict=True):
                h = a * h + new
                states.append(h)
            return [h, torch.matmul(c, torch.stack(states))]

        length = u.shape[0]
        parts = [pieces(t, 8) for t in (delta.unsqueeze(3), (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3))]
        return loop(step, self.zeros(u), parts, self.A)[1].flatten(0, 1)[:length].squeeze(3)


class Chunks(Scan):
    """All chunks of 40 tokens at once, three loops: their last states from zero, the states between them, the scan."""

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        def last(h: Tensor, dt: Tensor, x: Tensor, b: Tensor, A: Tensor) -> list[Tensor]:
            return [torch.exp(dt * A) * h + x * b]

        def between(h: Tensor, dt: Tensor, end: Tensor, A: Tensor) -> list[Tensor]:
            return [torch.exp(dt * A) * h + end, h.clone()]

        length = u.shape[0]
        tensors = (delta.unsqueeze(3), (delta * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3))
        dt, x, b, c = (pieces(t, CHUNK).transpose(0, 1) for t in tensors)  # (token, chunk, batch, ...)
        zeros = self.zeros(u)
        (ends,) = loop(last, u.new_zeros(dt.shape[1], *zeros.shape), [dt, x, b], self.A)
        _, starts = loop(between, zeros, [dt.sum(0), ends], self.A)
        y = loop(step, starts, [dt, x, b, c], self.A)[1]
        return y.transpose(0, 1).flatten(0, 1)[:length].squeeze(3)


def step(h: Tensor, dt: Tensor, x: Tensor, b: Tensor, c: Tensor, A: Tensor) -> list[Tensor]:
    h = torch.exp(dt * A) * h + x * b
    return [h, torch.matmul(c, h)]


def loop(step: Callable, start: Tensor, inputs: list[Tensor], *fixed: Tensor) -> list[Tensor]:
    return torch.ops.higher_order.scan(step, [start], inputs, fixed)


def pieces(tensor: Tensor, size: int) -> Tensor:
    """(length, ...) -> (length / size, size, ...), zeros behind the last token."""
    missing = -tensor.shape[0] % size
    padded = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
    return padded.unflatten(0, (-1, size))


FORMS = {
    "one Scan, channels innermost (kept)": Scan,
    "one Scan, states innermost": StatesInnermost,
    "a Scan for each direction": PerDirection,
    "decays before the Scan": DecayOutside,
    "eight tokens in a step": EightTokens,
    f"chunks of {CHUNK}, three Scans": Chunks,
}


def linear_attention(length: int, channels: int) -> onnx.ModelProto:
    """The operator of opset 27 with one head for each channel; it wants B, C and the decays for every one of them."""
    rates = -np.tile(np.arange(1, STATES + 1, dtype=np.float32), (2, channels, 1))
    ints = {"axes3": [3], "axes4": [4], "wide": [1, 1, 1, channels, 1], "heads": [1, length, 2 * channels],
            "all": [1, length, -1], "y": [1, length, 2, channels]}  # fmt: skip
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in ints.items()]
    nodes = [
        *(helper.make_node("Transpose", [k], [f"{k}t"], perm=[1, 0, 2, 3]) for k in ("u", "delta", "B", "C")),
        helper.make_node("Mul", ["ut", "deltat"], ["x"]),
        helper.make_node("Reshape", ["x", "heads"], ["value"]),
        helper.make_node("Unsqueeze", ["deltat", "axes4"], ["d"]),
        helper.make_node("Mul", ["d", "A"], ["dA"]),
        helper.make_node("Reshape", ["dA", "all"], ["decay"]),
    ]
    for name, key in (("B", "key"), ("C", "query")):
        nodes += [
            helper.make_node("Unsqueeze", [f"{name}t", "axes3"], [f"{name}u"]),
            helper.make_node("Expand", [f"{name}u", "wide"], [f"{name}w"]),
            helper.make_node("Reshape", [f"{name}w", "all"], [key]),
        ]
    nodes += [
        helper.make_node("LinearAttention", ["query", "key", "value", "", "decay"], ["o", "state"],
                         update_rule="gated", scale=1.0, q_num_heads=2 * channels, kv_num_heads=2 * channels),
        helper.make_node("Reshape", ["o", "y"], ["ot"]),
        helper.make_node("Transpose", ["ot"], ["out"], perm=[1, 0, 2, 3]),
    ]  # fmt: skip
    sizes = {"u": channels, "delta": channels, "B": STATES, "C": STATES}
    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [length, 1, 2, n]) for k, n in sizes.items()]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [length, 1, 2, channels])
    graph = helper.make_graph(nodes, "scan", inputs, [output], [numpy_helper.from_array(rates, "A"), *constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)], ir_version=10)


def session(model: bytes | str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_turn(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of the processor."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            start = time.process_time()
            run()
            if number:  # the first call allocates
                times[name].append(1000 * (time.process_time() - start))
    return {name: round(statistics.median(found), 1) for name, found in times.items()}


@torch.no_grad()
def measure_scan(length: int, channels: int, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Each form alone: median time of a layer, and the largest difference from the kept one, run step by step."""
    torch.manual_seed(0)
    inputs = [torch.randn(length, 1, 2, channels), torch.rand(length, 1, 2, channels) / 5,
              torch.randn(length, 1, 2, STATES), torch.randn(length, 1, 2, STATES)]  # fmt: skip
    feed = {name: tensor.numpy() for name, tensor in zip(("u", "delta", "B", "C"), inputs, strict=True)}
    expected = Scan(channels)(*inputs).numpy()
    cases, differences = {}, {}
    models: dict[str, bytes] = {}
    for name, form in FORMS.items():
        program = torch.export.export(form(channels), tuple(inputs), strict=False)
        written = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
        written.model.graph.inputs[0].name = "u"
        models[name] = written.model_proto.SerializeToString()
    models["LinearAttention of opset 27"] = linear_attention(length, channels).SerializeToString()
    for name, model in models.items():
        run = session(model, threads)
        given = {entry.name: value for entry, value in zip(run.get_inputs(), feed.values(), strict=True)}
        cases[name] = lambda run=run, given=given: run.run(None, given)
        differences[name] = float(np.abs(cases[name]()[0] - expected).max() / np.abs(expected).max())
    times = in_turn(cases, rounds)
    return {name: {"ms": times[name], "difference": differences[name]} for name in models}


@torch.no_grad()
def measure_model(name: str, frames: int, threads: int, rounds: int) -> dict[str, float]:
    """A whole model of fresh weights: our own path, ONNX Runtime, and the same with int8 weights; batch 1."""
    model = zoo.create(name, num_frames=frames).eval()
    with tempfile.TemporaryDirectory() as folder:
        file, small = f"{folder}/model.onnx", f"{folder}/int8.onnx"
        zoo.export(model, file)
        quantise(file, small)
        runs = {key: session(path, threads) for key, path in (("onnx", file), ("onnx, int8", small))}
        sizes = {f"{key}, MB": round(Path(path).stat().st_size / 1e6, 1)
                 for key, path in (("onnx", file), ("onnx, int8", small))}  # fmt: skip
    video = torch.randint(0, 256, (1, 3, frames, model.image_size, model.image_size), dtype=torch.uint8)
    cases = {key: lambda run=run: run.run(None, {"video": video.numpy()}) for key, run in runs.items()}
    return in_turn({"model": lambda: model(video), **cases}, rounds) | sizes


def quantise(file: str, small: str) -> None:
    """The weights of linear layers as int8, as docs/deploy.md does it."""
    quantize_dynamic(file, small, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def measure_int8(clips: int) -> dict[str, float]:
    """The shipped model on generated clips: how many it names right, in float32 and with int8 weights."""
    with tempfile.TemporaryDirectory() as folder:
        file, small = f"{folder}/model.onnx", f"{folder}/int8.onnx"
        zoo.export("videomamba-nano-motion", file)
        quantise(file, small)
        right: dict[str, list[bool]] = {file: [], small: []}
        labels: dict[str, list[str]] = {file: [], small: []}
        for path, truth in generated(Path(folder), clips):
            for model in (file, small):
                (best,) = zoo.predict(model, path, topk=1)
                right[model].append(best.label == truth)
                labels[model].append(best.label)
        same = [a == b for a, b in zip(*labels.values(), strict=True)]
        return {
            "clips": clips,
            "float32": statistics.mean(right[file]),
            "int8": statistics.mean(right[small]),
            "same answer": statistics.mean(same),
            "float32, MB": round(Path(file).stat().st_size / 1e6, 2),
            "int8, MB": round(Path(small).stat().st_size / 1e6, 2),
        }


def generated(folder: Path, clips: int) -> Iterator[tuple[Path, str]]:
    for number in range(clips):
        spec = clip_spec(0, "test", number, CLASSES[number % len(CLASSES)])
        path = folder / f"{number}.mp4"
        write_video(path, render(spec), spec.fps)
        yield path, spec.motion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("scan", "model", "int8"), default=["scan", "model", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--model", default="videomamba-ti-k400")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--length", type=int, default=1569, help="tokens of the scan: 8 frames of 224 px by default")
    parser.add_argument("--channels", type=int, default=384, help="inner channels of the scan: those of Ti by default")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    parts = {
        "scan": lambda: measure_scan(args.length, args.channels, args.threads, args.rounds),
        "model": lambda: measure_model(args.model, args.frames, args.threads, args.rounds),
        "int8": lambda: measure_int8(args.clips),
    }
    results = {}
    for name in args.parts:
        results[name] = parts[name]()
        print(name)
        for key, value in results[name].items():
            print(f"  {key:40} {value}", flush=True)
    path = args.json or RESULTS / f"export_{machine_slug(about['cpu'], about['cores'])}.json"
    save({"machine": about | {"onnxruntime": onnxruntime.__version__}, "arguments": {
        "threads": args.threads, "model": args.model, "frames": args.frames}, **results}, path)  # fmt: skip


if __name__ == "__main__":
    main()
