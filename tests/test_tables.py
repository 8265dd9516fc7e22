"""Any text that a record may hold comes back from every table that is written and read again."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.tables import from_csv, text_columns, to_csv
from setibl_ray.seti.formats.records import Record, encode_record
from setibl_ray.seti.formats.shards import read_index, stored_tables
from setibl_ray.seti.formats.writer import ShardWriter, write_dataset

ODD = [
    "a,b",
    '"',
    'a"b',
    "\r",
    "\n",
    "a\r\nb",
    "007",
    "1e5",
    "NaN",
    "None",
    "=1+1",
    " x ",
    "\ufeffx",
    "\u2028",
    "#",
    "\\",
]
# Without lone surrogates, which are no UTF-8, and NUL: no record may hold either.
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)


@given(st.lists(TEXT, min_size=1, unique=True), st.floats())
@example(ODD, 0.1)
def test_text_and_numbers_survive(ids, value):
    groups = ["", *ids[1:]]
    numbers = np.full(len(ids), value)
    table = pd.DataFrame({"image_id": ids, "fold": range(len(ids)), "pred": numbers, "group": groups})
    back = from_csv(to_csv(table), text_columns(table))
    assert back["image_id"].tolist() == ids
    assert back["group"].tolist() == groups
    assert back["fold"].tolist() == list(range(len(ids)))
    np.testing.assert_array_equal(back["pred"].to_numpy(np.float64), numbers)
    assert from_csv(to_csv(table), text=None)["image_id"].tolist() == ids
    assert to_csv(back) == to_csv(table)


def test_a_table_without_odd_text_is_the_one_that_pandas_writes():
    table = pd.DataFrame(
        {"image_id": ["a,b", 'c"d', "e\nf"], "pred": np.array([0.1, 0.2, np.nan], np.float32)}
    )
    assert to_csv(table) == table.to_csv(index=False, lineterminator="\n").encode()


def test_a_run_folder_keeps_them_and_names_what_is_no_table(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.write_csv("oof.csv", pd.DataFrame({"image_id": ODD, "fold": 1}))
    assert folder.read_csv("oof.csv", "image_id")["image_id"].tolist() == ODD
    for content in (b"", b"a,b\n1,2\n3,4,5\n", b"a\n\xff\n"):
        folder.write("odd.csv", content)
        with pytest.raises(RunFolderError, match=r"odd.csv is not a table: "):
            folder.read_csv("odd.csv")


def test_a_stored_index_keeps_them(tmp_path):
    panels = np.zeros((6, 4, 4), np.uint8)
    with ShardWriter(tmp_path, "train", 0) as writer:
        for number, text in enumerate(ODD):
            writer.write(Record(text, number % 2, text, 1 / 3, text, panels))
    write_dataset(tmp_path, [writer.written], (4, 4), {})
    index = read_index(tmp_path)
    stored = stored_tables(str(tmp_path), index.metadata, index.shards)["train"]
    pd.testing.assert_frame_equal(stored, writer.written.table)
    assert stored["image_id"].tolist() == stored["group"].tolist() == stored["kind"].tolist() == ODD
    assert len(encode_record(Record("x", 1, None, 0.0, None, panels))) > 96
