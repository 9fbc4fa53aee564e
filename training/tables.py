"""Tables of pictures as CelebA, spreadsheets and scripts write them."""

import csv
import io
import math
import re
from dataclasses import dataclass, field
from pathlib import Path


FILE_COLUMNS = ("file_name", "image_id", "image", "filename", "file")
_DELIMITERS = ",;\t|"


@dataclass
class Table:
    """Rows of pictures.

    Args:
        files (`list[str]`): The pictures' names, as written.
        columns (`dict[str, list[str]]`): The other columns, a cell per picture.
        faults (`list[str]`): What is wrong with each row; empty where nothing is.
        notes (`list[str]`): What is wrong with the table itself.
    """

    files: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Reads a table with a head: CSV, or CelebA's `list_attr_celeba.txt` (the head names the attributes alone).

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no text, has no column of file names, names a column twice, or its quotes do not close.
    """
    rows, count = read_cells(path)
    if len(rows) < 2:
        raise ValueError(f"expected a head and a row per picture in {str(path)!r}, got {len(rows)} rows")
    head, *rows = rows
    key = next((i for name in FILE_COLUMNS for i, cell in enumerate(head) if cell.lower() == name), None)
    if key is None and (count is not None or (rows and len(rows[0]) == len(head) + 1)):
        head, key = ["", *head], 0  # CelebA's own form
    if key is None:
        raise ValueError(f"expected a column of file names, one of {FILE_COLUMNS}, in {str(path)!r}, got {head}")
    places = {name: i for i, name in enumerate(head) if name and i != key}
    if len(places) < sum(bool(name) and i != key for i, name in enumerate(head)):
        twice = sorted({name for name in head if name and head.count(name) > 1})
        raise ValueError(f"expected every column once in {str(path)!r}, got {twice[0]!r} more than once")
    least = 1 + max(key, *places.values())  # unnamed columns on the right may be short of cells
    table = Table(columns={name: [] for name in places})
    for row in rows:
        while len(row) > len(head) and not row[-1]:
            row.pop()
        whole = least <= len(row) <= len(head)
        fault = "" if whole else f"expected {least} cells in {path.name}, got {len(row)}"
        table.files.append(row[key] if key < len(row) else "")
        table.faults.append(fault if fault or row[key] else f"no file name in {path.name}")
        for name, i in places.items():
            table.columns[name].append(row[i] if whole else "")
    if count is not None and count != len(rows):
        table.notes.append(f"its first line says {count} pictures, got {len(rows)}")
    return table


def read_cells(path: Path) -> tuple[list[list[str]], int | None]:
    """The rows of a text table that are not empty, and the number of rows that CelebA writes above the head.

    Cells are separated by commas, semicolons, tabs or bars, whichever the first row has most of, or else by spaces.
    """
    text = _read_text(path).replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    first, _, rest = text.partition("\n")
    count, delimiter = None, ""
    if alone := re.fullmatch(rf'"?(\d+)"?[{_DELIMITERS} ]*', first):  # a spreadsheet fills the row up
        count, text = int(alone[1]), rest
    elif first.lower().startswith("sep="):  # a spreadsheet's hint to itself
        delimiter, text = first[4:5], rest
    first = text.partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS, key=first.count)
    if delimiter not in first and (count is not None or len(first.split()) > 1):
        rows = [line.split() for line in text.split("\n")]
    else:
        text = re.sub(rf'" +(?={re.escape(delimiter)}|$)', '"', text, flags=re.MULTILINE)  # "a" ,"b"
        lines = io.StringIO(text)  # `splitlines` would also break a caption at a vertical tab
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            rows = [[cell.strip() for cell in row] for row in reader]
        except csv.Error as error:  # such as a quote that does not close, which would swallow rows
            raise ValueError(f"{str(path)!r}, line {reader.line_num}: {error}") from error
    return [row for row in rows if any(row)], count


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")  # what spreadsheets on Windows call ANSI
    if "\0" in text:
        raise ValueError(f"expected a table as text (CSV) or a parquet file, got another kind of file: {str(path)!r}")
    return text


def as_number(cell: object) -> float:
    """A cell as a number, `1,5` like `1.5`; NaN where it is none."""
    if isinstance(cell, str):
        cell = cell.strip().replace("−", "-")
        cell = cell if "." in cell else cell.replace(",", ".")
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
