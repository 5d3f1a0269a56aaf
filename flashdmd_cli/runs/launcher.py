"""`--nproc`: runs the same command in several processes on this machine, each with torchrun's environment variables.

As torchrun does, but the exit code is that of the process that failed, only one error line is printed, and after a
signal the processes have as long as they need to save their state (torchrun kills them after 30 seconds).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

LAUNCHER = "FLASHDMD_LAUNCHER"
"""Environment variable with the process id of the launcher."""
GRACE_SECONDS = 30.0
"""Time for the other processes to end after one has failed, for example to finish writing a state."""
POLL_SECONDS = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_rank() -> bool:
    """Whether `torchrun` or `--nproc` started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_other_rank() -> bool:
    """Whether this is one of several processes, and not the main one, which reports."""
    return is_rank() and os.environ["RANK"] != "0"


def launch(num: int, command: Sequence[str]) -> int:
    """Run `command` in `num` processes; returns the exit code of the first that fails, or 0.

    Signals are passed on. Each process has a session of its own, so that Ctrl-C in a terminal reaches it only once.
    """
    shared = {
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num))),
        LAUNCHER: str(os.getpid()),
    }
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            _send(process, number)

    caught = [which for which in _SIGNALS if signal.getsignal(which) != signal.SIG_IGN]
    before = {which: signal.signal(which, pass_on) for which in caught}
    try:
        for rank in range(num):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=os.environ | shared | own, start_new_session=True))
            for number in received[:1]:  # one that came before this process was started
                _send(processes[-1], number)
        return _code(processes, received)
    finally:
        for process in processes:
            _send(process, signal.SIGKILL)
        for which, handler in before.items():
            signal.signal(which, handler)


def _code(processes: list[subprocess.Popen[bytes]], received: list[int]) -> int:
    """Wait for all processes, after a failure for `GRACE_SECONDS`; the exit code of the first that failed, or 0."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if not code and (code := _worst(processes, received)):
            deadline = time.monotonic() + GRACE_SECONDS
    code = code or _worst(processes, received)
    killed = processes[0].poll() or 0
    if killed < 0 and not received:  # process 0 holds the store by which the others report
        print(
            f"--nproc: process 0 was ended by signal {-killed}, perhaps for want of memory "
            "(the same command resumes from the newest saved state)",
            file=sys.stderr,
            flush=True,
        )
    return code


def _worst(processes: list[subprocess.Popen[bytes]], received: list[int]) -> int:
    """The largest exit code so far. One that a signal ended counts as 1, or as interrupted if the launcher was."""
    ended = 128 + received[0] if received else 1
    return max((ended if code < 0 else code for code in (process.poll() for process in processes) if code), default=0)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def end_with(launcher: str | None) -> None:
    """Stop this process, as SIGTERM does, when the process with the id `launcher` ends; None: never."""

    def watch() -> None:
        while os.getppid() == int(launcher or 0):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if launcher is not None:
        threading.Thread(target=watch, daemon=True).start()
