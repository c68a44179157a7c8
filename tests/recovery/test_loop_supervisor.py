"""Services that die, hang, lie or never start: the supervisor keeps what can be kept and leaves nothing behind. Real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.supervisor.supervisor import MAX_FIRST_ATTEMPTS, MAX_REFUSALS, Service, Status, Supervisor
from pipelines.runtime.backoff import pause_s
from pipelines.runtime.bound import bound
from pipelines.runtime.child import BoundedLog, Child, tail
from schemas.errors import WRONG_USAGE, ServiceFailed

DEADLINE_S = 90.0
IDLE = "import signal; signal.pause()"
STUBBORN = "import signal, pathlib, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\npathlib.Path(sys.argv[1]).touch()\nwhile True: signal.pause()"
REFUSES = """
import sys, signal, pathlib
if pathlib.Path(sys.argv[1]).exists():
    print("the row is too long", file=sys.stderr)
    sys.exit(2)
signal.pause()
"""
PARENT = """
import sys
from pathlib import Path
from pipelines.runtime.child import Child
print(Child([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2])).pid, flush=True)
sys.stdin.read()
"""


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *arguments)


SAYS = "import sys, signal; print('waiting: of before', 'noise', 'waiting: for documents', sep='\\n', file=sys.stderr, flush=True); signal.pause()"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def always() -> bool:
    return True


class Running:
    """A supervisor in a thread, with everything that it said."""

    def __init__(self, services: list[Service], logs: Path) -> None:
        self.told: list[tuple[str, Status, str]] = []
        self.supervisor = Supervisor(services, logs, 0.05, lambda *change: self.told.append(change))
        self.thread = threading.Thread(target=self.supervisor.run)

    def ready(self, *names: str) -> None:
        assert self.supervisor.wait_ready(names, threading.Event())

    def pid(self, name: str) -> int:
        pid = self.supervisor.pid(name)
        assert pid is not None
        return pid


@contextmanager
def running(services: list[Service], logs: Path) -> Iterator[Running]:
    result = Running(services, logs)
    result.thread.start()
    try:
        yield result
    finally:
        result.supervisor.stop()
        result.thread.join(DEADLINE_S)
        assert not result.thread.is_alive()


def test_a_killed_service_comes_back_and_the_others_go_on(tmp_path: Path) -> None:
    with running([Service("one", python(IDLE), always), Service("two", python(IDLE), always)], tmp_path) as up:
        up.ready("one", "two")
        first, other = up.pid("one"), up.pid("two")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: up.supervisor.pid("one") not in (None, first) and up.supervisor.status("one") is Status.READY, "restarted")
        assert up.pid("two") == other
        assert any(name == "one" and "killed by signal 9" in detail for name, _, detail in up.told)
        last = up.pid("one")
    assert not any(map(is_alive, (first, other, last)))


def test_a_service_starts_only_after_what_it_needs_is_ready_and_stops_before_it(tmp_path: Path) -> None:
    flag = tmp_path / "ready"
    services = [Service("base", python(IDLE), flag.exists), Service("top", python(IDLE), always, needs=("base",))]
    with running(services, tmp_path) as up:
        wait_until(lambda: up.supervisor.status("base") is Status.STARTING, "base started")
        assert up.supervisor.status("top") is Status.WAITING
        flag.touch()
        up.ready("base", "top")
    stopped = [name for name, status, _ in up.told if status is Status.STOPPED]
    assert stopped == ["top", "base"]


def test_a_service_that_died_thousands_of_times_is_started_again_like_any_other(tmp_path: Path) -> None:
    assert [pause_s(1.0, failures, 30.0) for failures in (1, 2, 3, 1_100, 10**9)] == [1.0, 2.0, 4.0, 30.0, 30.0]
    with running([Service("one", python(IDLE), always)], tmp_path) as up:
        up.ready("one")
        up.supervisor._services["one"].failures = 5_000
        up.supervisor._backoff_s = 1e-300
        first = up.pid("one")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: up.supervisor.pid("one") not in (None, first), "restarted")


def test_what_goes_wrong_with_one_service_or_with_whoever_listens_ends_nothing_else(tmp_path: Path) -> None:
    troubles = iter([OSError("too many open files"), ZeroDivisionError("a bug")])

    def probe() -> bool:
        if trouble := next(troubles, None):
            raise trouble
        return True

    def listener(*_: object) -> None:
        raise BrokenPipeError("the terminal is gone")

    supervisor = Supervisor([Service("odd", python(IDLE), probe), Service("fine", python(IDLE), always)], tmp_path, 0.05, listener)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    assert supervisor.wait_ready(["odd", "fine"], threading.Event())
    supervisor.stop()
    thread.join(DEADLINE_S)
    supervisor.raise_failure()


def test_a_supervisor_that_fails_itself_says_so(tmp_path: Path) -> None:
    supervisor = Supervisor([Service("one", python(IDLE), always)], tmp_path, 0.05, lambda *_: None)
    supervisor._services = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        supervisor.run()
    with pytest.raises(ServiceFailed, match="the supervisor itself failed"):
        supervisor.raise_failure()


def test_a_long_start_that_shows_it_is_alive_is_not_given_up(tmp_path: Path) -> None:
    asked: list[float] = []

    def is_alive() -> bool:
        asked.append(time.monotonic())
        return True

    slow = Service("slow", python(IDLE), lambda: len(asked) > 3, is_alive=is_alive, start_timeout_s=0.8)
    with running([slow], tmp_path) as up:
        up.ready("slow")
        assert [status for _, status, _ in up.told].count(Status.STARTING) == 1
        assert asked[-1] - asked[0] > 0.8, "longer than a start may take"


def test_a_service_that_dies_with_another_is_restarted_after_it(tmp_path: Path) -> None:
    services = [Service("base", python(IDLE), always), Service("top", python(IDLE), always, needs=("base",), dies_with=("base",))]
    with running(services, tmp_path) as up:
        up.ready("base", "top")
        base, top = up.pid("base"), up.pid("top")
        os.kill(base, signal.SIGKILL)
        wait_until(lambda: up.supervisor.pid("top") not in (None, top), "top restarted")
        assert up.pid("base") != base and not is_alive(top)


def test_a_service_that_never_starts_ends_the_supervisor_with_its_last_words(tmp_path: Path) -> None:
    bad = Service("bad", python("import sys; sys.exit('the port is taken')"), lambda: False)
    with running([Service("good", python(IDLE), always), bad], tmp_path) as up:
        up.thread.join(DEADLINE_S)
        with pytest.raises(ServiceFailed, match=r"(?s)bad does not start: exited with code 1 .*the port is taken"):
            up.supervisor.raise_failure()
        assert up.supervisor.status("good") is Status.STOPPED


def test_wrong_usage_is_not_tried_again(tmp_path: Path) -> None:
    with running([Service("bad", python("import sys; sys.exit(2)"), lambda: False)], tmp_path) as up:
        up.thread.join(DEADLINE_S)
        with pytest.raises(ServiceFailed) as caught:
            up.supervisor.raise_failure()
        assert caught.value.exit_code == WRONG_USAGE
        assert [status for _, status, _ in up.told].count(Status.STARTING) == 1


def refuse(up: Running, flag: Path) -> None:
    """Have the service ``odd`` refuse from now on."""
    flag.touch()
    os.kill(up.pid("odd"), signal.SIGKILL)


@pytest.mark.parametrize("odd_needs", [(), ("base",)])
def test_a_service_that_refuses_after_it_worked_stays_down_while_another_answers_users(tmp_path: Path, odd_needs: tuple[str, ...]) -> None:
    flag = tmp_path / "wrong"
    services = [
        Service("base", python(IDLE), always),
        Service("odd", python(REFUSES, str(flag)), always, needs=odd_needs),
        Service("serve", python(IDLE), always, serves_users=True),
    ]
    with running(services, tmp_path) as up:
        up.ready("base", "odd", "serve")
        serve = up.pid("serve")
        refuse(up, flag)
        wait_until(lambda: up.supervisor.status("odd") is Status.DOWN, "odd is left down")
        assert up.supervisor.pid("odd") is None
        assert (up.pid("serve"), up.supervisor.status("serve"), up.supervisor.status("base")) == (serve, Status.READY, Status.READY)
        told = [(status, detail) for name, status, detail in up.told if name == "odd"]
        assert [status for status, _ in told].count(Status.STARTING) == 1 + MAX_REFUSALS
        assert "the row is too long" in told[-1][1]
        up.supervisor.raise_failure()


@pytest.mark.parametrize("kind", ["nobody answers users", "what answers users cannot start without it", "it has never said that it is ready"])
def test_a_refusing_service_ends_the_supervisor_with_its_message_and_exit_code(tmp_path: Path, kind: str) -> None:
    flag = tmp_path / "wrong"
    odd = Service("odd", python(REFUSES, str(flag)), always, says_ready=("never said",) if "never" in kind else ())
    needs = ("odd",) if "without" in kind else ()
    serve = Service("serve", python(IDLE), always, serves_users=True, needs=needs)
    with running([odd] if "nobody" in kind else [odd, serve], tmp_path) as up:
        up.ready(*([] if "never" in kind else ["odd"]), *([] if "nobody" in kind else ["serve"]))
        wait_until(lambda: up.supervisor.pid("odd") is not None, "odd runs")
        refuse(up, flag)
        if "without" in kind:
            wait_until(lambda: up.supervisor.status("odd") is Status.DOWN, "odd is left down")
            os.kill(up.pid("serve"), signal.SIGKILL)
        up.thread.join(DEADLINE_S)
        with pytest.raises(ServiceFailed, match=r"the row is too long|serve cannot start: odd exited with code 2") as caught:
            up.supervisor.raise_failure()
        assert caught.value.exit_code == WRONG_USAGE


def test_a_service_with_retries_before_ready_is_started_again_though_it_was_never_ready(tmp_path: Path) -> None:
    with running([Service("odd", python("raise SystemExit('no')"), lambda: False, retries_before_ready=True)], tmp_path) as up:
        wait_until(lambda: [status for _, status, _ in up.told].count(Status.STARTING) > MAX_FIRST_ATTEMPTS, "tried again")
        up.supervisor.raise_failure()


def test_a_service_is_ready_when_it_says_so(tmp_path: Path) -> None:
    says = "import sys, signal; print('following headrace.documents', file=sys.stderr, flush=True); signal.pause()"
    with running([Service("odd", python(says), lambda: False, says_ready=("waiting: ", "following "))], tmp_path) as up:
        up.ready("odd")


def test_stop_does_not_wait_for_a_service_whose_dies_with_service_has_ended(tmp_path: Path) -> None:
    flag = tmp_path / "deaf"
    services = [
        Service("base", python(IDLE), always),
        Service("top", python(STUBBORN, str(flag)), flag.exists, needs=("base",), dies_with=("base",), stop_timeout_s=2 * DEADLINE_S),
    ]
    with running(services, tmp_path) as up:
        up.ready("base", "top")
        up.supervisor.stop()
        os.kill(up.pid("base"), signal.SIGTERM)


def test_a_start_that_hangs_is_stopped_and_tried_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    command = ("/bin/sh", "-c", 'printf x >> "$0"; exec sleep 600', str(marks))
    service = Service("slow", command, lambda: marks.exists() and len(marks.read_text()) > 1, start_timeout_s=1, stop_timeout_s=60)
    with running([service], tmp_path) as up:
        up.ready("slow")
        starts = [status for _, status, _ in up.told].count(Status.STARTING)
        assert starts > 1 and len(marks.read_text()) > 1


def test_a_service_that_ignores_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    flag = tmp_path / "deaf"
    with running([Service("deaf", python(STUBBORN, str(flag)), flag.exists, stop_timeout_s=0.3)], tmp_path) as up:
        up.ready("deaf")
        pid = up.pid("deaf")
    assert not is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel binds children to their parent on Linux only")
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, IDLE, str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdin is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(pid), "the child died")
    parent.stdout.close()
    parent.stdin.close()


def test_a_command_whose_parent_is_gone_already_does_not_start() -> None:
    command = bound([sys.executable, "-c", "print('alive')"])
    command[command.index(str(os.getpid()))] = "1"
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 1 and result.stdout == b""


def test_output_goes_to_the_log_and_captured_output_does_not(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "job.log"
    child = Child(python("import sys; print('result'); print('progress 进度', file=sys.stderr)"), log, capture_output=True)
    wait_until(lambda: child.poll() is not None, "ended")
    wait_until(lambda: "进度" in tail(log), "logged")
    assert (child.poll(), child.output(), tail(log)) == (0, b"result\n", "progress 进度")
    child.close()


def test_a_log_never_grows_beyond_twice_its_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "x.log", max_bytes=100)
    for number in range(50):
        log.write(f"line {number:02d} of fifty\n".encode())
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["x.log", "x.log.1"]
    assert all(file.stat().st_size <= 100 for file in files)
    assert tail(tmp_path / "x.log", 1) == "line 49 of fifty"


def test_what_a_service_says_that_it_waits_for_is_told_once_and_nothing_else_of_its_log(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "talker.log").write_text("waiting: in an earlier run\n")
    with running([Service("talker", python(SAYS), always, told="waiting: ")], logs) as result:
        wait_until(lambda: any("for documents" in detail for _, _, detail in result.told), "the line to be told")
        result.ready("talker")
    said = [detail for _, _, detail in result.told if "waiting" in detail or "noise" in detail]
    assert said == ["waiting: of before", "waiting: for documents"]
