"""The table of an index: what is found, in which order, and what is left when several add, tidy and die."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.retrieval import table
from zoo.retrieval.table import Hit, Index
from zoo.tables.table import File, Record

lancedb = pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")


def unit(n, dims=16, seed=0):
    return F.normalize(torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)), dim=1)


def records(n, first=0):
    """Three windows a video."""
    return [Record(f"v{(first + i) // 3}.mp4", float(i % 3), i % 3 + 0.5) for i in range(n)]


def content(index):
    return {record: vector.tolist() for record, vector in index.records()}


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


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), max_size=80),
    st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(9, 40),
)
def test_the_same_as_sorting_everything_ties_included(tmp_path_factory, rows, queries, topk, cut):
    """Small integers: products are exact, and equal ones frequent, within and across commits; these come by path."""
    index = Index.create(tmp_path_factory.mktemp("ties") / "i", 2)
    for first in range(0, len(rows), cut):
        some = [Record(f"{first + i}.mp4", 0.0, 1.0) for i in range(len(rows[first : first + cut]))]
        index.add(some, torch.tensor(rows[first : first + cut], dtype=torch.float32))
    found = index.search(torch.tensor(queries, dtype=torch.float32), topk)
    for query, hits in zip(queries, found, strict=True):
        scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows]
        best = sorted(range(len(rows)), key=lambda i: (-scores[i], f"{i}.mp4"))[:topk]
        assert hits == [Hit(f"{i}.mp4", 0.0, 1.0, scores[i]) for i in best]


@pytest.mark.parametrize(("dtype", "block"), [("float32", 8192), ("float16", 64)])
def test_the_answer_does_not_depend_on_the_commits(tmp_path, monkeypatch, dtype, block):
    """Interrupted runs and several readers leave the same records in other commits and another order; the order of
    near scores is that of numpy in float64."""
    monkeypatch.setattr(table, "ROWS_AT_ONCE", block)
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
        index.optimise()
        assert index.search(queries, topk=37) == answers[-1]
    assert answers[0] == answers[1] == answers[2]
    stored = vectors.to(getattr(torch, dtype)).double().numpy()
    for query, hits in zip(queries.double().numpy(), answers[0], strict=True):
        scores = (stored * query).sum(1)
        expected = sorted(range(2 * n), key=lambda i: (-scores[i], named[i].path))[:37]
        assert hits == [Hit(*named[i], scores[i]) for i in expected]


def test_the_approximate_index_finds_nearly_what_the_exact_search_finds(tmp_path, monkeypatch):
    """Random vectors, which are the hardest: nothing is near anything. Rows that come later are found too."""
    monkeypatch.setattr(table, "APPROXIMATE_ROWS", 4000)
    vectors, late = unit(6000, 64), unit(100, 64, seed=5)
    index = Index.create(tmp_path / "i", 64)
    index.add([Record(f"{i:05}.mp4", 0.0, 1.0) for i in range(6000)], vectors)
    assert not index._is_indexed()
    index.optimise()
    assert index._is_indexed()
    queries = unit(50, 64, seed=1)
    exact, near = index.search(queries, exact=True), Index.open(tmp_path / "i").search(queries)
    best = (-(queries.double() @ vectors.double().T)).argsort(dim=1)[:, :10]
    assert [[hit.path for hit in hits] for hits in exact] == [[f"{i:05}.mp4" for i in row] for row in best.tolist()]
    same = sum(len({*a} & {*b}) for a, b in zip(exact, near, strict=True))
    assert same >= 0.95 * 500, same
    condition = "path LIKE '%7.mp4'"
    some = index.search(queries[:9], 3, where=condition)
    assert [index.search(query[None])[0] for query in queries[:9]] == near[:9]
    assert [index.search(query[None], 3, where=condition)[0] for query in queries[:9]] == some
    index.add([Record(f"late{i}.mp4", 0.0, 1.0) for i in range(100)], late)
    for _ in range(2):
        assert [hits[0].path for hits in index.search(late)] == [f"late{i}.mp4" for i in range(100)]
        index.optimise()
    index.optimise(rebuild=True)
    hits = index.search(late[:1], where="path LIKE '%9.mp4'")[0]
    assert len(hits) == 10 and all(hit.path.endswith("9.mp4") for hit in hits)


def test_rows_of_a_rare_kind_are_found_beyond_the_partitions_that_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "APPROXIMATE_ROWS", 4000)
    monkeypatch.setattr(table, "PROBES", 1)
    index = Index.create(tmp_path / "i", 8)
    index.add([Record(f"{i:05}.mp4", 0.0, 1.0) for i in range(40_000)], unit(40_000, 8))
    index.optimise()
    queries, rare = unit(3, 8, seed=1), "path LIKE '%77.mp4'"
    found = index.search(queries, 500, where=rare)
    assert [len(hits) for hits in found] == [400] * 3
    assert [set(hits) for hits in found] == [set(hits) for hits in index.search(queries, 500, where=rare, exact=True)]
    many = unit(20, 8, seed=2)
    assert index.search(many, 400) != index.search(many, 400, exact=True)  # there are more partitions than one


def test_conditions_and_columns(tmp_path):
    index = Index.create(tmp_path / "i", 16)
    index.add(records(9), unit(9), [*(File(f"v{i}.mp4", i, 10**9 * i) for i in range(3)), File("bad", 7, 8, "no")])
    columns = pa.table({"path": ["v1.mp4", "v2.mp4", "never"], "place": ["it's a kitchen", None, "x"], "n": [1, 2, 3]})
    index.describe(columns)
    index.describe(columns)
    index.add([Record("new.mp4", 0.0, 1.0)], unit(1, seed=9))

    def found(where):
        assert index.count(where) == len(index.search(unit(1), 99, where=where)[0])
        return sorted({hit.path for hit in index.search(unit(1), 99, where=where)[0]})

    assert found("path LIKE 'v%' AND start >= 1 AND end < 2") == ["v0.mp4", "v1.mp4", "v2.mp4"]
    assert found("place = 'it''s a kitchen'") == ["v1.mp4"] and found("n > 1 OR size = 0") == ["v0.mp4", "v2.mp4"]
    assert found("mtime > 1000000000") == ["v2.mp4"] and found("error = 'no'") == []
    assert index.files["bad"] == File("bad", 7, 8, "no") and len(index) == 10
    for where in ("nothing = 1", "start >", "", "1", "drop table videos", "true; true", "\udcff"):
        with pytest.raises(ZooError, match=r"^The condition .* cannot be applied .*the columns are .*vector, .*n\.$"):
            index.search(unit(1), where=where)
    with pytest.raises(ZooError, match=r"The column n is int64 in .* and string in the new list"):
        index.describe(pa.table({"path": ["v1.mp4"], "n": ["x"]}))


def test_names_that_are_not_unicode_come_back(tmp_path):
    names = ["caf\udce9 \u00e9.mp4", "private \uef80\uefff.mp4", "it's \U0001f600 %_.mp4", "\udcee\udcbe.mp4"]
    index = Index.create(tmp_path / "i", 16, settings={"window": 20.0})
    index.add([Record(name, 0.0, 1.0) for name in names], unit(4), [File(name, 5, 6) for name in names])
    again = Index.open(tmp_path / "i")
    assert again.settings == {"window": 20.0} and again.files == {name: File(name, 5, 6) for name in names}
    assert [hits[0].path for hits in again.search(unit(4))] == names
    again.drop(names[:3])
    assert list(again.files) == names[3:]


def test_drop_takes_files_with_and_without_records(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.tables.table.NAMES_AT_ONCE", 2)
    index = Index.create(tmp_path / "i", 16)
    for i in range(0, 12, 3):
        index.add(records(3, first=i), unit(3, seed=i), [File(f"v{i // 3}.mp4", i, i), File(f"broken{i}", i, i, "no")])
    before, listed = content(index), index.files
    gone = ["v1.mp4", "v3.mp4", "broken6", "never there"]
    index.drop(gone)
    index.optimise()
    assert content(index) == {r: v for r, v in before.items() if r.path not in gone}
    assert index.files == {p: f for p, f in listed.items() if p not in gone}
    index.drop([*listed])
    assert len(index) == 0 and index.files == {} and index.search(unit(1)) == [[]]


def add_many(folder, process):
    index = Index.open(folder)
    for i in range(30):
        index.add([Record(f"{process}-{i}.mp4", 0.0, 1.0)], unit(1, seed=100 * process + i))
        if i % 10 == 9:
            index.optimise()
            index.drop([f"{process}-{i - 1}.mp4"])
        Index.open(folder).search(unit(1))  # a reader meanwhile


@pytest.mark.slow
def test_processes_that_change_a_table_at_once_lose_nothing(tmp_path):
    Index.create(tmp_path / "i", 16)
    other = multiprocessing.get_context("spawn").Process(target=add_many, args=(tmp_path / "i", 1))
    other.start()
    while len(Index.open(tmp_path / "i")) == 0:
        assert other.exitcode is None
        time.sleep(0.01)
    add_many(tmp_path / "i", 0)
    other.join()
    assert other.exitcode == 0
    names = [f"{process}-{i}.mp4" for process in range(2) for i in range(30) if i % 10 != 8]
    assert sorted(record.path for record, _ in Index.open(tmp_path / "i").records()) == sorted(names)


KILLED = """
import sys, torch
from zoo.retrieval.table import Index
from zoo.tables.table import Record
index = Index.open(sys.argv[1])
print("ready", flush=True)
for i in range(10**6):
    index.add([Record(f"{i}.mp4", float(k), k + 1.0) for k in range(3)], torch.eye(16)[:3])
    if i % 7 == 6:
        index.drop([f"{i - 1}.mp4"])
    if i % 10 == 9:
        index.optimise()
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_commits(tmp_path):
    Index.create(tmp_path / "i", 16)
    generator, present = np.random.default_rng(0), 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "i"], stdout=-1, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        index = Index.open(tmp_path / "i")
        rows = [record for record, _ in index.records()]
        counts = {path: sum(row.path == path for row in rows) for path in {row.path for row in rows}}
        assert all(count % 3 == 0 for count in counts.values()) and len(index.search(torch.eye(16)[:1], 5)[0]) <= 5
        present = max(present, len(rows))
        index.drop([*counts])  # changing it works too
        assert len(index) == 0
    assert present > 0


def test_other_folders_are_refused_in_one_sentence(tmp_path):
    schema = pa.schema([("vector", pa.list_(pa.float32(), 4))])
    lancedb.connect(tmp_path / "theirs").create_table("videos", schema=schema)
    lancedb.connect(tmp_path / "named").create_table("other", schema=schema)
    text = ['{"format": "video-mamba-zoo index", "version": 2, "dims": 4, "dtype": "float32"}', "[" * 100_000, "[]",
            '{"format": "video-mamba-zoo index", "version": 9, "dims": 4, "dtype": "float32"}',
            '{"format": "video-mamba-zoo index", "version": 2, "dims": true, "dtype": "float32"}',
            '{"format": "video-mamba-zoo index", "version": 2, "dims": 99999999999, "dtype": "float16"}',
            '{"format": "video-mamba-zoo index", "version": 2, "dims": 4, "dtype": ["x"]}']  # fmt: skip
    for number, head in enumerate(text):
        made = pa.schema([*schema, ("path", pa.int64())], {table.KEY: head})
        lancedb.connect(tmp_path / f"head{number}").create_table("videos", schema=made)
    Index.create(tmp_path / "torn", 4).add([Record("a", 0.0, 1.0)], unit(1, 4))
    for manifest in (tmp_path / "torn/videos.lance/_versions").glob("*.manifest"):
        manifest.write_bytes(manifest.read_bytes()[:-9])
    (tmp_path / "old").mkdir()
    (tmp_path / "old/index.json").write_text("{}")
    for name, words in [
        ("theirs", "is a database of another kind"),
        ("named", "is no index of videos; make one"),
        *((f"head{number}", "is a database of another kind") for number in range(len(text))),
        ("torn", "cannot be read as an index"),
        ("old", "is an index of the former format; convert it: zoo index --convert"),
        ("gone", "is no index of videos; make one: zoo index"),
    ]:
        with pytest.raises(ZooError, match=words) as error:
            Index.open(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(ZooError, match="exists and is no index"):
        Index.create(tmp_path / "named", 4)
    with pytest.raises(ZooError, match="is no place for a table; name a local folder, or a URL of s3://"):
        Index.open("ftp://host/x")


def test_a_damaged_file_of_a_table_is_named(tmp_path):
    index = Index.create(tmp_path / "i", 16)
    index.add(records(6), unit(6))
    (file,) = (tmp_path / "i/videos.lance/data").glob("*.lance")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ZooError, match=r"i cannot be searched .*; make the index again\."):
        Index.open(tmp_path / "i").search(unit(1))
    file.unlink()
    with pytest.raises(ZooError, match=r"i cannot be searched .*; make the index again\."):
        Index.open(tmp_path / "i").search(unit(1))


def test_a_creation_that_was_killed_is_begun_again(tmp_path):
    (tmp_path / "i/videos.lance/_versions").mkdir(parents=True)
    (tmp_path / "i/videos.lance/_versions/.tmp").touch()
    assert not Index.exists(tmp_path / "i")
    Index.create(tmp_path / "i", 16).add(records(3), unit(3))
    assert len(Index.open(tmp_path / "i")) == 3


def test_mistakes_are_one_sentence(tmp_path):
    index = Index.create(tmp_path / "i", 16)
    index.add(records(2), unit(2))
    for call, words in [
        (lambda: Index.open(tmp_path), "is no index of videos; make one: zoo index"),
        (lambda: Index.create(tmp_path, 16), "exists and is no index"),
        (lambda: Index.create(tmp_path / "j", 16, "int8"), "int8"),
        (lambda: index.add(records(2), unit(3)), r"2 records need vectors \(2, 16\)"),
        (lambda: index.add(records(2), torch.tensor([[math.nan] * 16] * 2)), "v0.mp4 has numbers that are not finite"),
        (lambda: index.search(unit(1, 8)), "vectors of 16 numbers"),
        (lambda: index.search(torch.full((1, 16), math.inf)), "not finite"),
        (lambda: index.search(unit(1), topk=0), "topk is 0"),
    ]:
        with pytest.raises(ZooError, match=words) as error:
            call()
        assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")


@pytest.mark.slow
def test_without_lancedb_the_sentence_says_what_to_install(tmp_path):
    Index.create(tmp_path / "i", 16)
    (tmp_path / "a.mp4").touch()
    code = "import sys; sys.modules['lancedb'] = None\nfrom zoo.commands.main import main\nmain(sys.argv[1:])"
    for command in (["search", "i", "red"], ["index", "no-such-model", "a.mp4", "-o", "new"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, env={**os.environ}, cwd=tmp_path
        )
        assert done.returncode == 1 and done.stdout == ""
        sentence = "A table of videos needs LanceDB; install it: pip install 'video-mamba-zoo[search]'."
        assert done.stderr == f"zoo: {sentence}\n"
