"""A process that computes itself leaves what cannot be interrupted."""

from __future__ import annotations

import time

from driver.interrupts import Interrupts, leaving_when_overdue


def test_what_outlasts_the_grace_is_left_with_75(capsys):
    interrupts, left = Interrupts(()), []
    with leaving_when_overdue(interrupts, 0.3, left.append):
        time.sleep(1.0)
        assert left == []  # nobody has asked
        interrupts.request("SIGTERM")
        deadline = time.monotonic() + 30
        while not left and time.monotonic() < deadline:
            time.sleep(0.05)
    assert left[0] == 75
    assert "cannot be interrupted and is left; run the same command again" in capsys.readouterr().err


def test_what_ends_in_time_is_not_left():
    interrupts, left = Interrupts(()), []
    with leaving_when_overdue(interrupts, 1.0, left.append):
        interrupts.request("SIGTERM")
        time.sleep(0.3)
    time.sleep(1.5)
    assert left == []
