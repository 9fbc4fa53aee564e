"""Where face images come from: CelebA's folder, tables, the Hub; and what is wrong with some of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_xai import XAIPipeline
from diffusers_xai.cli.requests import parse_label
from tests.reference.local_hub import LocalHub
from tests.training.celeba_folders import CELEBA_ATTRIBUTES, grey_and_label, official_folder, picture
from tests.training.small_runs import ATTRIBUTES, make_config, run, write_parquet
from training.celeba import attribute_values, open_splits
from training.data import load_splits
from training.describe import attribute_correlation, label_counts, label_figure
from training.describe import main as describe


ROOT = Path(__file__).parents[2]


ROWS = [
    ("000001.png", {"Smiling"}),
    ("000002.png", {"Male", "Eyeglasses"}),
    ("000003.png", {"Bangs", "Wearing_Lipstick"}),
    ("000004.png", set()),
]


def test_the_official_folder(settings, tmp_path):
    data = official_folder(tmp_path / "celeba", ROWS, partition=[0, 0, 2, 1])
    assert {name: len(split) for name, split in open_splits(data).items()} == {"train": 2, "validation": 1, "test": 1}
    train, validation = load_splits(data, None, make_config(settings), ATTRIBUTES)
    assert grey_and_label(train) == [(0, 0b0010), (10, 0b0100)]
    assert grey_and_label(validation) == [(30, 0)]


def test_the_official_folder_without_a_partition_holds_out_the_last_rows(settings, tmp_path):
    data = official_folder(tmp_path / "celeba", ROWS)
    parts = load_splits(data, None, make_config(settings, validation_images=1), ["Eyeglasses", "Smiling"])
    assert [grey_and_label(part) for part in parts] == [[(0, 0b01), (10, 0b10), (20, 0)], [(30, 0)]]


def moved(root, **places):
    """The official folder with its pieces in other places: `Anno={"list_attr_celeba.txt"}`."""
    for folder, names in places.items():
        for name in names:
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.move(root / name, root / folder / name)
    return root


def as_csv(root, delimiter=",", encoding="utf-8", end="\n"):
    """Turns the two text tables into CSV as Kaggle has them."""
    for name, head in (("list_attr_celeba", ["image_id", *CELEBA_ATTRIBUTES]), ("list_eval_partition", None)):
        source = root / f"{name}.txt"
        lines = [line.split() for line in source.read_text().splitlines()]
        lines = [head, *lines[2:]] if head else [["image_id", "partition"], *lines]
        text = "".join(delimiter.join(line) + end for line in lines)
        (root / f"{name}.csv").write_text(text, encoding=encoding, newline="")
        source.unlink()
    return root


def authors(root, pictures="img_align_celeba"):
    """The authors' three folders."""
    return moved(root, Anno={"list_attr_celeba.txt"}, Eval={"list_eval_partition.txt"}, Img={pictures})


def partition_of_pandas(root, columns=("", "image_id", "partition")):
    """The partition with the numbers of the rows before it, or its columns the other way round."""
    rows = [line.split() for line in (root / "list_eval_partition.txt").read_text().splitlines()]
    cells = [{"": str(i), "image_id": name, "partition": part} for i, (name, part) in enumerate(rows)]
    lines = [",".join(columns), *(",".join(row[column] for column in columns) for row in cells)]
    (root / "list_eval_partition.csv").write_text("\n".join(lines))
    (root / "list_eval_partition.txt").unlink()
    return root


def doubled(root):
    """Kaggle's archive unpacks the pictures into a folder in a folder of the same name."""
    inner = root / "img_align_celeba" / "img_align_celeba"
    (root / "img_align_celeba").rename(root / "pictures")
    inner.parent.mkdir()
    (root / "pictures").rename(inner)
    return root


def png_pictures(root):
    """The authors' second archive: PNG files, under a table that says JPEG."""
    (root / "img_align_celeba").rename(root / "img_align_celeba_png")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (root / name).write_text((root / name).read_text().replace(".png", ".jpg"))
    return root


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda root: root, "."),
        (lambda root: root, "list_attr_celeba.txt"),
        (doubled, "."),
        (as_csv, "."),
        (lambda root: doubled(as_csv(root)), "."),
        (lambda root: doubled(as_csv(root)), "list_attr_celeba.csv"),
        (lambda root: doubled(as_csv(root)), ".."),
        (lambda root: as_csv(root, ";", "utf-8-sig", "\r\n"), "."),
        (lambda root: as_csv(root, "\t", "utf-16"), "."),
        (partition_of_pandas, "."),
        (lambda root: partition_of_pandas(root, ("partition", "image_id")), "."),
        (png_pictures, "."),
        (lambda root: root, ".."),
        (lambda root: root, "../.."),
        (authors, "."),
        (authors, "Anno"),
        (authors, "Anno/list_attr_celeba.txt"),
        (authors, ".."),
        (lambda root: authors(doubled(root)), "."),
        (lambda root: authors(png_pictures(root), "img_align_celeba_png"), "."),
    ],
)
def test_celeba_is_found_as_its_sources_lay_it_out(settings, tmp_path, change, given):
    root = change(Path(official_folder(tmp_path / "data" / "celeba", ROWS, partition=[0, 0, 2, 1])))
    data = str((root / given).resolve())
    assert {name: len(split) for name, split in open_splits(data).items()} == {"train": 2, "validation": 1, "test": 1}
    train, validation = load_splits(data, None, make_config(settings), ATTRIBUTES)
    assert (grey_and_label(train), grey_and_label(validation)) == ([(0, 0b0010), (10, 0b0100)], [(30, 0)])
    assert train.faulty == validation.faulty == []


def test_rows_that_would_vanish_are_listed(settings, tmp_path):
    """Not in the partition, in two parts of it, in a part that is none; and pictures that the table lacks."""
    root = Path(
        official_folder(tmp_path / "celeba", [(f"{i}.png", set()) for i in range(8)], partition=[0] * 6 + [1] * 2)
    )
    lines = ["0.png 0", "1.png 0", "1.png 1", "2.png 3", "3.png", "5.png 0", "6.png 1", "7.png 1", "99.png 0"]
    (root / "list_eval_partition.txt").write_text("\n".join(lines))
    table = (root / "list_attr_celeba.txt").read_text()
    (root / "list_attr_celeba.txt").write_text(table.replace("8\n", "9\n", 1))
    train, validation = load_splits(str(root), None, make_config(settings), ATTRIBUTES)
    assert ([g for g, _ in grey_and_label(train)], [g for g, _ in grey_and_label(validation)]) == ([0, 50], [60, 70])
    assert {Path(name).name: reason for name, reason in train.faulty[2:]} == {
        "1.png": "expected 0, 1 or 2 in list_eval_partition.txt, got 0 and 1",
        "2.png": "expected 0, 1 or 2 in list_eval_partition.txt, got 3",
        "3.png": "expected 0, 1 or 2 in list_eval_partition.txt, got nothing",
        "4.png": "not in list_eval_partition.txt",
    }
    assert train.faulty[:2] == [
        (str(root / "list_attr_celeba.txt"), "its first line says 9 pictures, got 8"),
        (str(root / "list_attr_celeba.txt"), "lacks 1 pictures of list_eval_partition.txt, the first 99.png"),
    ]


def test_pieces_that_are_missing_are_named(tmp_path, monkeypatch):
    root = Path(official_folder(tmp_path / "celeba", ROWS, partition=[0, 0, 2, 1]))
    table = (root / "list_attr_celeba.txt").rename(tmp_path / "table.txt")
    with pytest.raises(
        FileNotFoundError, match=r"expected list_attr_celeba.txt or list_attr_celeba.csv .* found img_al"
    ):
        open_splits(str(root))
    table.rename(root / "list_attr_celeba.txt")
    (root / "img_align_celeba").rename(tmp_path / "elsewhere")
    (root / "img_align_celeba.zip").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 4 pictures .* 'img_align_celeba'; unpack img_align_celeba.zip"
    ):
        open_splits(str(root))
    for name in ("a", "b"):
        official_folder(tmp_path / "two" / name, ROWS)
    with pytest.raises(ValueError, match=r"expected one CelebA in .*two', got '.*a/list_attr.*b/list_attr"):
        open_splits(str(tmp_path / "two"))


@pytest.mark.parametrize(
    "given", ["{}/celba", "{}/celba/Anno", "{}/celeba/list_attr_celba.txt", "./celba", "celba", "~/celba"]
)
def test_a_mistyped_path_is_answered_with_the_nearest(tmp_path, monkeypatch, given):
    official_folder(tmp_path / "celeba", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=r"^expected a data file or folder, got '.*nearest: '.*cel(eba|eba/list_attr_celeba.txt)'",
    ):
        open_splits(given.format(tmp_path))


def test_data_without_a_name_are_refused():
    with pytest.raises(FileNotFoundError, match="expected a data file, a folder or a Hub id, got ' '"):
        open_splits(" ")


def test_an_id_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "celeba").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"^expected a data file or folder, got 'celba/faces'; here nearest: '.*celeba'.*, and on the Hub",
    ):
        open_splits("celba/faces")
    with pytest.raises(ValueError, match="cannot read '.*celeba' as a data set: "):
        open_splits("celeba")


def test_a_table_of_files(settings, tmp_path):
    for index in range(3):
        picture(tmp_path / "img_align_celeba" / f"{index}.png", 10 * index)
    (tmp_path / "faces.csv").write_text("image_id,Male,Young\n0.png,1,-1\n1.png,True,1.0\n2.png,0,1\n")
    config = make_config(settings, validation_images=1)
    parts = load_splits(str(tmp_path / "faces.csv"), None, config, ["Male", "Young"])
    assert grey_and_label(*parts) == [(0, 0b10), (10, 0b11), (20, 0b01)]
    (tmp_path / "faces.csv").write_text("picture,Male\n0.png,1\n")
    with pytest.raises(ValueError, match=r"expected a column of file names, one of .*, got \['picture', 'Male'\]"):
        open_splits(str(tmp_path / "faces.csv"))


def test_faulty_rows_are_listed_and_left_out(settings, tmp_path, config_file, capsys):
    data = official_folder(tmp_path / "celeba", [(f"{i}.png", {"Male"}) for i in range(12)])
    pictures = tmp_path / "celeba" / "img_align_celeba"
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:60])
    (pictures / "2.png").write_bytes(b"P6\n20 2")
    (pictures / "3.png").unlink()
    table = tmp_path / "celeba" / "list_attr_celeba.txt"
    lines = table.read_text().splitlines()
    lines[2 + 4] = lines[2 + 4].rsplit(maxsplit=1)[0]  # a value too few
    smiling = 1 + CELEBA_ATTRIBUTES.index("Smiling")
    cells = lines[2 + 5].split()
    lines[2 + 5] = " ".join([*cells[:smiling], "7", *cells[smiling + 1 :]])
    table.write_text("\n".join(lines))

    assert run(config_file, data, tmp_path / "run", "--set", "validation_images=3") == 0
    listed = json.loads((tmp_path / "run" / "faulty.json").read_text())
    assert listed["validation"] == []
    reasons = {Path(name).name: reason for name, reason in listed["train"]}
    assert sorted(reasons) == [f"{i}.png" for i in (1, 2, 3, 4, 5)]
    assert reasons["1.png"].startswith("not a readable picture")
    assert reasons["2.png"] == "not a readable picture: Reached EOF while reading header"
    assert "No such file" in reasons["3.png"]
    assert reasons["4.png"] == "expected 41 cells in list_attr_celeba.txt, got 40"
    assert reasons["5.png"] == "attributes missing or neither -1, 0 nor 1: Smiling"
    assert "left out 5 faulty rows" in capsys.readouterr().err


def test_data_without_a_usable_row_is_one_clear_error(settings, tmp_path):
    data = official_folder(tmp_path / "celeba", ROWS)
    for name, _ in ROWS:
        (tmp_path / "celeba" / "img_align_celeba" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="got none in 3; the first, .*000001.png: not a readable picture: cannot"):
        load_splits(data, None, make_config(settings, validation_images=1), ATTRIBUTES)


def test_the_subset_counts_good_images(settings, tmp_path):
    data = official_folder(tmp_path / "celeba", [(f"{i}.png", set()) for i in range(8)])
    (tmp_path / "celeba" / "img_align_celeba" / "1.png").write_bytes(b"")
    train, _ = load_splits(data, None, make_config(settings, validation_images=1, max_images=4), ATTRIBUTES)
    assert grey_and_label(train) == [(0, 0), (20, 0), (30, 0), (40, 0)]


def test_misspelt_attributes_are_answered_with_the_nearest(settings, tmp_path):
    data = official_folder(tmp_path / "celeba", ROWS)
    with pytest.raises(ValueError, match="a column of the data, got 'Eyeglases'; available: Eyeglasses"):
        load_splits(data, None, make_config(settings, validation_images=1), ["Eyeglases"])


@pytest.mark.parametrize("attributes", [["Eyeglasses"], ["Young", "Male"], list(CELEBA_ATTRIBUTES[:8])])
def test_any_attributes_train_a_network_of_as_many_labels(tmp_path, settings, attributes):
    rows = [(f"{i}.png", set(CELEBA_ATTRIBUTES[i::3])) for i in range(12)]
    data = official_folder(tmp_path / "celeba", rows)
    model = {**settings["model"], "class_attributes": attributes}
    changes = {"model": model, "sample_labels": None, "samples_per_label": 1, "validation_images": 2}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**settings, **changes}))
    assert run(str(config), data, tmp_path / "run", "--export", str(tmp_path / "pipe")) == 0
    written = json.loads((tmp_path / "pipe" / "unet" / "config.json").read_text())
    assert (written["num_class_embeds"], written["class_attributes"]) == (2 ** len(attributes), attributes)
    rows_of_samples = Image.open(tmp_path / "run" / "samples-00000004.png").size[1] // 16
    assert rows_of_samples == min(2 ** len(attributes), 16)
    pipe = XAIPipeline.from_pretrained(str(tmp_path / "pipe"))
    first_bit = 2 ** (len(attributes) - 1)
    images = [
        pipe([label], num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="np").images
        for label in ({attributes[0]: True}, first_bit, 0)
    ]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert parse_label("1" + "0" * (len(attributes) - 1), pipe.unet.config) == first_bit
    assert parse_label(attributes[-1], pipe.unet.config) == 1


def test_nine_attributes_are_too_many(settings):
    with pytest.raises(ValueError, match="expected 1 to 8 class_attributes, got 9"):
        make_config(settings, model={**settings["model"], "class_attributes": list(CELEBA_ATTRIBUTES[:9])})


def test_celeba_from_the_hub(tmp_path, settings):
    """`flwrlabs/celeba` from a Hub server over HTTP, as its parquet files are laid out there."""
    folder = tmp_path / "upload" / "img_align+identity+attr"
    folder.mkdir(parents=True)
    for name, count in (("train", 6), ("valid", 3), ("test", 2)):
        write_parquet(folder / f"{name}-00000-of-00001.parquet", count, seed=count)
    card = """---
configs:
- config_name: img_align+identity+attr
  data_files:
  - {split: train, path: "img_align+identity+attr/train-*"}
  - {split: valid, path: "img_align+identity+attr/valid-*"}
  - {split: test, path: "img_align+identity+attr/test-*"}
---
"""
    (tmp_path / "upload" / "README.md").write_text(card)
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("flwrlabs/celeba", repo_type="dataset")
api.upload_folder(repo_id="flwrlabs/celeba", repo_type="dataset", folder_path={str(tmp_path / "upload")!r})
from training.config import TrainingConfig
from training.data import load_splits
config = TrainingConfig(**{settings!r})
train, validation = load_splits("flwrlabs/celeba", None, config, {ATTRIBUTES!r})
print(len(train), len(validation), train.labels.tolist())
"""
    with LocalHub(tmp_path / "hub", storage="regular", user="flwrlabs") as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": hub.token,
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-2000:]
    train, validation, labels = done.stdout.strip().splitlines()[-1].split(maxsplit=2)
    assert (train, validation) == ("6", "3")
    rng = np.random.default_rng(6)
    for _ in range(6):
        rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    columns = [rng.random(6) < 0.5 for _ in ATTRIBUTES]
    expected = [int("".join(str(int(column[row])) for column in columns), 2) for row in range(6)]
    assert json.loads(labels) == expected


def test_label_histogram_and_correlation():
    values = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [1, 0]], dtype=float)
    assert label_counts(values).tolist() == [0, 2, 2, 1]
    expected = np.corrcoef(values[:, 0], values[:, 1])[0, 1]
    np.testing.assert_allclose(attribute_correlation(values), [[1, expected], [expected, 1]])
    bars, heat_map = label_figure(values, ["Male", "Young"]).data
    assert list(bars.x) == [2, 2, 1]
    assert [name.split()[-1] for name in bars.y] == ["01", "10", "11"]
    np.testing.assert_allclose(np.array(heat_map.z, dtype=float)[0, 1], expected)


def test_describe_command(tmp_path, capsys):
    data = official_folder(tmp_path / "celeba", ROWS)
    out = tmp_path / "labels.html"
    assert describe(["--data", data, "--attributes", "Male", "Smiling", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["2", "50.0%", "none", "00"]
    assert lines[1].split() == ["1", "25.0%", "Smiling", "01"]
    assert out.read_text().startswith("<!doctype html>")
    assert describe(["--data", data, "--attributes", "Mail", "--out", str(out)]) == 2
    assert "available: Male" in capsys.readouterr().err
    assert describe(["--data", data, "--out", str(tmp_path / "labels.gif")]) == 2
    assert "to end in .html or .png" in capsys.readouterr().err


def test_cells_that_are_neither_present_nor_absent(tmp_path):
    picture(tmp_path / "a.png", 0)
    (tmp_path / "x.csv").write_text("file_name,A\na.png,1\nb.png,\nc.png,maybe\nd.png,-1\ne.png,0.0\n")
    values = attribute_values(open_splits(str(tmp_path / "x.csv"))["train"], ["A"])[:, 0]
    assert torch.isnan(torch.tensor(values)).tolist() == [False, True, True, False, False]
    assert values[[0, 3, 4]].tolist() == [1, 0, 0]
