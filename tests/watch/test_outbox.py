"""Reports arrive once, in order, whatever the server does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.watch import Outbox, Report


class Server:
    """Takes reports unless it is down; ``refuses`` names reports that it never takes."""

    def __init__(self, *, down: bool = False) -> None:
        self.down, self.refuses = down, set[int]()
        self.got: list[Report] = []
        self.failures: list[bool] = []

    def __call__(self, report: Report) -> None:
        if self.failures and self.failures.pop(0):
            raise ConnectionError("flaky")
        if self.down:
            raise ConnectionError("down")
        if report["n"] in self.refuses:
            raise ValueError("no")
        self.got.append(report)

    def numbers(self) -> list[int]:
        return [report["n"] for report in self.got]


def _passing(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def _outbox(server: Callable[[Report], None], spool: Path | None = None) -> Outbox:
    return Outbox(server, passing=_passing, spool=spool)


def test_reports_arrive_in_order_and_nothing_is_left(tmp_path: Path) -> None:
    server = Server()
    outbox = _outbox(server, tmp_path)
    for n in range(50):
        outbox.put({"n": n})
    assert outbox.close(5) is None
    assert server.numbers() == list(range(50))
    assert list(tmp_path.iterdir()) == []


def test_the_sender_does_not_wait_for_a_slow_server() -> None:
    gate = threading.Event()
    outbox = _outbox(lambda report: (gate.wait(10), None)[1])
    for n in range(1000):
        outbox.put({"n": n})
    assert outbox.waiting == 1000  # none was answered yet
    gate.set()
    assert outbox.flush(5)


@settings(max_examples=15, deadline=None)
@given(failures=st.lists(st.booleans(), max_size=3), count=st.integers(1, 8))
def test_a_flaky_server_gets_every_report_once(failures: list[bool], count: int) -> None:
    server = Server()
    server.failures = list(failures)
    outbox = _outbox(server)
    for n in range(count):
        outbox.put({"n": n})
    outbox.close(10)
    assert server.numbers() == list(range(count))


def test_a_server_that_comes_back_gets_what_waited(tmp_path: Path) -> None:
    server = Server(down=True)
    outbox = _outbox(server, tmp_path)
    for n in range(5):
        outbox.put({"n": n})
    _until(lambda: any(tmp_path.glob("*.jsonl")))
    server.down = False
    assert outbox.close(10) is None
    assert server.numbers() == list(range(5))
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_at_the_end_is_kept_and_sent_by_the_next_outbox(tmp_path: Path) -> None:
    down, up = Server(down=True), Server()
    outbox = _outbox(down, tmp_path)
    for n in range(3):
        outbox.put({"n": n})
    kept = outbox.close(0.2)
    assert kept is not None
    assert [json.loads(line)["n"] for line in kept.read_text().splitlines()] == [0, 1, 2]
    after = _outbox(up, tmp_path)
    after.put({"n": 3})
    assert after.close(5) is None
    assert up.numbers() == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_keeps_nothing_stops_neither_run_nor_delivery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_text("a file, where a folder should be")
    server = Server(down=True)
    outbox = _outbox(server, tmp_path / "spool")
    outbox.put({"n": 0})
    _until(lambda: "cannot be kept" in caplog.text)
    server.down = False
    outbox.put({"n": 1})
    assert outbox.flush(5)
    assert server.numbers() == [0, 1]
    server.down = True
    outbox.put({"n": 2})
    assert outbox.close(0.2) is None
    assert caplog.text.count("cannot be kept") == 1


def test_what_was_left_stays_where_it_is_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _outbox(Server(down=True), tmp_path)
    left.put({"n": 0})
    kept = left.close(0.2)

    def full(self: Outbox, spool: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_write", full)
        assert _outbox(Server(), tmp_path).close(0.2) is None
    assert kept is not None
    assert kept.exists()
    up = Server()
    assert _outbox(up, tmp_path).close(5) is None
    assert up.numbers() == [0]


def test_a_living_outbox_keeps_its_spool_to_itself(tmp_path: Path) -> None:
    down, up = Server(down=True), Server()
    living = _outbox(down, tmp_path)
    living.put({"n": 1})
    _until(lambda: any(tmp_path.glob("*.jsonl")))
    other = _outbox(up, tmp_path)
    assert other.close(5) is None
    assert up.got == []
    living.close(0.1)


def test_only_undelivered_reports_are_kept_when_the_server_goes_away_midway(tmp_path: Path) -> None:
    server = Server()
    outbox = _outbox(server, tmp_path)
    outbox.put({"n": 0})
    assert outbox.flush(5)
    server.down = True
    outbox.put({"n": 1})
    kept = outbox.close(0.2)
    assert kept is not None
    assert [json.loads(line)["n"] for line in kept.read_text().splitlines()] == [1]


def test_a_failure_without_words_is_one_like_any_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A timeout of httpx says nothing."""
    server, silent = Server(), [ConnectionError("")]

    def deliver(report: Report) -> None:
        if silent:
            raise silent.pop()
        server(report)

    outbox = _outbox(deliver, tmp_path)
    for n in range(3):
        outbox.put({"n": n})
    assert outbox.close(5) is None
    assert server.numbers() == [0, 1, 2]
    assert "until the server answers: ConnectionError" in caplog.text


def test_a_refused_report_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.refuses = {1}
    outbox = _outbox(server)
    for n in range(3):
        outbox.put({"n": n})
    outbox.close(5)
    assert server.numbers() == [0, 2]
    assert "refused" in caplog.text


def test_waiting_reports_merge_but_never_with_the_one_on_its_way() -> None:
    gate, started, got = threading.Event(), threading.Event(), list[Report]()

    def slow(report: Report) -> None:
        started.set()
        gate.wait(10)
        got.append(report)

    outbox = Outbox(slow, passing=_passing, merge=lambda first, second: {"n": first["n"] + second["n"]})
    outbox.put({"n": 1})
    started.wait(10)
    for _ in range(5):
        outbox.put({"n": 10})
    gate.set()
    assert outbox.flush(5)
    assert got == [{"n": 1}, {"n": 50}]


def test_closing_gives_up_on_a_delivery_that_hangs(tmp_path: Path) -> None:
    gate = threading.Event()
    outbox = _outbox(lambda report: (gate.wait(30), None)[1], tmp_path)
    outbox.put({"n": 1})
    started = time.monotonic()
    kept = outbox.close(0.3)
    assert time.monotonic() - started < 3
    assert kept is not None
    gate.set()


def _until(true: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_reports_that_cannot_be_merged_do_not_wait_for_the_pause() -> None:
    server = Server()
    outbox = Outbox(server, passing=_passing, pause=30.0)
    for number in range(3):
        outbox.put({"n": number})
    limit = time.monotonic() + 20
    while len(server.got) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    assert server.numbers()[:2] == [0, 1], "only the last one, or what comes after a while, is worth waiting for"
    outbox.close(5.0)
    assert server.numbers() == [0, 1, 2]
