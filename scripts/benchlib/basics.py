"""What the parts of scripts/bench and scripts/soak share: running programs, the peers' Python, and how figures are told."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TORCH = "2.11.0"
# the newest that runs with this release of PyTorch
TORCHFT = "2026.10.26"
# reads and writes weights in tests
SAFETENSORS = "0.8.0"
HAS_TORCH = f"import numpy, torch; assert torch.__version__.split('+')[0] == '{TORCH}'"
HAS_SAFETENSORS = f"import safetensors.torch, importlib.metadata as m; assert m.version('safetensors') == '{SAFETENSORS}'"
PATIENCE_SECONDS = 1800


class Failed(Exception):
    """A measurement that could not be taken."""


def call(command, **environment):
    """Runs one program to its end and returns what it printed. Nothing of it outlives the call."""
    fixed = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "GANFLEET_LOG": "warn"}
    process = subprocess.Popen([str(c) for c in command], env=os.environ | fixed | environment, cwd=ROOT, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    except BaseException as why:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(why, subprocess.TimeoutExpired):
            raise Failed(f"{command[0]} took longer than {PATIENCE_SECONDS} s") from None
        raise
    if process.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{(err or out)[-2000:]}")
    return out


def lines(text):
    """The JSON lines of a program's output."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if not found:
        raise Failed(f"no JSON line in: {text[-500:]!r}")
    return found


class Others:
    """How much of the machine other programs take from here on: what makes a measurement doubtful."""

    def __init__(self):
        self.began = self.now()

    @staticmethod
    def now():
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.readline().split()[1:9])
        mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy - sum(m.ru_utime + m.ru_stime for m in mine)

    def share(self):
        (then, busy_then), (now, busy_now) = self.began, self.now()
        return max(0.0, (busy_now - busy_then) / ((now - then) * os.cpu_count()))


def peer_place():
    """Where the Python of the peers lies, or will."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(os.environ.get("GANFLEET_CACHE") or os.path.join(home, "ganfleet")) / "bench-venv"
    return folder / "bin" / "python3"


def peer_python(torchft=False, safetensors=False):
    """The Python that can import the peer's PyTorch, laid where it is missing; `torchft` and `safetensors` are added when they are
    first asked for."""
    python = peer_place()
    folder = python.parent.parent
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not imports(python, HAS_TORCH):
        say(f"fetching PyTorch {TORCH} for the peer (about 5 GB on disk)")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run(pip + [f"torch=={TORCH}", "numpy"], check=True)
    version = f"import torchft, importlib.metadata as m; assert m.version('torchft-nightly') == '{TORCHFT}'"
    if torchft and not imports(python, version):
        say(f"fetching torchft {TORCHFT}")
        subprocess.run(pip + [f"torch=={TORCH}", f"torchft-nightly=={TORCHFT}"], check=True)
    if safetensors and not imports(python, HAS_SAFETENSORS):
        say(f"fetching safetensors {SAFETENSORS}")
        subprocess.run(pip + [f"safetensors=={SAFETENSORS}"], check=True)
    return python


def imports(python, text):
    return python.exists() and subprocess.run([python, "-c", text], capture_output=True).returncode == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def spread(values, digits=1):
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def foreign(others):
    return f"Other programs took {others.share():.0%} of the processors meanwhile."


def say(text):
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
