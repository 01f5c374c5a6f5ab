"""Processes that a measurement starts, strikes and has to answer for.

All of them carry a mark in their environment and hand it on, so that they are found also when whoever started them was killed.
Orphans come to this process, which learns of their end and of the time that they took. Only what carries the mark is ever killed.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys

MARK = "GANFLEET_BENCH_MARK"
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """From here on; and SIGTERM ends this process like an exception, so that what it started is swept."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(command, output, within=None, errors=subprocess.STDOUT, **environment):
    """Starts a program in a process group of its own; `within` names a network namespace."""
    command = [str(word) for word in command]
    if within:
        command = ["ip", "netns", "exec", within, *command]
    return subprocess.Popen(command, env=os.environ | {MARK: mark()} | environment, stdin=subprocess.DEVNULL, stdout=output,
                            stderr=errors, text=True, start_new_session=True)


def mark():
    return str(os.getpid())


def send(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid):
    """Those of all its threads; theirs are not among them."""
    found = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def marked(also=None):
    """Ids of what runs with the mark, and with `also` (NAME=VALUE) where it is given."""
    wanted = [f"{MARK}={mark()}".encode(), *([also.encode()] if also else [])]
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                if all(variable in environment for variable in wanted):
                    found.append(int(entry.name))
    return found


def sweep(also=None):
    """Kills what runs with the mark, and takes note of the end of every orphan."""
    for _ in range(20):
        left = marked(also)
        for pid in left:
            send(pid)
        reap(left)
        if not left:
            break
    if also is None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def reap(pids):
    for pid in pids:
        # not every one of them is a child of this process
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
