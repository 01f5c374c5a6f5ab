"""What is done to the peers, torchrun and torchft, with the same networks as ours: scripts/peer/torch_recovery.py.

Time-outs and retries are the peers' defaults. What was told to them: torchrun how often it may restart (its default is never), and
torchft's lighthouse that one replica is enough. Each trial is given up after a time that stands in the table.
"""

import contextlib
import pathlib
import random
import signal
import time

from benchlib import processes
from benchlib.basics import ROOT, Failed, call, free_port, say

PROGRAM = ROOT / "scripts" / "peer" / "torch_recovery.py"
WORLD = 4
GIVEN_UP_SECONDS = 90
START_SECONDS = 180
QUIET_SECONDS = 20
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1",
               "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "", "RUST_LOG": "warn"}


def parameters(python):
    return int(call([python, PROGRAM, "parameters"], PYTHONDONTWRITEBYTECODE="1"))


class Job:
    """One job of a peer: its agents, and what their workers write."""

    def __init__(self, python, folder, name):
        self.bin, self.prefix, self.name = pathlib.Path(python).parent, pathlib.Path(folder) / name, name
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self.chance = random.Random(name)
        self.output, self.tag = open(f"{self.prefix}.out", "a"), f"BENCH_JOB={name}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        processes.sweep(self.tag)
        self.output.close()

    def start(self, command, **environment):
        key, value = self.tag.split("=")
        return processes.spawn([self.bin / command[0], *command[1:]], self.output, **ENVIRONMENT, **environment,
                               **{key: value, "RECOVERY_LOG": str(self.prefix)})

    def events(self):
        """(time, member, process, words) of all that the workers wrote, in order of time."""
        found = []
        for path in self.prefix.parent.glob(f"{self.prefix.name}.*.*"):
            _, member, pid = path.name.rsplit(".", 2)
            if pid.isdigit():
                for line in path.read_text().split("\n")[:-1]:
                    when, *words = line.split()
                    found.append((float(when), int(member), int(pid), words))
        return sorted(found)

    def steps(self, after=0.0, members=None, world=None):
        return [event for event in self.events() if event[3][0] == "step" and event[0] > after
                and (members is None or event[1] in members) and (world is None or event[3][2] == str(world))]

    def processes(self, member=None):
        """Workers that live, by the file that they write."""
        alive = set(processes.marked(self.tag))
        return sorted({pid for _, which, pid, _ in self.events() if member in (None, which) and pid in alive})

    def wait(self, what, condition, seconds):
        """Whether `condition()` came true in time, and what it was."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.1)
        if what:
            with open(f"{self.prefix}.out") as output:
                raise Failed(f"{self.name}: no {what} in {seconds} s: {output.read()[-1500:]}")
        return None

    def settle(self, world=WORLD, after=0.0):
        """Waits for steps in peace of so many workers."""
        self.wait(f"steps of {world}", lambda: len(self.steps(after, world=world)) >= 30 * world, START_SECONDS)
        # the blow falls anywhere between two checkpoints
        time.sleep(self.chance.uniform(0.5, 3))


def stall(job, at, members=None):
    """Seconds of the longest time without a finished step that began around `at`, and the numbers on both sides of it; nothing
    where it did not end."""
    times = [(when, int(words[1])) for when, _, _, words in job.steps(at - 2, members)]
    pairs = [(b[0] - a[0], a[1], b[1]) for a, b in zip(times, times[1:]) if b[0] > at]
    return max(pairs, default=None)


def went_on(job, at, quiet, members=None):
    """Whether steps go on after they had stopped for `quiet` seconds at least, or never stopped so long."""
    times = [when for when, *_ in job.steps(at - 2, members)]
    later = [b for a, b in zip(times, times[1:]) if b > at and b - a > quiet]
    return bool(later) and times[-1] > later[-1] + 1


# -- torchrun

def agent(job, port, nodes, number=0, each=WORLD, **environment):
    return job.start(["torchrun", f"--nnodes={nodes}", f"--nproc-per-node={each}", "--max-restarts=100", "--rdzv-backend=c10d",
                      f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={job.name}", "--local-addr=127.0.0.1",
                      f"--rdzv-conf=is_host={int(number == 0)}", PROGRAM, "ddp"], **environment)


def torchrun(python, folder, rounds):
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    return [one_agent(python, folder, rounds, "kill -9 of a worker of 2", kill, 2),
            one_agent(python, folder, rounds, "kill -9 of a worker of 4", kill),
            # by default a restart finds the addresses of those who are dead in the agent's store
            one_agent(python, folder, rounds, "kill -9 of a worker of 4, " + OWN_STORE + "=1", kill, **{OWN_STORE: "1"}),
            two_agents(python, folder, rounds),
            one_agent(python, folder, rounds, "SIGSTOP of a worker of 4", stop),
            *node_and_rejoin(python, folder, rounds)]


def one_agent(python, folder, rounds, fault, number, each=WORLD, **environment):
    found = []
    for trial in range(rounds):
        say(f"recovery: torchrun, {fault}, {trial + 1} of {rounds}")
        with Job(python, folder, f"torchrun-{int(number)}-{each}{'own' if environment else ''}-{trial}") as job:
            agent(job, free_port(), 1, each=each, **environment)
            job.settle(each)
            found.append(blow(job, job.processes()[-1], number))
    return Result("torchrun", fault, found)


def two_agents(python, folder, rounds):
    fault, found = "kill -9 of a worker of 4, 2 agents", []
    for trial in range(rounds):
        say(f"recovery: torchrun, {fault}, {trial + 1} of {rounds}")
        with pair(python, folder, f"torchrun-pair-{trial}", "2") as (job, _, _):
            found.append(blow(job, job.processes(1)[-1], signal.SIGKILL))
    return Result("torchrun", fault, found)


def blow(job, pid, number):
    at = time.time()
    processes.send(pid, number)
    job.wait(None, lambda: went_on(job, at, 0.5), GIVEN_UP_SECONDS)
    return stall(job, at) if went_on(job, at, 0.5) else None


@contextlib.contextmanager
def pair(python, folder, name, nodes):
    """Two agents of two workers each."""
    with Job(python, folder, name) as job:
        port = free_port()
        first = agent(job, port, nodes, 0, WORLD // 2)
        time.sleep(2)
        agent(job, port, nodes, 1, WORLD // 2)
        job.settle()
        yield job, port, first


def node_and_rejoin(python, folder, rounds):
    lost, again = [], []
    for trial in range(rounds):
        say(f"recovery: torchrun, loss of a node and its return, {trial + 1} of {rounds}")
        with pair(python, folder, f"torchrun-node-{trial}", "1:2") as (job, port, first):
            # the second agent and its workers: all that is neither the first nor started by it
            at, keep = time.time(), family(first.pid)
            for pid in processes.marked(job.tag):
                if pid not in keep:
                    processes.send(pid)
            job.wait(None, lambda: went_on(job, at, 0.5), GIVEN_UP_SECONDS)
            lost.append(stall(job, at) if went_on(job, at, 0.5) else None)
            if lost[-1] is None:
                again.append(None)
                continue
            at = time.time()
            agent(job, port, "1:2", 1, WORLD // 2)
            job.wait(None, lambda: job.steps(at, world=WORLD), GIVEN_UP_SECONDS)
            joined = job.steps(at, world=WORLD)
            again.append(stall(job, at) if joined else None)
    return [Result("torchrun", "loss of a node (agent and workers killed)", lost),
            Result("torchrun", "return of the node", again)]


def family(pid):
    """A process and all that it has started."""
    return {pid}.union(*(family(child) for child in processes.children(pid)))


# -- torchft

def torchft(python, folder, rounds):
    return [of_four(python, folder, rounds), *of_two(python, folder, rounds)]


@contextlib.contextmanager
def replicas(python, folder, name, world):
    """A lighthouse and so many replicas of one worker each."""
    with Job(python, folder, name) as job:
        port = free_port()
        lighthouse = job.start(["torchft_lighthouse", "--min_replicas", "1", "--bind", f"[::]:{port}"])
        time.sleep(1)
        for number in range(world):
            replica(job, number, port)
        job.settle(world)
        yield job, port, lighthouse


def of_four(python, folder, rounds):
    """Where a survivor is no neighbour of the dead one, it hears nothing of it."""
    found, ended, rest = [], 0, {0, 1, 2}
    for trial in range(rounds):
        say(f"recovery: torchft, kill -9 of one replica of 4, {trial + 1} of {rounds}")
        with replicas(python, folder, f"torchft-four-{trial}", WORLD) as (job, _, _):
            at = kill_replica(job, WORLD - 1)
            job.wait(None, lambda: went_on(job, at, 0.5, rest), GIVEN_UP_SECONDS)
            found.append(stall(job, at, rest) if went_on(job, at, 0.5, rest) else None)
            ended += sum(not job.processes(member) for member in rest)
    note = f"{ended} of {len(rest) * rounds} survivors ended too" if ended else ""
    return Result("torchft", "kill -9 of one replica of 4", found, note)


def of_two(python, folder, rounds):
    kill, others, newcomer, stop, house = [], [], [], [], []
    for trial in range(rounds):
        say(f"recovery: torchft, 2 replicas, {trial + 1} of {rounds}")
        with replicas(python, folder, f"torchft-two-{trial}", 2) as (job, port, lighthouse):
            at = kill_replica(job, 1)
            job.wait(None, lambda: went_on(job, at, 0.5, {0}), GIVEN_UP_SECONDS)
            kill.append(stall(job, at, {0}) if went_on(job, at, 0.5, {0}) else None)

            at = time.time()
            replica(job, 1, port)
            first = job.wait(None, lambda: job.steps(at, {1}, 2), GIVEN_UP_SECONDS)
            time.sleep(2)
            others.append(stall(job, at, {0}) if first else None)
            newcomer.append((first[0][0] - at, 0, 1) if first else None)

            job.settle(2, after=time.time())
            [victim] = job.processes(1)
            at = time.time()
            processes.send(victim, signal.SIGSTOP)
            job.wait(None, lambda: went_on(job, at, 0.5, {0}), GIVEN_UP_SECONDS)
            stop.append(stall(job, at, {0}) if went_on(job, at, 0.5, {0}) else None)

            at = time.time()
            processes.send(lighthouse.pid)
            time.sleep(QUIET_SECONDS)
            house.append(stall(job, at, {0}) if job.steps(at + QUIET_SECONDS - 2, {0}) else None)
    return [Result("torchft", "kill -9 of one replica of 2", kill), Result("torchft", "a replica joins: the other", others),
            Result("torchft", "a replica joins: from its start to its first step", newcomer),
            Result("torchft", "SIGSTOP of one replica of 2", stop),
            Result("torchft", f"kill -9 of the lighthouse, watched for {QUIET_SECONDS} s", house)]


def replica(job, number, port):
    return job.start(["torchrun", "--master-port", free_port(), "--nnodes=1", "--nproc-per-node=1", PROGRAM, "ft"],
                     REPLICA_GROUP_ID=str(number), NUM_REPLICA_GROUPS=str(WORLD), TORCHFT_LIGHTHOUSE=f"http://localhost:{port}")


def kill_replica(job, number):
    """Kills a replica, its agent too."""
    pids = [pid for pid in processes.marked(job.tag) if f"REPLICA_GROUP_ID={number}" in environment(pid)]
    at = time.time()
    for pid in pids:
        processes.send(pid)
    return at


def environment(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ") as listed:
        return listed.read().split("\0")
    return []


class Result:
    """Trials of one fault of a peer: each (seconds, step before, step after), or nothing where it never went on."""

    def __init__(self, peer, fault, trials, note=""):
        self.peer, self.fault, self.trials, self.note = peer, fault, trials, note

    def seconds(self):
        return [trial[0] for trial in self.trials if trial]

    def again(self):
        return max((max(0, before + 1 - after) for _, before, after in filter(None, self.trials)), default=0)

    def failed(self):
        return sum(trial is None for trial in self.trials)
