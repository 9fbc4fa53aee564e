"""CelebA and its like: pictures with attribute columns, from the Hub, its official folder, or a table of files."""

import csv
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np


HUB_ID, HUB_CONFIG = "flwrlabs/celeba", "img_align+identity+attr"

# fmt: off
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)
# fmt: on
MAX_ATTRIBUTES = 8

_IMAGE_FOLDER, _ATTRIBUTES_FILE, _PARTITION_FILE = (
    "img_align_celeba",
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
)
_SPLITS = ("train", "validation", "test")  # the partition file's 0, 1, 2
_FILE_COLUMNS = ("file_name", "image_id", "image", "filename", "file")


def open_splits(data: str, subset: str | None = None) -> datasets.DatasetDict:
    """Opens face images without decoding them.

    Args:
        data (`str`): One of

            - a parquet file with a column `image`,
            - a CSV file of file names (`file_name` or `image_id`) and attributes, with the pictures beside it or in a
              folder `img_align_celeba` beside it,
            - CelebA's official folder: `img_align_celeba/` and `list_attr_celeba.txt`, and `list_eval_partition.txt`
              for its splits,
            - another folder that `datasets` understands: parquet files, or pictures with a `metadata.csv`,
            - a data set's Hub id, such as `flwrlabs/celeba`.
        subset (`str`, *optional*): The Hub data set's configuration; for `flwrlabs/celeba` the one with attributes.

    Returns:
        `datasets.DatasetDict`: Splits with a column `image` (not decoded) and the attributes' columns.

    Raises:
        OSError: If there is no such data.
        ValueError: If it has no split `train`, or a table cannot be read.
    """
    path = Path(data)
    if path.suffix in {".parquet", ".csv"} and not path.is_file():
        raise FileNotFoundError(f"no data file at {data!r}")
    if path.suffix == ".parquet":
        splits = datasets.load_dataset("parquet", data_files=data)
    elif path.suffix == ".csv":
        splits = datasets.DatasetDict(
            train=_with_pictures(*_read_csv(path), [path.parent, path.parent / _IMAGE_FOLDER])
        )
    elif (path / _ATTRIBUTES_FILE).is_file():
        splits = _official_folder(path)
    else:
        splits = datasets.load_dataset(data, HUB_CONFIG if data == HUB_ID and subset is None else subset)
    if "train" not in splits:
        raise ValueError(f"expected a split 'train' in {data!r}, got {sorted(splits)}")
    for name, split in splits.items():
        if "image" not in split.column_names:
            raise ValueError(f"expected a column 'image' in {data!r}, got {split.column_names}")
        splits[name] = split.cast_column("image", datasets.Image(decode=False))
    return splits


def check_attributes(attributes: Sequence[str], columns: Iterable[str]) -> None:
    """Raises a ValueError, with the nearest names, unless every attribute is a column."""
    columns = list(columns)
    for name in attributes:
        if name not in columns:
            available = difflib.get_close_matches(name, columns, n=3) or [c for c in columns if c != "image"]
            raise ValueError(f"the data lacks the column {name!r}; available: {', '.join(available)}")


def attribute_values(split: datasets.Dataset, attributes: Sequence[str]) -> np.ndarray:
    """The attribute columns as float64 of shape (row, attribute): 1 present, 0 absent, NaN where the cell is faulty.

    Cells may be bool, 0/1, or CelebA's -1/1, as numbers or text.
    """
    table = np.full((len(split), len(attributes)), np.nan)
    meaning = {"1": 1.0, "true": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0}
    for i, name in enumerate(attributes):
        column = split[name][:]
        table[:, i] = [meaning.get(str(cell).strip().lower().removesuffix(".0"), np.nan) for cell in column]
    return table


def labels_from_values(values: np.ndarray) -> np.ndarray:
    """Attributes (row, attribute) of 0 and 1 as bits of a label, most significant first: int64 of shape (row,)."""
    return values.astype(np.int64) @ (1 << np.arange(values.shape[1])[::-1])


def _official_folder(folder: Path) -> datasets.DatasetDict:
    if not (folder / _IMAGE_FOLDER).is_dir():
        raise FileNotFoundError(f"{folder / _ATTRIBUTES_FILE} is there, but not the folder {folder / _IMAGE_FOLDER}")
    lines = (folder / _ATTRIBUTES_FILE).read_text(encoding="utf-8").splitlines()
    if len(lines) < 3:
        raise ValueError(f"expected the number of files, the attributes and a line per file in {_ATTRIBUTES_FILE}")
    names = lines[1].split()
    files, cells = [], []
    for line in lines[2:]:
        file, *values = line.split() or [""]
        if file:
            files.append(file)
            cells.append(values if len(values) == len(names) else [""] * len(names))
    table = {name: [row[i] for row in cells] for i, name in enumerate(names)}
    everything = _with_pictures(files, table, [folder / _IMAGE_FOLDER])
    if not (folder / _PARTITION_FILE).is_file():
        return datasets.DatasetDict(train=everything)
    pairs = (line.split() for line in (folder / _PARTITION_FILE).read_text(encoding="utf-8").splitlines())
    part_of = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    rows = {name: [i for i, file in enumerate(files) if part_of.get(file) == k] for k, name in enumerate(_SPLITS)}
    return datasets.DatasetDict({name: everything.select(chosen) for name, chosen in rows.items() if chosen})


def _read_csv(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        key = next((name for name in _FILE_COLUMNS if name in columns), None)
        if key is None:
            raise ValueError(
                f"expected a column of file names, one of {_FILE_COLUMNS}, in {str(path)!r}, got {columns}"
            )
        rows = list(reader)
    return [row[key] or "" for row in rows], {c: [row[c] or "" for row in rows] for c in columns if c != key}


def _with_pictures(files: list[str], table: dict[str, list[str]], folders: list[Path]) -> datasets.Dataset:
    """A data set of paths; a file that is nowhere keeps its first place, and is found faulty when it is read."""
    places = [next((f for f in folders if (f / name).is_file()), folders[0]) / name for name in files]
    features = datasets.Features({name: datasets.Value("string") for name in ("image", *table)})
    return datasets.Dataset.from_dict({"image": [str(p) for p in places], **table}, features=features)
