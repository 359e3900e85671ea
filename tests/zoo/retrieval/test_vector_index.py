"""The index on disk: what is found, in which order, and what is left when several add, tidy and die."""

import json
import math
import multiprocessing
import os
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.retrieval import vector_index
from zoo.retrieval.vector_index import File, Hit, Index, Record


def unit(n, dims=16, seed=0):
    return F.normalize(torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)), dim=1)


def records(n, first=0):
    """Three windows a video."""
    return [Record(f"v{(first + i) // 3}.mp4", float(i % 3), i % 3 + 0.5) for i in range(n)]


def content(index):
    return {record: vector.tolist() for record, vector in index.records()}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(vector_index, "ROWS", 7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_record_is_found_by_its_own_vector(tmp_path, dtype):
    index = Index.create(tmp_path / "i", 16, dtype)
    vectors = unit(50)
    index.add(records(20), vectors[:20])
    index.add(records(30, first=21), vectors[20:])
    assert len(index) == 50
    again = Index.open(tmp_path / "i")
    expected = [*records(20), *records(30, first=21)]
    for row, (hit, second) in enumerate(again.search(vectors, topk=2)):
        assert hit[:3] == expected[row] and hit.score == pytest.approx(1, abs=1e-3) and second.score < hit.score
    assert content(again) == dict(zip(expected, vectors.to(getattr(torch, dtype)).tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), max_size=40),
    st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_the_same_as_sorting_everything_ties_included(tmp_path_factory, rows, queries, topk, cut):
    """Small integers: products are exact, and equal ones frequent, within and across blocks; these come by path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_index, "ROWS", 5)
        index = Index.create(tmp_path_factory.mktemp("ties") / "i", 2)
        for first in range(0, len(rows), cut):
            some = [Record(f"{first + i}.mp4", 0.0, 1.0) for i in range(len(rows[first : first + cut]))]
            index.add(some, torch.tensor(rows[first : first + cut], dtype=torch.float32))
        found = index.search(torch.tensor(queries, dtype=torch.float32), topk)
    for query, hits in zip(queries, found, strict=True):
        scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows]
        best = sorted(range(len(rows)), key=lambda i: (-scores[i], f"{i}.mp4"))[:topk]
        assert hits == [Hit(f"{i}.mp4", 0.0, 1.0, scores[i]) for i in best]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_answer_does_not_depend_on_the_parts(tmp_path, dtype):
    """Interrupted runs and several readers leave the same records in other parts and another order. A matrix product
    sums by the shape of its operands, so its last bits, and with them the order of near scores, would differ."""
    n, dims = 300, 512
    vectors = unit(n, dims) * 0.05 + unit(1, dims, seed=1)  # all near each other
    vectors = F.normalize(vectors.repeat(2, 1), dim=1)  # and each there twice, under two names
    named = [Record(f"{i % 7}/v{i:04}.mp4", 0.0, 1.0) for i in range(2 * n)]
    queries = F.normalize(unit(5, dims, seed=2) + unit(1, dims, seed=1), dim=1)
    answers = []
    for number, sizes in enumerate(([2 * n], [1, 2, 3, 5, 64, 7, 118, 400], [n, n])):
        order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(number)).tolist()
        index = Index.create(tmp_path / f"{number}", dims, dtype)
        for size in sizes:
            some, order = order[:size], order[size:]
            index.add([named[i] for i in some], vectors[some])
        assert not order
        answers.append(index.search(queries, topk=37))
        assert [index.search(query[None], topk=37)[0] for query in queries] == answers[-1]
        index.tidy()
        assert index.search(queries, topk=37) == answers[-1]
    assert answers[0] == answers[1] == answers[2]
    for query, hits in zip(queries.double(), answers[0], strict=True):
        stored = vectors.to(getattr(torch, dtype)).double()
        expected = sorted(zip((-(stored @ query)).tolist(), (record.path for record in named), strict=True))
        assert [hit.score for hit in hits] == pytest.approx([-score for score, _ in expected[:37]], abs=1e-12)


def test_parts_are_files_that_another_program_can_read(tmp_path, small_parts):
    name = "caf\udce9 \u00e9.mp4"  # the first letter is no valid UTF-8
    index = Index.create(tmp_path / "i", 16, settings={"window": 20.0})
    vectors = unit(17)
    index.add([Record(name, float(i), i + 1.0) for i in range(17)], vectors, [File(name, 5, 6), File("b", 7, 8, "no")])
    head = json.loads((tmp_path / "i/index.json").read_text())
    assert head == {"format": "video-mamba-zoo index", "version": 1, "dims": 16, "dtype": "float32", "window": 20.0}
    rows = []
    parts = sorted((tmp_path / "i").glob("part-*.safetensors"))
    for part in parts:
        assert part.stat().st_mode == (tmp_path / "i/index.json").stat().st_mode
        with safe_open(part, "pt") as file:
            files = json.loads(file.metadata()["files"])
            for vector, number, seconds in zip(
                *(file.get_tensor(k) for k in ("vectors", "file", "seconds")), strict=True
            ):
                rows.append((files[number]["path"], *seconds.tolist(), vector.tolist()))
    assert len(parts) == 3
    assert rows == [(name, float(i), i + 1.0, vectors[i].tolist()) for i in range(17)]
    assert Index.open(tmp_path / "i").files == {name: File(name, 5, 6), "b": File("b", 7, 8, "no")}


def damaged(folder, **changed):
    """An index of six records, with other tensors or metadata in its part."""
    index = Index.create(folder, 16)
    index.add(records(6), unit(6))
    (part,) = folder.glob("*.safetensors")
    with safe_open(part, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    for key, value in changed.items():
        (metadata if isinstance(value, str) else tensors)[key] = value
    save_file(tensors, part, metadata)
    return part


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"files": "not json"}, "is damaged"),
        ({"files": "[" * 5000}, "is damaged"),
        ({"files": "[1, 2]"}, "is damaged"),
        ({"files": '[{"path": 5}, {"path": "b"}]'}, "is damaged (a path is no text)"),
        ({"files": '[{"path": "a", "owner": 1}]'}, "is damaged"),
        ({"files": '[{"path": "a"}]'}, "is damaged (rows of files that it does not list)"),
        ({"replaces": "[[1]]"}, "is damaged"),
        ({"replaces": "null"}, "is damaged"),
        ({"file": torch.full((6,), -1)}, "is damaged (rows of files that it does not list)"),
        ({"file": torch.zeros(6)}, "belongs to another index"),
        ({"file": torch.zeros(5, dtype=torch.int64)}, "belongs to another index"),
        ({"seconds": torch.zeros(6, 2)}, "belongs to another index"),
        ({"vectors": torch.tensor(0.0)}, "belongs to another index"),
        ({"vectors": torch.full((6, 16), torch.nan)}, "has vectors that are not finite"),
        ({"vectors": torch.full((6, 16), torch.inf)}, "has vectors that are not finite"),
    ],
)
def test_foreign_content_of_a_part_is_named(tmp_path, changed, sentence):
    part = damaged(tmp_path / "i", **changed)
    with pytest.raises(ZooError) as error:
        Index.open(tmp_path / "i").search(unit(1, seed=3))
    assert sentence in str(error.value) and str(part) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "head",
    ["", "[]", "\xff", "[" * 100_000, '{"format": "video-mamba-zoo index", "version": 1}', "1" * 5000]
    + [json.dumps({"format": "video-mamba-zoo index", "version": 1, "dims": dims, "dtype": dtype})
       for dims, dtype in [(True, "float32"), (10**12, "float16"), (0, "float32"), (2.5, "float32"), (4, ["float32"])]],
)  # fmt: skip
def test_a_broken_head_is_named(tmp_path, head):
    (tmp_path / "i").mkdir()
    (tmp_path / "i/index.json").write_bytes(head.encode("latin-1"))
    with pytest.raises(ZooError, match=r"index\.json .* make the index again"):
        Index.open(tmp_path / "i")


def test_tidy_drops_and_joins(tmp_path, small_parts):
    index = Index.create(tmp_path / "i", 16)
    vectors = unit(30)
    for i in range(0, 30, 3):
        files = [File(f"v{i // 3}.mp4", i, i), File(f"broken{i}", i, i, "no")]
        index.add(records(3, first=i), vectors[i : i + 3], files)
    before, listed = content(index), index.files
    index.tidy(["v1.mp4", "v8.mp4", "broken6", "never there"], few_rows=0)
    assert content(index) == {r: v for r, v in before.items() if r.path not in ("v1.mp4", "v8.mp4")}
    assert index.files == {p: f for p, f in listed.items() if p not in ("v1.mp4", "v8.mp4", "broken6")}
    kept = content(index)
    index.tidy(few_rows=7)
    assert list(content(Index.open(tmp_path / "i")).items()) == list(kept.items())  # in the same order
    assert [len(part) for part in index._parts] == [6, 6, 6, 6]
    index.tidy(listed)
    assert len(index) == 0 and index.files == {} and not list((tmp_path / "i").glob("*.safetensors"))
    assert index.search(vectors[:1]) == [[]]


def test_a_join_that_was_killed_before_it_removed_the_old_parts(tmp_path):
    index = Index.create(tmp_path / "i", 16)
    index.add(records(3), unit(3))
    index.add(records(3, first=3), unit(3, seed=1))
    before, old = content(index), {path: path.read_bytes() for path in (tmp_path / "i").glob("*.safetensors")}
    index.tidy()
    for path, data in old.items():
        path.write_bytes(data)
    leftover = tmp_path / "i/.part-00000009-aaaaaaaa.safetensors.1.unfinished"
    leftover.touch()
    os.utime(leftover, (0, 0))
    reopened = Index.open(tmp_path / "i")
    assert content(reopened) == before and len(reopened) == 6
    reopened.tidy()
    assert len(list((tmp_path / "i").glob("*.safetensors"))) == 1 and not leftover.exists()
    assert content(Index.open(tmp_path / "i")) == before


def add_many(folder, process):
    index = Index.open(folder)
    for i in range(80):
        index.add([Record(f"{process}-{i}.mp4", 0.0, 1.0)], unit(1, seed=100 * process + i))
        index.tidy_if_many()
        Index.open(folder).search(unit(1))  # a reader meanwhile


def test_processes_that_add_and_tidy_at_once_lose_nothing(tmp_path):
    Index.create(tmp_path / "i", 16)
    other = multiprocessing.get_context("spawn").Process(target=add_many, args=(tmp_path / "i", 1))
    other.start()
    while len(Index.open(tmp_path / "i")) == 0:
        time.sleep(0.01)
    add_many(tmp_path / "i", 0)
    other.join()
    assert other.exitcode == 0
    index = Index.open(tmp_path / "i")
    names = [f"{process}-{i}.mp4" for process in range(2) for i in range(80)]
    assert sorted(record.path for record, _ in index.records()) == sorted(names)
    assert len(index._parts) <= vector_index.MANY_PARTS


def test_mistakes_are_one_sentence(tmp_path):
    index = Index.create(tmp_path / "i", 16)
    index.add(records(2), unit(2))
    part = next((tmp_path / "i").glob("*.safetensors"))
    for call, words in [
        (lambda: Index.open(tmp_path), "is no index of videos; make one: zoo index"),
        (lambda: Index.create(tmp_path, 16), "exists and is no index"),
        (lambda: Index.create(tmp_path / "j", 16, "int8"), "int8"),
        (lambda: index.add(records(2), unit(3)), r"2 records need vectors \(2, 16\)"),
        (lambda: index.add(records(2), torch.tensor([[math.nan] * 16] * 2)), "v0.mp4 has numbers that are not finite"),
        (lambda: index.search(unit(1, 8)), "vectors of 16 numbers"),
        (lambda: index.search(torch.full((1, 16), math.inf)), "not finite"),
        (lambda: index.search(unit(1), topk=0), "topk is 0"),
        (lambda: (part.write_bytes(part.read_bytes()[:-9]), len(Index.open(tmp_path / "i"))), "is damaged"),
        (lambda: ((tmp_path / "i/index.json").write_text("{}"), Index.open(tmp_path / "i")), "not of the format"),
        (lambda: ((tmp_path / "i/index.json").write_text("{"), Index.open(tmp_path / "i")), "not valid JSON"),
    ]:
        with pytest.raises(ZooError, match=words) as error:
            call()
        assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")
