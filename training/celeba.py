"""CelebA and its like: pictures with attribute columns, from the Hub, CelebA's own folders, or a table of files."""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from training.tables import FILE_COLUMNS, Table, as_number, read_cells, read_table


HUB_ID, HUB_CONFIG = "flwrlabs/celeba", "img_align+identity+attr"
DEFAULT_ATTRIBUTES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")  # the thesis's label
MAX_ATTRIBUTES = 8

FAULT_COLUMN = "_fault"  # of splits that come from tables: why a row is left out, empty where it is not

_ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
_PICTURE_FOLDERS = ("img_align_celeba", "img_align_celeba_png")
_METADATA = "metadata.csv"
_ANNOTATIONS, _EVALUATION, _IMAGES = "Anno", "Eval", "Img"  # the authors' folders
_SPLITS = {
    "train": ("0", "train", "training"),
    "validation": ("1", "validation", "valid", "val", "dev"),
    "test": ("2", "test", "testing"),
}
_SPLIT_COLUMNS = ("partition", "split")
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_MEANING = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def open_splits(data: str, subset: str | None = None) -> datasets.DatasetDict:
    """Opens face images without decoding them.

    Args:
        data (`str`): One of

            - CelebA's folder as its authors (`Anno/`, `Eval/`, `Img/`), Kaggle (`list_attr_celeba.csv`,
              `img_align_celeba/img_align_celeba/`) or torchvision (`celeba/`) lay it out, or the folder above it.
              `list_eval_partition.txt` or `.csv`, or a column `partition` or `split`, gives its splits,
            - a table of file names (`file_name` or `image_id`) and attributes, as CSV or in the form of
              `list_attr_celeba.txt`, with the pictures beside it or in a folder `img_align_celeba` beside it,
            - a parquet file with a column `image`,
            - a folder of pictures with a `metadata.csv`, or with one in each folder `train`, `validation`, `test`,
            - another folder that `datasets` understands,
            - a data set's Hub id, such as `flwrlabs/celeba`.
        subset (`str`, *optional*): The Hub data set's configuration; for `flwrlabs/celeba` the one with attributes.

    Returns:
        `datasets.DatasetDict`: Splits with a column `image` (not decoded) and the attributes' columns.

    Raises:
        OSError: If there is no such data.
        ValueError: If it has no split `train`, or a table cannot be read.
    """
    if not data.strip():
        raise FileNotFoundError(f"expected a data file, a folder or a Hub id, got {data!r}")
    path = Path(data).expanduser()
    if path.is_dir():
        splits = _open_folder(path, subset)
    elif path.is_file():
        is_table = path.suffix.lower() != ".parquet"
        splits = _table_splits(path) if is_table else _load("parquet", data_files=str(path))
    else:
        splits = _open_hub(data, subset)
    if "train" not in splits:
        raise ValueError(f"expected a split 'train' in {data!r}, got {sorted(splits)}")
    for name, split in splits.items():
        if "image" not in split.column_names:
            tables = sorted(str(p) for p in path.glob("*.csv")) if path.is_dir() else []
            hint = f"; a table of pictures is given itself: {', '.join(tables[:3])}" if tables else ""
            raise ValueError(f"expected a column 'image' in {data!r}, got {split.column_names}{hint}")
        splits[name] = split.cast_column("image", datasets.Image(decode=False))
    return splits


def check_attributes(attributes: Sequence[str], columns: Iterable[str]) -> None:
    """Raises a ValueError, with the nearest names, unless every attribute is a column."""
    columns = [c for c in columns if c not in ("image", FAULT_COLUMN)]
    for name in attributes:
        if name not in columns:
            available = difflib.get_close_matches(name, columns, n=3) or columns or ["no column but the pictures"]
            raise ValueError(f"expected a column of the data, got {name!r}; available: {', '.join(available)}")


def attribute_values(split: datasets.Dataset, attributes: Sequence[str]) -> np.ndarray:
    """The attribute columns as float64 of shape (row, attribute): 1 present, 0 absent, NaN where the cell is faulty.

    Cells may be bool, 0/1, or CelebA's -1/1, as numbers or text; text may also be true, false, yes, no.
    """
    table = np.full((len(split), len(attributes)), np.nan)
    for i, name in enumerate(attributes):
        column = list(map(str, split[name][:]))
        meaning = {cell: _presence(cell) for cell in set(column)}
        table[:, i] = [meaning[cell] for cell in column]
    return table


def row_faults(split: datasets.Dataset) -> list[str]:
    """Why each row of a split is left out whatever its picture is; empty where it is not."""
    return split[FAULT_COLUMN][:] if FAULT_COLUMN in split.column_names else [""] * len(split)


def mark_contradictions(split: datasets.Dataset, attributes: Sequence[str]) -> datasets.Dataset:
    """The split of a table in which rows of one picture with different attributes are faulty: none can be believed."""
    if FAULT_COLUMN not in split.column_names:
        return split
    values, places = attribute_values(split, attributes), [cell["path"] for cell in split["image"][:]]
    found: dict[str, set[tuple[float, ...]]] = {}
    for place, row in zip(places, values, strict=True):
        if not np.isnan(row).any():
            found.setdefault(place, set()).add(tuple(row))
    faults = [
        fault or ("rows of one picture with different attributes" if len(found.get(place, ())) > 1 else "")
        for place, fault in zip(places, row_faults(split), strict=True)
    ]
    return split.remove_columns(FAULT_COLUMN).add_column(FAULT_COLUMN, faults)


def labels_from_values(values: np.ndarray) -> np.ndarray:
    """Attributes (row, attribute) of 0 and 1 as bits of a label, most significant first: int64 of shape (row,)."""
    return values.astype(np.int64) @ (1 << np.arange(values.shape[1])[::-1])


def _presence(cell: str) -> float:
    word = cell.strip().lower()
    number = _MEANING[word] if word in _MEANING else as_number(word)
    return {1.0: 1.0, 0.0: 0.0, -1.0: 0.0}.get(number, np.nan)


def _load(name: str, subset: str | None = None, **kwargs: str) -> datasets.DatasetDict:
    """`datasets.load_dataset`, whose errors are of many classes and many lines, with one."""
    try:
        return datasets.load_dataset(name, subset, **kwargs)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(f"cannot read {kwargs.get('data_files', name)!r} as a data set: {reason}") from error


def _open_hub(data: str, subset: str | None) -> datasets.DatasetDict:
    """A data set of the Hub, unless the text can only be a path, which then is mistyped."""
    path = Path(data).expanduser()
    missing, parent = path, path.parent
    while not parent.is_dir():
        missing, parent = parent, parent.parent
    nearest = [repr(str(parent / n)) for n in difflib.get_close_matches(missing.name, os.listdir(parent), n=3)]
    there = f"nearest: {', '.join(nearest)}" if nearest else f"nothing of a like name in {str(parent)!r}"
    is_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", data) and path.suffix not in (".csv", ".txt", ".parquet")
    if not is_id or (parent == path.parent and (nearest or "/" in data)):
        raise FileNotFoundError(f"expected a data file or folder, got {data!r}; {there}")
    try:
        return _load(data, HUB_CONFIG if data == HUB_ID and subset is None else subset)
    except ValueError as error:
        raise ValueError(
            f"expected a data file or folder, got {data!r}; here {there}, and on the Hub: {error}"
        ) from error


def _open_folder(folder: Path, subset: str | None) -> datasets.DatasetDict:
    tables = _attribute_tables(folder)
    if tables:
        return _table_splits(tables[0])
    if (folder / _METADATA).is_file():
        return _table_splits(folder / _METADATA)
    parts = {_SPLIT_OF.get(p.parent.name.lower()): p for p in sorted(folder.glob(f"*/{_METADATA}"))}
    if "train" in parts:
        whole = {name: list(_table_splits(p).values()) for name, p in parts.items() if name}
        return datasets.DatasetDict({name: datasets.concatenate_datasets(found) for name, found in whole.items()})
    pieces = [p for p in (*_PICTURE_FOLDERS, *_PARTITION_FILES, _EVALUATION, _IMAGES) if (folder / p).exists()]
    if pieces:
        raise FileNotFoundError(
            f"expected {' or '.join(_ATTRIBUTE_FILES)} in {str(folder)!r} or {str(folder / _ANNOTATIONS)!r}, found"
            f" {', '.join(pieces)} alone. Pictures without attributes: give their own folder."
        )
    return _load(str(folder), subset)


def _attribute_tables(folder: Path) -> list[Path]:
    """CelebA's table of attributes in the nearest of `folder` and the folders up to two below it."""
    for pattern in ("{}", "*/{}", "*/*/{}"):
        found = [p for name in _ATTRIBUTE_FILES for p in sorted(folder.glob(pattern.format(name))) if p.is_file()]
        if len({p.parent for p in found}) > 1:
            raise ValueError(f"expected one CelebA in {str(folder)!r}, got {', '.join(map(repr, map(str, found)))}")
        if found:
            return found
    return []


def _table_splits(path: Path) -> datasets.DatasetDict:
    """The splits of a table of pictures; what is in no split is a faulty row of the first."""
    base = path.parent.parent if path.parent.name == _ANNOTATIONS else path.parent
    table = read_table(path)
    split_of = _partition(table, path, base)
    places = _find_pictures(table.files, path, base)
    rows: dict[str, list[int]] = {}
    for i, split in enumerate(split_of):
        rows.setdefault(split, []).append(i)
    splits = datasets.DatasetDict()
    for name in _SPLITS:
        chosen = rows.get(name, [])
        notes = table.notes if name == "train" else []
        if chosen or notes:
            columns = {key: [""] * len(notes) + [cells[i] for i in chosen] for key, cells in table.columns.items()}
            columns["image"] = [str(path)] * len(notes) + [places[i] for i in chosen]
            columns[FAULT_COLUMN] = notes + [table.faults[i] for i in chosen]
            features = datasets.Features({key: datasets.Value("string") for key in columns})
            splits[name] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _partition(table: Table, path: Path, base: Path) -> list[str]:
    """The split of each row; where there is none it is `train`, and the row's fault says so."""
    candidates = [base / folder / name for folder in ("", _EVALUATION) for name in _PARTITION_FILES]
    source = next((candidate for candidate in candidates if candidate.is_file()), None)
    column = next((name for name in table.columns if name.lower() in _SPLIT_COLUMNS), None)
    if source is not None:
        words, name = _partition_words(source), source.name
        cells = [words.get(file) for file in table.files]
        known = set(table.files)
        others = [file for file, word in words.items() if file not in known and _split_named(word)]
        if others:
            table.notes.append(f"lacks {len(others)} pictures of {name}, the first {others[0]}")
    elif column is not None and "train" in map(_split_named, table.columns[column]):
        name, cells = f"the column {column!r}", list(table.columns[column])
    else:  # pictures in folders `train/`, `validation/`, or all in one split
        firsts = [file.replace("\\", "/").partition("/")[0].lower() for file in table.files]
        named = all(first in _SPLIT_OF and not first.isdecimal() for first in firsts)
        return [_SPLIT_OF[first] if named else "train" for first in firsts]
    splits = []
    for i, word in enumerate(cells):
        split = _split_named(word or "")
        if split is None and not table.faults[i]:
            got = f"expected 0, 1 or 2 in {name}, got {word or 'nothing'}"
            table.faults[i] = f"not in {name}" if word is None else got
        splits.append(split or "train")
    return splits


def _partition_words(source: Path) -> dict[str, str]:
    """What a partition file, with or without a head, says of each picture; all of it where it says several things."""
    rows = read_cells(source)[0]
    head = [cell.lower() for cell in rows[0]] if rows else []
    file_at = next((head.index(name) for name in FILE_COLUMNS if name in head), 0)
    word_at = next((head.index(name) for name in _SPLIT_COLUMNS if name in head), file_at + 1)
    words: dict[str, str] = {}
    for row in rows:
        file, word = (row[i] if i < len(row) else "" for i in (file_at, word_at))
        words[file] = word if words.get(file, word) == word else f"{words[file]} and {word}"
    return words


def _split_named(word: str) -> str | None:
    return _SPLIT_OF.get(word.lower().replace(",", ".").removesuffix(".0"))


def _find_pictures(files: Sequence[str], path: Path, base: Path) -> list[str]:
    """Where each picture lies; one that is nowhere keeps its first place, and is found faulty when it is read.

    Raises:
        FileNotFoundError: If none of them is anywhere.
    """
    named = [base / place / name for place in ("", _IMAGES) for name in _PICTURE_FOLDERS]
    folders = [f for f in (path.parent, *named, *(n / n.name for n in named)) if f.is_dir()]
    listed = [(folder, set(os.listdir(folder))) for folder in folders]
    # The authors' PNG pictures have a table that names JPEG ones; others name "a.jpg" what is "a.JPG", or spell "ä"
    # otherwise.
    claimed, extensions = set(files), Image.registered_extensions()
    alike: dict[str, Path | None] = {}  # `None` where it is not clear which is meant
    for folder, names in listed:
        for name in names - claimed:
            if Path(name).suffix.lower() in extensions:
                alike[_plain(name)] = None if _plain(name) in alike else folder / name
    places, found = [], 0
    for file in files:
        name = file.replace("\\", "/")
        place = next((folder / name for folder, names in listed if name in names), None)
        if place is None and "/" in name:
            place = next((folder / name for folder in folders if os.path.isfile(folder / name)), None)
        place = place or alike.get(_plain(name))
        found += place is not None
        places.append(str(place or (folders[1] if len(folders) > 1 else folders[0]) / name))
    if files and not found:
        packed = sorted(p.name for f in (base, base / _IMAGES) if f.is_dir() for p in f.glob("*.zip"))
        hint = f"; unpack {', '.join(packed)} first" if packed else ""
        where = ", ".join(repr(str(folder)) for folder in folders)
        raise FileNotFoundError(
            f"none of the {len(files)} pictures of {str(path)!r} is in {where}; expected them there or in a folder"
            f" {_PICTURE_FOLDERS[0]!r}{hint}"
        )
    return places


def _plain(name: str) -> str:
    """A file's name without its folder, extension and case, and the two ways of writing an accent."""
    return unicodedata.normalize("NFC", os.path.splitext(os.path.basename(name))[0]).casefold()
