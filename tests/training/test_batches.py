from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import small

from branchy_tf import data
from branchy_tf.training import batches


def numbered(rows: int = 23) -> data.Split:
    """Images whose pixels all hold the row's number."""
    labels = np.arange(rows)
    images = np.tile(labels[:, None, None, None].astype(np.uint8), (1, 8, 8, 1))
    return data.Split(images, labels)


def make(split=None, augmentation="none", seed=(1,)) -> batches.Batches:
    split = numbered() if split is None else split
    return batches.Batches(split, lambda part: part.labels, 5, augmentation, seed)


def read(made, epoch=0) -> list:
    made.start_epoch(epoch)
    return [made[i] for i in range(len(made))]


def assert_same(ours, theirs):
    for (images, labels), (others, other_labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, other_labels)


def test_an_epoch_has_each_row_once_and_its_label():
    read_ = read(make())
    assert [len(labels) for _, labels in read_] == [5, 5, 5, 5, 3]
    labels = np.concatenate([labels for _, labels in read_])
    assert sorted(labels) == list(range(23))
    assert labels.tolist() != sorted(labels)
    images = np.concatenate([images for images, _ in read_])
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_targets_are_those_of_the_batch():
    both = batches.Batches(
        numbered(), lambda part: dict.fromkeys(["a", "b"], part.labels), 5, "none", [1]
    )
    images, targets = both[1]
    assert list(targets) == ["a", "b"]
    np.testing.assert_array_equal(targets["b"], images[:, 0, 0, 0])


def test_epochs_and_seeds_differ():
    order = {
        (epoch, seed): tuple(np.concatenate([y for _, y in read(make(seed=seed), epoch)]))
        for epoch in (0, 1)
        for seed in ((1,), (2,), (1, *b"joint"))
    }
    assert len(set(order.values())) == len(order)


def test_images_vary_from_batch_to_batch_and_epoch_to_epoch():
    # All rows are equal, so only the draws can differ.
    split = small.dataset().train.take(np.zeros(20, int))
    images = [x for epoch in (0, 1) for x, _ in read(make(split, "flip_shift"), epoch)]
    assert len({x.tobytes() for x in images}) == len(images)


def test_a_batch_depends_only_on_seed_epoch_and_index():
    split = small.dataset().train
    third = read(make(split, "flip_shift"), epoch=2)
    again = make(split, "flip_shift")
    read(again, epoch=0)
    # In the middle of an epoch, as after a kill or with prefetching.
    again.start_epoch(1)
    again[0]
    assert_same(read(again, epoch=2), third)
    assert_same([again[4], again[1]], [third[4], third[1]])


def test_the_next_batch_is_made_while_one_is_used():
    started, go_on = threading.Event(), threading.Event()
    calls: list[data.Split] = []

    # Batches of another test may still be made, so this is about these targets alone.
    def slow(part):
        if threading.current_thread() is threading.main_thread():
            pytest.fail("the step waits while a batch is made")
        if calls:
            started.set()
            assert go_on.wait(30)
        calls.append(part)
        return part.labels

    made = batches.Batches(numbered(), slow, 5, "none", (1,))
    made[0]
    # The second batch has not been requested yet.
    assert started.wait(30)
    go_on.set()
    made[1]


def test_measures_the_time_waited_for_batches(monkeypatch):
    augment = batches.augment

    def slow(*arguments):
        time.sleep(0.1)
        return augment(*arguments)

    made = make()
    monkeypatch.setattr(batches, "augment", slow)
    made[0]
    first = made.waited
    assert first >= 0.09
    # The next two batches are ready by now.
    while not all(future.done() for future in made._made.values()):
        time.sleep(0.01)
    made[1]
    assert made.waited < first + 0.09


def test_errors_reach_the_training(monkeypatch):
    def broken(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(batches, "augment", broken)
    with pytest.raises(MemoryError, match="no room"):
        make()[0]
