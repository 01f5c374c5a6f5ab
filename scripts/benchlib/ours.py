"""A run of ours that is struck while it trains: started, watched through its JSON events, and read afterwards.

What happened when is not measured here: it stands in the run's own files. Workers write what they notice into log.txt with the
time to the microsecond, and ledger.jsonl holds every finished round of steps, the time it was written, and what each change
of generations cost. The clock is the system's, the same for all processes of this machine.
"""

import datetime
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import threading
import time

from benchlib import processes
from benchlib.basics import ROOT, Failed

# One resolution from start to end, and a tick after every round (a step of D and one of G): each is a line of the ledger.
EXPERIMENT = """\
name = "{name}"
seed = 7

[model]
resolution = 16
latent_size = {width}
fmap_base = {base}
fmap_max = {width}
upscale = "unfused"

[data]
source = "{root}/experiments/data/fluent-people-256.zip"

[train]
total_kimg = {kimg}
determinism = "{determinism}"
threads = 1
minibatch_repeats = 1
tick_kimg = {tick}

[train.growth]
start_resolution = {start}
stable_kimg = {stable}
fade_kimg = 0

[train.minibatch]
default = {minibatch}

[cluster]
workers = {workers}
patience = "{patience}"

[checkpoint]
url = "{folder}/runs"
every_kimg = {every}
keep_last = 3
keep_every_kimg = 0

[metrics]
kinds = []

[samples]
every_kimg = 1000000
"""
DEFAULTS = {"name": "run", "width": 64, "base": 256, "kimg": 1000000, "determinism": "fast", "tick": 0.001, "start": 16,
            "stable": 0, "minibatch": 16, "workers": 4, "patience": "2s", "every": 1000000}
# The same step over a state of 112 MB: networks for 16 px that are still at 4 px.
HEAVY = {"width": 256, "base": 2048, "start": 4, "stable": 1000000}
# A worker that was at work for less counts as one that died early, and too many of these close its place.
AT_WORK_SECONDS = 11
PATIENCE_SECONDS = 90
LOG_LINE = re.compile(r"^(?:\[(?P<source>\w+)\] )?(?P<time>\d{4}-\S+Z)\s+\w+ (?P<text>.*)$")


class Run:
    """One run in `folder`, with the programs of `programs`. It is as often stopped, killed and resumed as is wished."""

    def __init__(self, programs, folder, **settings):
        self.settings = DEFAULTS | {"folder": folder, "root": ROOT} | settings
        self.programs, self.folder, self.name = pathlib.Path(programs), pathlib.Path(folder), self.settings["name"]
        self.state = self.folder / "state" / "ganfleet" / self.name
        self.url = self.folder / "runs" / self.name
        self.environment = {"XDG_STATE_HOME": str(self.folder / "state"), "CUDA_VISIBLE_DEVICES": "", "GANFLEET_LOG": "info",
                            "GANFLEET_TOKEN": "of a measurement on this machine only", "BENCH_RUN": self.name}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.toml").write_text(EXPERIMENT.format(**self.settings))
        self.errors = open(self.folder / "errors.txt", "a")
        self.news, self.guests = threading.Condition(), []
        self.coordinator = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        processes.sweep(f"BENCH_RUN={self.name}")
        self.errors.close()

    # -- orders

    def launch(self, *arguments):
        self._start("launch", self.folder / "run.toml", *arguments)

    def resume(self, *arguments):
        self._start("resume", self.url, *arguments)

    def attach(self):
        self._start("attach", self.name)

    def can_attach(self):
        return subprocess.run([self.programs / "coordinator", "attach", "--help"], capture_output=True).returncode == 0

    def _start(self, *command):
        with self.news:
            self.generation, self.world, self.address, self.ticks, self.ended = 0, 0, None, [], None
            self.checkpoints, self.events = 0, []
        self.began = time.time()
        self.coordinator = processes.spawn([self.programs / "coordinator", *command, "--json"], subprocess.PIPE,
                                           errors=self.errors, **self.environment)
        threading.Thread(target=self._listen, args=(self.coordinator,), daemon=True).start()

    def ask(self, *command):
        """What a command of the coordinator answers in JSON; nothing where it refuses."""
        answer = subprocess.run([self.programs / "coordinator", *map(str, command), "--json"], capture_output=True, text=True,
                                env=os.environ | self.environment)
        try:
            return json.loads(answer.stdout) if answer.returncode == 0 else None
        except json.JSONDecodeError:
            return None

    def join(self, within=None, listen=None):
        """A worker that comes by itself; its lines go into a file of its own. Returns the process and the file."""
        path = self.folder / f"guest-{len(self.guests)}.txt"
        command = [self.programs / "worker", "join", self.address, *(["--listen", listen] if listen else [])]
        with open(path, "w") as output:
            guest = processes.spawn(command, output, within, **self.environment)
        self.guests.append((guest, path))
        return guest, path

    def scale(self, workers):
        return self.ask("scale", self.name, workers)

    def kill_coordinator(self):
        processes.send(self.coordinator.pid)
        self.coordinator.wait()

    # -- news

    def _listen(self, coordinator):
        for line in coordinator.stdout:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            with self.news:
                if coordinator is self.coordinator:
                    self._take(event)
                    self.news.notify_all()

    def _take(self, event):
        kind, reason = event.get("event"), event.get("decision", {}).get("reason")
        if kind in ("launched", "taken_over"):
            self.address = event["address"]
        if kind == "taken_over":
            self.generation, self.world = event["generation"], event["workers"]
        elif kind == "tick":
            self.ticks.append((time.time(), event["tick"]["images"]))
        elif kind == "checkpoint":
            self.checkpoints += 1
        elif kind in ("ended", "failed"):
            self.ended = event
        elif reason == "formed":
            self.generation, self.world = event["decision"]["generation"], event["decision"]["world"]
        elif reason == "broken":
            self.world = 0
        if kind not in ("tick", "progress", "preparing"):
            self.events.append(event)

    def wait(self, what, condition, seconds=PATIENCE_SECONDS):
        """Waits for news after which `condition()` holds."""
        deadline = time.monotonic() + seconds
        with self.news:
            while not condition():
                if self.ended or self.coordinator.poll() is not None:
                    raise Failed(f"the run ended while {what} was waited for: {self.last_words()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failed(f"no {what} in {seconds} s: {self.last_words()}")
                self.news.wait(min(left, 1))

    def whole(self, world, seconds=PATIENCE_SECONDS):
        """Waits until so many workers train, and finish a round."""
        def is_whole():
            return self.world == world and self.ticks and self.ticks[-1][0] > self.settled
        while True:
            self.wait(f"generation of {world}", lambda: self.world == world, seconds)
            generation, self.settled = self.generation, time.time()
            self.wait("finished round", lambda: is_whole() or self.generation != generation, seconds)
            if self.generation == generation:
                return

    def last_words(self):
        told = [event.get("text") or str(event)[:200] for event in self.events[-6:]]
        return "; ".join(told) + f" ({self.folder})"

    def workers(self):
        """Local workers of the generation at work: process ids by name."""
        status = self.ask("status", self.name) or {"workers": []}
        return {worker["id"]: worker["pid"] for worker in status["workers"] if worker["pid"] and worker["rank"] is not None}

    def seasoned(self):
        """Those whose death does not count as an early one."""
        since = {}
        for entry in self.ledger():
            for worker in entry.get("workers", []):
                since.setdefault(worker, entry["at"])
        return {name: pid for name, pid in self.workers().items()
                if time.time() - since.get(name, time.time()) > AT_WORK_SECONDS}

    def victim(self, chance):
        """The process of a random worker that was at work long enough."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if found := self.seasoned():
                return chance.choice(sorted(found.items()))[1]
            time.sleep(0.2)
        raise Failed(f"no worker stays at work: {self.last_words()}")

    # -- what the run has written

    def ledger(self):
        """Its lines. The last one may be in the making."""
        path = self.state / "ledger.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]

    def log(self):
        """(time, text) of every line that a worker wrote, of whichever file."""
        files = [self.state / "log.txt", *(path for _, path in self.guests)]
        found = []
        for path in files:
            for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
                if match := LOG_LINE.match(line):
                    found.append((seconds(match["time"]), match["text"]))
        return sorted(found)

    def report(self):
        return self.ask("report", self.url)

    def parameters(self):
        """Of both networks, as the newest checkpoint lists them."""
        shown = self.ask("checkpoints", "show", self.url)
        shapes = {tensor["name"]: tensor["shape"] for part in shown["manifest"]["parts"] for tensor in part["tensors"]}
        count = 0
        for name, shape in shapes.items():
            if name.startswith(("d.", "g.")):
                size = 1
                for side in shape:
                    size *= side
                count += size
        return count


def seconds(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Story:
    """What a run has written, read for the moments at which it was struck."""

    def __init__(self, run):
        self.log, ledger = run.log(), run.ledger()
        self.spans = [line for line in ledger if line["entry"] == "span"]
        self.formed = {line["generation"]: line for line in ledger if line["entry"] == "formed"}
        # only spans that were told as they ended: what a new generation tells of the old one comes late
        self.rounds, order = [], sorted(self.formed)
        ends = {which: self.formed[after]["at"] for which, after in zip(order, order[1:])}
        for span in self.spans:
            later = ends.get(span["generation"], float("inf"))
            steps = span["to"]["steps"] - span["from"]["steps"]
            if steps > 0 and span["at"] < later:
                self.rounds.append((span["at"], span["generation"], steps))

    def step(self):
        """Median seconds of a step in peace."""
        pairs = zip(self.rounds, self.rounds[1:])
        return statistics.median((b[0] - a[0]) / b[2] for a, b in pairs if a[1] == b[1])

    def known(self, generation, at, survivors):
        """Seconds from `at` until the last survivor said that its generation is over; nothing where not all said so. The step in its
        hands it finishes later: that is part of what survivors stand still."""
        told = {}
        for when, text in self.log:
            if (over := re.match(rf"g{generation} is over for rank (\d+):", text)) and when > at - 1:
                told.setdefault(over[1], when)
        return max(told.values()) - at if len(told) >= survivors else None

    def cost(self, generation):
        """Seconds without a step between `generation` and the next that took one, by the ledger."""
        total = 0.0
        for span in self.spans:
            if span["generation"] > generation:
                total += sum(span["spent"].get(name, 0.0) for name in ("detection", "reforming", "redone"))
                if span["to"]["steps"] > span["from"]["steps"]:
                    return total
        return None

    def gap(self, generation):
        """Seconds between the last round of `generation` and the first of a later one, by the clock."""
        before = [at for at, which, _ in self.rounds if which <= generation]
        after = [at for at, which, _ in self.rounds if which > generation]
        return after[0] - before[-1] if before and after else None

    def contributing(self, path):
        """When the worker whose lines are in `path` was first part of a generation, and of which."""
        for line in pathlib.Path(path).read_text(errors="replace").splitlines():
            match = LOG_LINE.match(line)
            if match and (formed := re.match(r"generation g(\d+), rank \d+ of \d+: .* formed in", match["text"])):
                return seconds(match["time"]), int(formed[1])
        return None, None


def freeze(pid):
    processes.send(pid, signal.SIGSTOP)
