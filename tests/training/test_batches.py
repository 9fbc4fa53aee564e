import threading

import numpy as np
import pytest
import torch

from training.batches import BatchesAhead, BatchStream, sampling_weights
from training.config import TrainingConfig
from training.data import FaceImages


def make_config(settings, **changes):
    return TrainingConfig(**{**settings, **changes})


def make_stream(settings, labels, **kwargs):
    changes = {name: kwargs.pop(name) for name in list(kwargs) if name not in ("process", "num_processes")}
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    data = FaceImages(images, torch.tensor(labels))
    return BatchStream(data, make_config(settings, **changes), -1, 1000, **kwargs)


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


def test_an_image_of_a_batch_is_that_of_its_row(settings):
    stream = make_stream(settings, list(range(7)), batch_size=5, label_dropout=0.0)
    (batch,) = stream.batches(4)
    rows = stream.rows(4)
    assert batch.labels.tolist() == rows.tolist()
    np.testing.assert_allclose(batch.images[:, 0, 0, 0], rows.numpy() / 127.5 - 1, atol=1e-6)


def test_batches_made_ahead_are_those_of_the_stream(settings):
    made = []

    class Watched(BatchStream):
        def batches(self, step):
            made.append((step, threading.current_thread() is threading.main_thread()))
            return super().batches(step)

    watched = Watched(make_stream(settings, list(range(7))).data, make_config(settings), -1, 1000)
    ahead, threads = BatchesAhead(watched, steps=2), torch.get_num_threads()
    plain = make_stream(settings, list(range(7)))
    for step in (0, 1, 2, 7):  # a run that goes on elsewhere takes what it made for nothing no more
        for got, expected in zip(ahead.take(step), plain.batches(step), strict=True):
            for name in ("images", "labels", "timesteps", "noise"):
                assert torch.equal(getattr(got, name), getattr(expected, name))
    ahead.take(8)
    assert sorted(step for step, _ in made)[:5] == [0, 1, 2, 3, 4]
    assert not any(in_main_thread for _, in_main_thread in made)
    assert len(made) == len({step for step, _ in made})
    assert torch.get_num_threads() == threads


def test_what_fails_in_a_thread_fails_the_step(settings, monkeypatch):
    stream = make_stream(settings, [1, 2, 3])
    monkeypatch.setattr(stream, "rows", lambda step: torch.tensor([99] * 3))
    with pytest.raises((IndexError, RuntimeError)):
        BatchesAhead(stream).take(0)
