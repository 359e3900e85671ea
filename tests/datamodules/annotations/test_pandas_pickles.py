"""Tables by hand; those that pandas wrote are in test_question_files.py."""

import pytest

from datamodules.annotations.pandas_pickles import read_frame
from datamodules.errors import DataError


def table(manager: bytes = b"", shape: bytes = b"(I1\nI1\nt", entries: bytes = b"(lS'x'\na") -> bytes:
    """One column "a" with an index "id"; or with something else where its columns are."""
    kind = b"cnumpy\ndtype\n(S'O8'\ntR"
    array = b"cnumpy._core.multiarray\n_reconstruct\n)R(I1\n%b%bI00\n%btb" % (shape, kind, entries)
    one = b"cnumpy._core.multiarray\n_reconstruct\n)R(I1\n(I1\nt%bI00\n(lS'a'\natb" % kind
    columns, rows = (
        b"cpandas\n_new_Index\n(I0\n(dS'data'\n%bsS'name'\n%bstR" % (one, name) for name in (b"N", b"S'id'\n")
    )
    block = b"cpandas\n_unpickle_block\n(%bcbuiltins\nslice\n(I0\nI1\nI1\ntRI2\ntR" % array
    manager = manager or b"cpandas\nBlockManager\n((%bt(l%ba%batR" % (block, columns, rows)
    return b"cpandas\nDataFrame\n)R(dS'_mgr'\n%bsb." % manager


def test_columns_of_a_table(tmp_path):
    path = tmp_path / "table.pkl"
    path.write_bytes(table())
    assert read_frame(str(path), ["a", "id", "b"]) == {"a": ["x"], "id": ["a"]}
    assert read_frame(str(path), ["b"]) == {}


@pytest.mark.parametrize("data", [
    table(b"N"),
    table(b"I1\n"),
    table(shape=b"(I2\nI1\nt"),  # of another size
    table(shape=b"(S'x'\nI10000000000\nt"),  # a product of 10 GB
    table(shape=b"(I-1\nI-1\nt"),
    table(entries=b"S'x'\n"),
    table(entries=b"(dS'a'\nI1\ns"),
    table(b"cpandas\nBlockManager\n(((l(l(ltR"),
    # An index whose data is the index.
    table(b"cpandas\nBlockManager\n((l(lcpandas\n_new_Index\n(I0\n(dp1\nS'data'\ncpandas\n_new_Index\n(I0\ng1\ntRstRaI0\natR"),
    b"cpandas\nDataFrame\n.", b"(l.", b"N.", b"cpandas\nDataFrame\nN b.".replace(b" ", b""),
])  # fmt: skip
def test_tables_that_are_none(tmp_path, data):
    path = tmp_path / "table.pkl"
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"^\S+ is not a (table as pandas 1\.3 to 3 pickles it|complete pickle)[^\n]*\.$"
    ):
        read_frame(str(path), ["a"])


def test_names_of_a_table_are_few_and_run_nothing(tmp_path):
    path, mark = tmp_path / "table.pkl", tmp_path / "was_here"
    path.write_bytes(b"(l" + b"".join(b"cpandas\nname%d\na" % number for number in range(200)) + b".")
    with pytest.raises(DataError, match="holds more than 100 names, but only the tables of pandas are read"):
        read_frame(str(path), ["a"])
    for code in (b"cos\nsystem\n(S'touch {}'\ntR.", b"(S'touch {}'\nios\nsystem\n.", b"cbuiltins\nslice.mro\n(tR.",
                 b"cpandas.io.common\nos.system\n(S'touch {}'\ntR.", b"P1\n."):  # fmt: skip
        path.write_bytes(code.replace(b"{}", str(mark).encode()))
        with pytest.raises(DataError):
            read_frame(str(path), ["a"])
        assert not mark.exists()
