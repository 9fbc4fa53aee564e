"""Tables as spreadsheets, scripts and CelebA write them, all of the same four rows."""

import math

import numpy as np
import pytest

from tests.training.celeba_folders import grey_and_label, picture
from tests.training.small_runs import make_config
from training.celeba import attribute_values, open_splits
from training.data import load_splits
from training.tables import as_number, read_table


EXPECTED = [[1, 0], [0, 1], [1, 1], [0, 0]]  # Male, Young of a.png, b.png, c d.png, e.png
# fmt: off
TABLES = {
    "plain": b"file_name,Male,Young\na.png,1,-1\nb.png,-1,1\nc d.png,1,1\ne.png,-1,-1\n",
    "no line feed at the end": b"file_name,Male,Young\na.png,1,0\nb.png,0,1\nc d.png,1,1\ne.png,0,0",
    "byte order mark, semicolons, CRLF":
        b"\xef\xbb\xbffile_name;Male;Young\r\na.png;TRUE;FALSE\r\nb.png;FALSE;TRUE\r\nc d.png;TRUE;TRUE\r\n"
        b"e.png;FALSE;FALSE\r\n",
    "carriage returns": b"file_name,Male,Young\ra.png,1,0\rb.png,0,1\rc d.png,1,1\re.png,0,0\r",
    "tabs in UTF-16":
        "file_name\tMale\tYoung\r\na.png\t1\t0\r\nb.png\t0\t1\r\nc d.png\t1\t1\r\ne.png\t0\t0\r\n".encode("utf-16"),
    "quotes":
        b'"file_name","Male","Young"\n"a.png","1","0"\n"b.png","0","1"\n"c d.png","1","1"\n"e.png","0","0"\n',
    "quotes and spaces":
        b'"file_name" , "Male" , Young\n"a.png" , "1" , 0\n b.png , 0, 1 \n"c d.png",1 ,1\ne.png,0,0\n',
    "numbers as floats": b"file_name,Male,Young\na.png,1.0,0.0\nb.png,-1.0,1.00\nc d.png,1.,1\ne.png,0,-1.0\n",
    "decimal commas": b"file_name;Male;Young\na.png;1,0;0,0\nb.png;-1,0;1,0\nc d.png;1;1\ne.png;0;0\n",
    "a spreadsheet's own hint":
        b"sep=;\r\nfile_name;Male;Young\r\na.png;1;0\r\nb.png;0;1\r\nc d.png;1;1\r\ne.png;0;0\r\n",
    "empty rows and columns":
        b"file_name,Male,Young,,\n\na.png,1,0,,\n,,,,\nb.png,0,1,,\nc d.png,1,1,,\ne.png,0,0,,,\n,,\n",
    "an index, other order, other case":
        b",Young,IMAGE_ID,Male\n0,no,a.png,yes\n1,Yes,b.png,NO\n2,true,c d.png,True\n3,False,e.png,false\n",
    "another alphabet":
        "file_name,Male,Young,Größe\na.png,1,0,ä\nb.png,0,1,ö\nc d.png,1,1,ü\ne.png,0,0,ß\n".encode("cp1252"),
    "CelebA's own form through a spreadsheet":
        b"4,,,\nMale,Young,,\na.png,1,-1,\nb.png,-1,1,\nc d.png,1,1,\ne.png,-1,-1,\n",
    "a delimiter at the end of the head": b"file_name,Male,Young,\na.png,1,0\nb.png,0,1\nc d.png,1,1,\ne.png,0,0\n",
    "a caption with a vertical tab and a line separator":
        "file_name,text,Male,Young\na.png,one\vtwo,1,0\nb.png,one\u2028two,0,1\nc d.png,,1,1\ne.png,,0,0\n".encode(),
    "a caption with commas and lines":
        b'file_name,Male,Young,text\na.png,1,0,"one, two"\nb.png,0,1,"one\ntwo"\nc d.png,1,1,"say ""hi"""\n'
        b"e.png,0,0,\n",
}
# fmt: on


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_read_however_it_was_written(settings, tmp_path, table):
    names = ("a.png", "b.png", "c d.png", "e.png")
    for i, name in enumerate(names):
        picture(tmp_path / name, 10 * i)
    (tmp_path / "faces.csv").write_bytes(TABLES[table])
    read = read_table(tmp_path / "faces.csv")
    assert (read.files, read.faults, read.notes) == (list(names), [""] * 4, [])
    split = open_splits(str(tmp_path / "faces.csv"))["train"]
    assert attribute_values(split, ["Male", "Young"]).tolist() == EXPECTED
    parts = load_splits(
        str(tmp_path / "faces.csv"), None, make_config(settings, validation_images=1), ["Male", "Young"]
    )
    assert grey_and_label(*parts) == [(0, 0b10), (10, 0b01), (20, 0b11), (30, 0b00)]


@pytest.mark.parametrize(
    "table",
    [
        b"4\nMale Young\na.png 1 -1\nb.png -1  1\ne.png  1  1\nc.png -1 -1\n",
        b"Male Young\r\na.png 1 -1\r\nb.png -1 1\r\ne.png 1 1\r\nc.png -1 -1\r\n",
        b"image_id Male Young\na.png 1 -1\nb.png -1 1\ne.png 1 1\nc.png -1 -1\n",
    ],
)
def test_celeba_s_own_form_with_and_without_its_first_line(tmp_path, table):
    (tmp_path / "t.txt").write_bytes(table)
    read = read_table(tmp_path / "t.txt")
    assert read.files == ["a.png", "b.png", "e.png", "c.png"]
    assert read.columns == {"Male": ["1", "-1", "1", "-1"], "Young": ["-1", "1", "1", "-1"]}
    assert (read.faults, read.notes) == ([""] * 4, [])


def test_rows_of_another_width_and_without_a_name_are_faulty(tmp_path):
    text = "file_name,Male,Young\na.png,1\nb,c.png,1,0\n,1,0\nd.png,1,0\n"
    (tmp_path / "t.csv").write_text(text)
    read = read_table(tmp_path / "t.csv")
    assert read.faults == [
        "expected 3 cells in t.csv, got 2",
        "expected 3 cells in t.csv, got 4",
        "no file name in t.csv",
        "",
    ]
    assert read.columns["Male"] == ["", "", "1", "1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a head and a row per picture in .*, got 0 rows"),
        (b"file_name,Male\n\n", "expected a head and a row per picture in .*, got 1 rows"),
        (b"picture,Male\na.png,1\n", r"expected a column of file names, one of .*, got \['picture', 'Male'\]"),
        (b"file_name,Male,Male\na.png,1,0\n", "got 'Male' more than once"),
        (b'file_name,Male\n"a.png,1\nb.png,0\nc.png,1\n', r"t.csv', line 4: unexpected end of data"),
        (b"PK\3\4\0\0\0\0", "expected a table as text"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")


def test_a_folder_of_pictures_with_a_spreadsheet_s_metadata(settings, tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png", 10 * i)
    rows = "".join(f"{i}.png;{'TRUE' if i % 2 else 'FALSE'}\r\n" for i in range(4))
    (tmp_path / "metadata.csv").write_text("\ufefffile_name;Male\r\n" + rows, newline="")
    parts = load_splits(str(tmp_path), None, make_config(settings, validation_images=1), ["Male"])
    assert [grey_and_label(part) for part in parts] == [[(0, 0), (10, 1), (20, 0)], [(30, 1)]]


@pytest.mark.parametrize("one_table", [False, True])
def test_splits_in_folders(settings, tmp_path, one_table):
    rows = {"train": (0, 1), "val": (2,)}
    for folder, numbers in rows.items():
        for i in numbers:
            picture(tmp_path / folder / f"{i}.png", 10 * i)
        if not one_table:
            lines = "".join(f"{i}.png,{i % 2}\n" for i in numbers)
            (tmp_path / folder / "metadata.csv").write_text(f"file_name,Male\n{lines}")
    if one_table:
        lines = "".join(f"{folder}\\{i}.png,{i % 2}\n" for folder, numbers in rows.items() for i in numbers)
        (tmp_path / "metadata.csv").write_text(f"file_name,Male\n{lines}")
    parts = load_splits(str(tmp_path), None, make_config(settings), ["Male"])
    assert [grey_and_label(part) for part in parts] == [[(0, 0), (10, 1)], [(20, 0)]]


@pytest.mark.parametrize("words", [("train", "Val", "test"), ("0", "1", "2"), ("0,0", "1,0", "2,0")])
def test_a_column_gives_the_splits(settings, tmp_path, words):
    parts = [0, 0, 1, 2, 0, 3]
    for i in range(6):
        picture(tmp_path / f"{i}.png", 10 * i)
    lines = "".join(f"{i}.png;{i % 2};{(*words, 'no')[part]}\n" for i, part in enumerate(parts))
    (tmp_path / "t.csv").write_text("file_name;Male;Partition\n" + lines)
    assert {name: len(split) for name, split in open_splits(str(tmp_path / "t.csv")).items()} == {
        "train": 4, "validation": 1, "test": 1,
    }  # fmt: skip
    train, validation = load_splits(str(tmp_path / "t.csv"), None, make_config(settings), ["Male"])
    assert (grey_and_label(train), grey_and_label(validation)) == ([(0, 0), (10, 1), (40, 0)], [(20, 0)])
    assert train.faulty == [(str(tmp_path / "5.png"), "expected 0, 1 or 2 in the column 'Partition', got no")]


def test_rows_of_one_picture_that_contradict_each_other_are_faulty(settings, tmp_path):
    for i in range(5):
        picture(tmp_path / f"{i}.png", 10 * i)
    lines = "0.png,1,x\n1.png,1,x\n2.png,1,x\n2.png,1,y\n1.png,,x\n3.png,0,x\n4.png,0,x\n0.png,0,x\n"
    (tmp_path / "t.csv").write_text("file_name,Male,text\n" + lines)
    parts = load_splits(str(tmp_path / "t.csv"), None, make_config(settings, validation_images=2), ["Male"])
    assert [grey_and_label(part) for part in parts] == [[(10, 1), (20, 1), (20, 1), (30, 0)], [(40, 0)]]
    reason = "rows of one picture with different attributes"
    assert parts[0].faulty == [
        (str(tmp_path / "0.png"), reason),
        (str(tmp_path / "1.png"), "attributes missing or neither -1, 0 nor 1: Male"),
    ]
    assert parts[1].faulty == [(str(tmp_path / "0.png"), reason)]


@pytest.mark.parametrize("folder", [".", "img_align_celeba"])
def test_a_picture_whose_name_is_spelt_otherwise_is_found(settings, tmp_path, folder):
    files = ["A.PNG", "Zo\u00eb.png", "c.png", "C.PNG", "e.bmp", "e.png", "f.txt", "g.png"]
    for i, name in enumerate(files):
        picture((tmp_path / folder / name).with_suffix(".png"), 10 * i)
        (tmp_path / folder / name).with_suffix(".png").rename(tmp_path / folder / name)
    names = ["a.jpg", "Zoe\u0308.png", "c.png", "C.PNG", "e.jpg", "f.png", f"{folder}/{'x' * 300}.png", "g"]
    (tmp_path / "t.csv").write_text("file_name,Male\n" + "".join(f"{name},1\n" for name in names))
    parts = load_splits(str(tmp_path / "t.csv"), None, make_config(settings, validation_images=1), ["Male"])
    assert [grey for part in parts for grey, _ in grey_and_label(part)] == [0, 10, 20, 30, 70]
    assert [name.rsplit("/", 1)[1][:5] for name, _ in parts[0].faulty] == ["e.jpg", "f.png", "xxxxx"]


def test_a_picture_that_the_table_puts_into_another_folder_is_found(settings, tmp_path):
    for i in range(3):
        picture(tmp_path / "img_align_celeba" / f"{i}.png", 10 * i)
    names = ["img_align_celeba/0.jpg", "faces\\1.JPG", "faces/2.png"]
    (tmp_path / "t.csv").write_text("file_name,Male\n" + "".join(f"{name},1\n" for name in names))
    parts = load_splits(str(tmp_path / "t.csv"), None, make_config(settings, validation_images=1), ["Male"])
    assert [grey for part in parts for grey, _ in grey_and_label(part)] == [0, 10, 20]


def test_a_limit_on_a_column_of_text(settings, tmp_path):
    cells = ["0,1", "0.9", "", "0.15", "0"]
    for i in range(5):
        picture(tmp_path / f"{i}.png", 10 * i)
    lines = "".join(f"{i}.png;1;{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text("file_name;Male;border\n" + lines)
    config = make_config(settings, max_values={"border": 0.15}, validation_images=1)
    train, validation = load_splits(str(tmp_path / "t.csv"), None, config, ["Male"])
    assert grey_and_label(train, validation) == [(0, 1), (30, 1), (40, 1)]
    assert train.faulty == [(str(tmp_path / "2.png"), "no number: border")]
    config = make_config(settings, max_values={"border": -1}, validation_images=1)
    with pytest.raises(ValueError, match=r"got none in 1 within max_values {'border': -1}"):
        load_splits(str(tmp_path / "t.csv"), None, config, ["Male"])


def test_numbers_in_cells():
    cells = ["1", " 1,5 ", "−2", "1.25", True, 3, np.float32(0.5)]
    assert [as_number(cell) for cell in cells] == [1, 1.5, -2, 1.25, 1, 3, 0.5]
    assert all(math.isnan(as_number(cell)) for cell in ("", "one", None, "1,2,3"))
