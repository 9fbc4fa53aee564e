import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.conftest import ATTRIBUTES, write_parquet
from training.config import TrainingConfig
from training.data import BatchStream, FaceImages, load_splits, sampling_weights


def make_config(settings, **changes):
    return TrainingConfig(**{**settings, **changes})


def make_stream(settings, labels, **kwargs):
    changes = {name: kwargs.pop(name) for name in list(kwargs) if name not in ("process", "num_processes")}
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    data = FaceImages(images, torch.tensor(labels))
    return BatchStream(data, make_config(settings, **changes), -1, 1000, **kwargs)


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
    assert name == "row 2"  # the fifth without the two above the limit
    assert "not a readable picture" in reason


def test_sampling_weights():
    weights = sampling_weights(torch.tensor([0] * 100 + [1] * 25 + [2] * 4), balance=0.5, floor=16)
    per_label = [weights[:100].sum(), weights[100:125].sum(), weights[125:].sum()]
    expected = np.array([100 / 10, 25 / 5, 4 / 4])  # the third label counts as 16 images
    np.testing.assert_allclose(per_label, expected / expected.sum(), rtol=1e-12)


def test_balanced_epochs_have_the_frequencies_of_the_weights(settings):
    stream = make_stream(settings, [0] * 200 + [1] * 25, class_balance=0.5, class_balance_floor=1)
    epochs = torch.stack([torch.bincount(stream.epoch_order(e), minlength=225) for e in range(40)]).double()
    expected = np.array([200**-0.5] * 200 + [25**-0.5] * 25)
    expected *= 225 / expected.sum()
    assert (epochs.sum(1) == 225).all()
    assert (np.abs(epochs.numpy() - expected) < 1).all()  # every epoch is as near as whole numbers can be
    np.testing.assert_allclose(epochs.mean(0), expected, atol=0.3)


def test_without_balance_an_epoch_holds_every_row_once(settings):
    stream = make_stream(settings, [0, 1, 1, 1, 2, 2, 3], class_balance=0.0)
    orders = [stream.epoch_order(e).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1]


def test_steps_follow_the_epochs_and_do_not_depend_on_history(settings):
    stream = make_stream(settings, list(range(7)), class_balance=0.0)
    rows = torch.cat([stream.rows(i) for i in range(7)])
    assert rows.tolist() == [r for e in range(3) for r in stream.epoch_order(e).tolist()]
    (late,) = make_stream(settings, list(range(7)), class_balance=0.0).batches(5)
    (again,) = stream.batches(5)
    for name in ("images", "labels", "timesteps", "noise"):
        assert torch.equal(getattr(late, name), getattr(again, name))


@pytest.mark.parametrize("stratified", [False, True])
def test_a_step_is_the_same_however_it_is_shared(settings, stratified):
    def streams(size, accumulation, processes):
        return [
            make_stream(
                settings, list(range(13)), batch_size=size, gradient_accumulation_steps=accumulation,
                stratified_timesteps=stratified, process=p, num_processes=processes,
            )
            for p in range(processes)
        ]  # fmt: skip

    (whole,) = streams(12, 1, 1)[0].batches(3)
    for shares in ((3, 4, 1), (6, 1, 2), (2, 3, 2)):
        parts = [batch for stream in streams(*shares) for batch in stream.batches(3)]
        assert len(parts) == shares[1] * shares[2]
        for name in ("images", "labels", "timesteps", "noise"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_label_dropout(settings):
    stream = make_stream(settings, [3] * 50, batch_size=50, label_dropout=0.1)
    labels = torch.cat([stream.batches(i)[0].labels for i in range(100)])
    assert set(labels.tolist()) == {-1, 3}
    assert (labels == -1).double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert set(make_stream(settings, [3] * 9, label_dropout=0.0).batches(0)[0].labels.tolist()) == {3}


def test_half_of_the_images_are_mirrored(settings):
    data = FaceImages(
        torch.tensor([0, 255], dtype=torch.uint8).repeat(30, 3, 2, 1), torch.zeros(30, dtype=torch.int64)
    )
    stream = BatchStream(data, make_config(settings, batch_size=30), -1, 1000)
    left = torch.cat([stream.batches(i)[0].images[:, 0, 0, 0] for i in range(40)])
    assert set(left.tolist()) == {-1.0, 1.0}
    assert (left > 0).double().mean().item() == pytest.approx(0.5, abs=0.06)
    (still,) = BatchStream(data, make_config(settings, horizontal_flip=False), -1, 1000).batches(0)
    assert set(still.images[..., 0].flatten().tolist()) == {-1.0}


def test_missing_columns_are_named(settings, tmp_path):
    path = write_parquet(tmp_path / "faces.parquet", 3)
    config = make_config(settings, validation_images=1)
    with pytest.raises(ValueError, match=r"lacks the column 'Eyeglasses'; available: .*Bangs"):
        load_splits(path, None, config, ("Bangs", "Eyeglasses"))
    with pytest.raises(ValueError, match="expected more than validation_images"):
        load_splits(path, None, make_config(settings, validation_images=3), ATTRIBUTES)
    with pytest.raises(FileNotFoundError, match="no data file"):
        load_splits(str(tmp_path / "none.parquet"), None, config, ATTRIBUTES)
