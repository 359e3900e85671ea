"""Vectors of fixed length in Parquet files, of which some are missing: a row about a file that cannot be read."""

import numpy as np
import pytest

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

from zoo.tables.parquet import read_parquet, write_parquet  # noqa: E402

VECTOR = pa.list_(pa.float32(), 3)


@pytest.mark.parametrize("vectors", [
    [[1, 2, 3], None, [4, 5, 6], None],
    [None, [1, 2, 3]],
    [None, None],
    [[1, 2, 3]],
    [],
])  # fmt: skip
def test_missing_vectors_stay_missing(tmp_path, vectors):
    schema = pa.schema([("path", pa.string()), ("features", VECTOR)], {"about": "kept"})
    table = pa.table([[f"{number}.mp4" for number in range(len(vectors))], pa.array(vectors, VECTOR)], schema=schema)
    write_parquet(table, tmp_path / "a.parquet")
    plain = parquet.read_table(tmp_path / "a.parquet")
    assert plain.column("features").to_pylist() == vectors and plain.schema.metadata[b"about"] == b"kept"
    again = read_parquet(str(tmp_path / "a.parquet"), {"path": pa.string(), "features": VECTOR})
    assert again.schema.equals(schema, check_metadata=True)
    assert again.to_pylist() == table.to_pylist()


def test_slices_of_longer_columns(tmp_path):
    whole = pa.array([[number] * 3 if number % 3 else None for number in range(12)], VECTOR)
    table = pa.table({"features": pa.chunked_array([whole[2:5], whole[6:]])})
    write_parquet(table, tmp_path / "a.parquet")
    assert read_parquet(str(tmp_path / "a.parquet"), {"features": VECTOR}).to_pylist() == table.to_pylist()


def test_vectors_of_different_lengths_are_refused(tmp_path):
    lists = pa.LargeListArray.from_arrays(pa.array([0, 2, 5], pa.int64()), pa.array(np.arange(5.0)))
    parquet.write_table(pa.table({"features": lists}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="reshape"):
        read_parquet(str(tmp_path / "a.parquet"), {"features": VECTOR})


def test_lists_of_other_names_stay_as_they_are(tmp_path):
    table = pa.table({"captions": pa.array([["a", "b"], ["c"], None], pa.large_list(pa.string()))})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_parquet(str(tmp_path / "a.parquet"), {"features": VECTOR}).equals(table)
