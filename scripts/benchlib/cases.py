"""What is done to a run of ours, and how often. Each case returns rows: a name, its trials, and what was measured in each."""

import dataclasses
import random
import signal
import time

from benchlib import nodes, ours, processes
from benchlib.basics import Failed, say

WORLD = 4
SEED = 3
# Trials of a killed worker for each round: its target has a p99, which takes a hundred.
KILLS = 5


@dataclasses.dataclass
class Row:
    """One figure of one fault over all its trials: seconds, or counts where `unit` is empty."""

    fault: str
    what: str
    values: list
    # greatest allowed median and, from 100 trials, 99th percentile; `steps` are added to the median's
    median: float | None = None
    p99: float | None = None
    steps: int = 0
    step: float = 0.0
    unit: str = "s"
    # trials of which the run's files do not tell enough
    untold: int = 0


def pause(chance):
    """Some rounds in peace; and the blow falls anywhere in a step."""
    time.sleep(chance.uniform(0.5, 1.2))


def strikes(programs, folder, fault, rounds, number, patience="2s"):
    """Workers struck by a signal, one at a time, each time after the world is whole again."""
    chance = random.Random(SEED)
    with ours.Run(programs, folder, patience=patience) as run:
        run.launch()
        trials = []
        for trial in range(rounds):
            run.whole(WORLD)
            pid = run.victim(chance)
            pause(chance)
            run.whole(WORLD)
            say(f"recovery: ours, {fault}, {trial + 1} of {rounds}")
            generation, at = run.generation, time.time()
            processes.send(pid, number)
            run.wait("next generation", lambda: run.generation > generation)
            run.whole(WORLD)
            trials.append((generation, at))
        story = ours.Story(run)
    silent = number == signal.SIGSTOP
    known, stall = (2.0, None) if silent else (0.05, 0.25), (None, None) if silent else (0.3, 1.0)
    step = story.step()
    return [
        told(fault, "all survivors know", [story.known(g, at, WORLD - 1) for g, at in trials], *known),
        told(fault, "survivors stand still, by the ledger", [story.cost(g) for g, _ in trials], *stall, 1, step),
        told(fault, "between two finished rounds, by the clock", [story.gap(g) for g, _ in trials]),
    ]


def killed(programs, folder, rounds):
    return strikes(programs, folder, "kill -9 of a worker", rounds * KILLS, signal.SIGKILL)


def stopped(programs, folder, rounds):
    return strikes(programs, folder, "SIGSTOP of a worker", rounds, signal.SIGSTOP)


def joined(programs, folder, rounds):
    """One of four comes from elsewhere, is told to go, and another one comes."""
    return joins(programs, folder / "light", rounds, "a worker joins") + \
        joins(programs, folder / "heavy", rounds, "a worker joins, state of 112 MB", **ours.HEAVY)


def joins(programs, folder, rounds, fault, **settings):
    chance = random.Random(SEED)
    with ours.Run(programs, folder, **settings) as run:
        run.launch("--local", WORLD - 1)
        run.wait("address", lambda: run.address)
        guest, _ = run.join()
        trials = []
        for trial in range(rounds):
            run.whole(WORLD)
            pause(chance)
            processes.send(guest.pid, signal.SIGTERM)
            run.whole(WORLD - 1)
            guest.wait()
            pause(chance)
            say(f"recovery: ours, {fault}, {trial + 1} of {rounds}")
            at = time.time()
            guest, path = run.join()
            run.whole(WORLD)
            trials.append((at, path))
        story = ours.Story(run)
    came = [(at, *story.contributing(path)) for at, path in trials]
    if any(generation is None for *_, generation in came):
        raise Failed(f"{fault}: a worker that joined never said that it took part")
    step = story.step()
    return [
        told(fault, "others stand still, by the ledger", [story.cost(g - 1) for *_, g in came], 0.1, None, 1, step),
        told(fault, "between two finished rounds, by the clock", [story.gap(g - 1) for *_, g in came]),
        Row(fault, "from its start to its first generation", [when - at for at, when, _ in came], 1.5),
    ]


def node_lost(programs, folder, rounds):
    """Two of four workers are on a host of their own, which vanishes."""
    if lacks := nodes.missing():
        say(f"recovery: skipped the loss of a node: needs {lacks}")
        return []
    rows = []
    for name, patience, silent in (("node silent", "2s", True), ("node silent, patience 1 s", "1s", True),
                                   ("all workers of a node killed", "2s", False)):
        place = folder / name.replace(" ", "-").replace(",", "")
        rows += node_trials(programs, place, rounds, name, patience, silent)
    return rows


def node_trials(programs, folder, rounds, fault, patience, silent):
    chance, away = random.Random(SEED), 2
    with nodes.Node() as node, ours.Run(programs, folder, patience=patience) as run:
        run.launch("--local", WORLD - away, "--listen", f"{nodes.HERE}:0", "--insecure")
        run.wait("address", lambda: run.address)
        trials = []
        for trial in range(rounds):
            for _ in range(away):
                run.join(node.name, node.address)
            run.whole(WORLD)
            pause(chance)
            run.whole(WORLD)
            say(f"recovery: ours, {fault}, {trial + 1} of {rounds}")
            generation, at = run.generation, time.time()
            if silent:
                node.cut()
            else:
                node.kill()
            run.wait("next generation", lambda: run.generation > generation)
            run.whole(WORLD - away)
            trials.append((generation, at))
            # who was cut off would wait for a coordinator; the next ones come anew
            node.kill()
            node.mend()
        story = ours.Story(run)
    known, stall = (1.5, None) if silent else (0.05, 0.25), (None, None) if silent else (0.3, 1.0)
    step, left = story.step(), WORLD - away
    return [
        told(fault, "all survivors know", [story.known(g, at, left) for g, at in trials], *known),
        told(fault, "survivors stand still, by the ledger", [story.cost(g) for g, _ in trials], *stall, 1, step),
        told(fault, "between two finished rounds, by the clock", [story.gap(g) for g, _ in trials]),
    ]


def coordinator_killed(programs, folder, rounds):
    """The coordinator dies, its workers train on, and another one takes the run over."""
    rows = []
    for delay in (0, 5, 60):
        fault = f"kill -9 of the coordinator, another after {delay} s"
        with ours.Run(programs, folder / str(delay)) as run:
            if not run.can_attach():
                say("recovery: skipped the loss of the coordinator: this build has no `coordinator attach`")
                return []
            run.launch()
            chance, back = random.Random(SEED), []
            for trial in range(rounds):
                run.whole(WORLD)
                pause(chance)
                say(f"recovery: ours, {fault}, {trial + 1} of {rounds}")
                images = run.ticks[-1][1]
                run.kill_coordinator()
                time.sleep(delay)
                run.attach()
                run.wait("finished round", lambda: run.ticks and run.ticks[-1][1] > images)
                back.append(run.ticks[0][0] - run.began)
            run.whole(WORLD)
            story, report = ours.Story(run), run.report()
        lost = report["steps_missing"] + report["steps_taken_again"]
        costs = [line["spent"] for line in story.spans]
        stood = sum(spent.get(name, 0.0) for spent in costs for name in ("detection", "reforming", "redone"))
        rows += [
            Row(fault, f"steps lost or taken again, in all {rounds} trials", [lost], 0, unit=""),
            Row(fault, "workers stand still for each, by the ledger (mean)", [stood / rounds]),
            Row(fault, "from the new one's start to the first round that it hears of", back, 1.0),
        ]
    return rows


def all_killed(programs, folder, rounds):
    """Coordinator and workers die together, and the run is resumed from its newest checkpoint."""
    chance, took, fault = random.Random(SEED), [], "kill -9 of coordinator and all workers"
    with ours.Run(programs, folder) as run:
        run.launch()
        for trial in range(rounds):
            run.whole(WORLD)
            stored = run.checkpoints
            if run.ask("checkpoint", run.name) is None:
                raise Failed(f"no checkpoint: {run.last_words()}")
            run.wait("checkpoint", lambda: run.checkpoints > stored)
            pause(chance)
            say(f"recovery: ours, {fault}, {trial + 1} of {rounds}")
            pids = [run.coordinator.pid, *run.workers().values()]
            at = time.time()
            for pid in pids:
                processes.send(pid)
            run.coordinator.wait()
            processes.reap(pids[1:])
            run.resume()
            run.wait("first round", lambda: run.ticks)
            took.append(run.ticks[0][0] - at)
    return [Row(fault, "from the kill to the first round after `resume`", took, 2.0)]


def parameters(programs, folder):
    """Of the networks of a run that left a checkpoint there."""
    return ours.Run(programs, folder).parameters()


def told(fault, what, values, *demands):
    """The row of a figure that is read from the run's files, which may not tell it of every trial."""
    known = [value for value in values if value is not None]
    if not known:
        raise Failed(f"{fault}: the run's files tell of no trial: {what}")
    return Row(fault, what, known, *demands, untold=len(values) - len(known))
