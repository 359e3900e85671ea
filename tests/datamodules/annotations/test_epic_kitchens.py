"""What the annotations of EPIC-KITCHENS-100 say; reading whole files is tested with the DataModule."""

import pytest

from datamodules.annotations.epic_kitchens import labels_of, number_of, observed_span, read_table, seconds_of
from datamodules.errors import DataError


def test_what_may_be_seen_of_an_action():
    assert observed_span(20, 23, "recognition", 5, 1) == (20, 23)
    assert observed_span(20, 23, "anticipation", 5, 1) == (14, 19)  # the example of the challenge's README


def test_columns():
    row = {"narration_id": "P01_1_0", "verb_class": "3", "noun_class": "7", "all_noun_classes": "[2, 7]",
           "start_timestamp": "01:02:03.50"}  # fmt: skip
    assert labels_of("a.csv", row) == (3, (7, 2)) and labels_of("a.csv", {}) == (-1, ())
    assert seconds_of("a.csv", row, "start_timestamp") == 3723.5 and number_of("a.csv", row, "verb_class") == 3
    with pytest.raises(DataError, match=r"a\.csv, segment P01_1_0: verb_class is '3' and not of the form"):
        seconds_of("a.csv", row, "verb_class")
    with pytest.raises(DataError, match=r"a\.csv has '\[2, 7\]' as all_noun_classes"):
        number_of("a.csv", row, "all_noun_classes")


def test_tables_lack_nothing(tmp_path):
    table = tmp_path / "table.csv"
    for text, fault in (("id,key\n", "has no rows"), ("id\n1\n", "has no column key"), ("id,key\n1,\n", "line 2")):
        table.write_text(text)
        with pytest.raises(DataError, match=fault):
            read_table(str(table), ("id", "key"))
    table.write_text("id,key\n1,take\n")
    assert read_table(str(table), ("id", "key")) == [{"id": "1", "key": "take"}]
