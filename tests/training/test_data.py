import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.small_runs import ATTRIBUTES, make_config, write_parquet
from training.data import load_splits


def test_labels_are_the_bits_of_the_attributes(settings, tmp_path):
    columns = {"Bangs": [True, False, False], "Male": [False, True, False], "Smiling": [True, True, False]}
    columns["Wearing_Lipstick"] = [False, True, False]
    path = write_parquet(tmp_path / "faces.parquet", 3, **columns)
    train, held_out = load_splits(path, None, make_config(settings, validation_images=1), ATTRIBUTES)
    assert torch.cat([train.labels, held_out.labels]).tolist() == [0b1010, 0b0111, 0]


def test_celeba_style_minus_one_means_absent(settings, tmp_path):
    path = write_parquet(
        tmp_path / "faces.parquet",
        2,
        Bangs=[-1.0, 1.0],
        Male=[-1.0, -1.0],
        Smiling=[1.0, -1.0],
        Wearing_Lipstick=[1.0, 1.0],
    )
    train, held_out = load_splits(path, None, make_config(settings, validation_images=1), ATTRIBUTES)
    assert (train.labels.tolist(), held_out.labels.tolist()) == ([0b0011], [0b1001])


def test_a_folder_of_parquet_files_gives_its_splits(settings, data_folder):
    train, validation = load_splits(data_folder, None, make_config(settings), ATTRIBUTES)
    assert (len(train), len(validation)) == (40, 9)
    assert train.images.shape == (40, 3, 16, 16)
    assert train.images.dtype == torch.uint8


def test_permuted_labels_are_dealt_out_anew_among_the_same_images(settings, data_folder):
    plain, validation = load_splits(data_folder, None, make_config(settings), ATTRIBUTES)
    permuted, same = load_splits(data_folder, None, make_config(settings, permuted_labels=True), ATTRIBUTES)
    other, _ = load_splits(data_folder, None, make_config(settings, permuted_labels=True, seed=1), ATTRIBUTES)
    assert torch.equal(plain.images, permuted.images)
    assert (plain.labels != permuted.labels).float().mean() > 0.5
    assert torch.equal(plain.labels.sort().values, permuted.labels.sort().values)
    assert not torch.equal(permuted.labels, other.labels)
    assert torch.equal(validation.labels, same.labels)


def test_a_folder_of_pictures_with_metadata(settings, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["file_name," + ",".join(ATTRIBUTES)]
    for i in range(4):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},1,0,1")
    (folder / "metadata.csv").write_text("\n".join(lines))
    train, held_out = load_splits(str(folder), None, make_config(settings, validation_images=1), ATTRIBUTES)
    labels = {int(x[0, 0, 0]): int(y) for s in (train, held_out) for x, y in zip(s.images, s.labels, strict=True)}
    assert labels == {0: 0b0101, 1: 0b1101, 2: 0b0101, 3: 0b1101}


def test_images_are_cropped_to_the_centre_and_resized(settings, tmp_path):
    array = np.zeros((30, 40, 3), dtype=np.uint8)
    array[11:19, 16:24] = 200  # the centred 8 x 8
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    table = {"image": [cell, cell]} | {name: [True, True] for name in ATTRIBUTES}
    features = datasets.Features({"image": datasets.Image()} | {n: datasets.Value("bool") for n in ATTRIBUTES})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "one.parquet")
    config = make_config(settings, center_crop=8, validation_images=1)
    train, _ = load_splits(str(tmp_path / "one.parquet"), None, config, ATTRIBUTES)
    assert train.images.unique().tolist() == [200]


def test_rows_above_a_limit_and_unreadable_images_are_left_out(settings, tmp_path):
    path = write_parquet(tmp_path / "faces.parquet", 10, black_border=[0.5] * 2 + [0.1] * 8)
    table = datasets.Dataset.from_parquet(path).cast_column("image", datasets.Image(decode=False))
    cells = [table[i]["image"] for i in range(10)]
    cells[4] = {"bytes": cells[4]["bytes"][:40], "path": None}
    broken = table.remove_columns("image").add_column("image", cells).cast_column("image", datasets.Image())
    broken.to_parquet(path)
    config = make_config(settings, max_values={"black_border": 0.15}, validation_images=1)
    train, _ = load_splits(path, None, config, ATTRIBUTES)
    assert len(train) == 10 - 1 - 2 - 1  # held out, border, unreadable
    ((name, reason),) = train.faulty
    assert name == "row 4"
    assert "not a readable picture" in reason


def test_missing_columns_are_named(settings, tmp_path):
    path = write_parquet(tmp_path / "faces.parquet", 3)
    config = make_config(settings, validation_images=1)
    with pytest.raises(ValueError, match=r"a column of the data, got 'Eyeglasses'; available: .*Bangs"):
        load_splits(path, None, config, ("Bangs", "Eyeglasses"))
    with pytest.raises(ValueError, match="expected more than validation_images"):
        load_splits(path, None, make_config(settings, validation_images=3), ATTRIBUTES)
    with pytest.raises(FileNotFoundError, match="expected a data file"):
        load_splits(str(tmp_path / "none.parquet"), None, config, ATTRIBUTES)
