"""The data set of drawn faces on disk, and as training reads it."""

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusers_xai.checkpoints.face_drawing import ATTRIBUTES, PARTS, caption, draw_face, random_face
from tests.training.small_runs import make_config
from training.data import load_splits
from training.drawn_faces import contact_sheet, drawn_faces, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "faces"
    assert main(["--output", str(path), "--train", "12", "--validation", "5", "--size", "24", "--seed", "100"]) == 0
    return path


def test_the_parquet_files_hold_what_was_drawn(folder):
    splits = datasets.load_dataset(str(folder))
    assert {name: split["seed"][:] for name, split in splits.items()} == {
        "train": list(range(100, 112)),
        "validation": list(range(112, 117)),
    }
    for row in [*splits["train"], *splits["validation"]]:
        face = random_face(row["seed"])
        drawing = draw_face(face, 24)
        assert np.array_equal(np.asarray(row["image"]), drawing.image)
        assert np.array_equal(np.asarray(row["parts"]), drawing.coverage.argmax(axis=0))
        assert {name: row[name] for name in ATTRIBUTES} == face.labels
        assert row["Eyeglasses"] == face.glasses
        colors = splits["train"].features
        assert colors["hair_color"].int2str(row["hair_color"]) == face.hair_color
        assert colors["background_color"].int2str(row["background_color"]) == face.background_color
        assert caption(face).startswith(row["caption"].split(" with ")[0].split(",")[0])
        assert ("background" in row["caption"]) == (row["seed"] % 5 != 0)
        assert ("hair" in row["caption"]) == (row["seed"] % 4 != 0)


def test_training_reads_it(folder, settings):
    config = make_config(settings, model={**settings["model"], "sample_size": 24})
    train, validation = load_splits(str(folder), None, config, ATTRIBUTES)
    assert (len(train), len(validation)) == (12, 5)
    faces = [random_face(seed) for seed in range(100, 112)]
    expected = [8 * f.bangs + 4 * f.male + 2 * f.smiling + f.wearing_lipstick for f in faces]
    assert train.labels.tolist() == expected
    assert np.array_equal(train.images[3].permute(1, 2, 0).numpy(), draw_face(faces[3], 24).image)


def test_the_card_and_the_sheet(folder):
    card = (folder / "README.md").read_text()
    assert "12 and 5 faces (training, validation) of 24 × 24 pixels" in card
    assert f"{len(PARTS) - 1} {PARTS[-1]}" in card
    males = np.mean([random_face(seed).male for seed in range(100, 112)])
    assert f"| `Male` | {males:.1%} |" in card
    assert np.array_equal(np.asarray(Image.open(folder / "sheet.png")), np.asarray(contact_sheet(100)))


def test_the_same_seed_is_the_same_data():
    first, again = (drawn_faces(3, 1, seed=7)["train"].with_format("arrow")[:] for _ in range(2))
    assert first.equals(again)


def test_what_cannot_be_drawn_is_refused_and_what_is_there_stays(folder, tmp_path, capsys):
    before = sorted(path.name for path in folder.iterdir())
    assert main(["--output", str(folder)]) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    for option in ("--train=0", "--validation=0", "--size=7", "--seed=-1"):
        assert main(["--output", str(tmp_path / "new"), option]) == 2
    assert "expected at least 1 face in each split, 8 pixels" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
