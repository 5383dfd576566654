from __future__ import annotations

import threading

import servers

from branchy_tf.serving.embedded.admission import Turns


def waiting(turns, names, timeout=60.0):
    """A thread for each name that waits for a turn, in this order; what they got."""
    got, threads = [], []
    for name in names:
        before = len(turns._queue)
        thread = threading.Thread(
            target=lambda name=name: got.append((name, turns.take(timeout)))
        )
        thread.start()
        servers.until(lambda before=before: len(turns._queue) > before)
        threads.append(thread)
    return got, threads


def test_turns_are_first_come_first_served():
    turns = Turns(1)
    assert turns.take(0)
    got, threads = waiting(turns, "abc")
    for count in range(3):
        turns.give_back()
        # Nobody slips in between.
        assert not turns.take(0)
        threads[count].join(60)
    assert got == [("a", True), ("b", True), ("c", True)]
    turns.give_back()
    assert turns.take(0)


def test_skips_threads_that_gave_up():
    turns = Turns(2)
    assert turns.take(0)
    assert turns.take(-1)
    assert not turns.take(0.01)
    got, (thread,) = waiting(turns, "a")
    turns.give_back()
    thread.join(60)
    assert got == [("a", True)]
    turns.give_back()
    turns.give_back()
    assert [turns.take(0) for _ in range(3)] == [True, True, False]
