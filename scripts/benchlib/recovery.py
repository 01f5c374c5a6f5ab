"""The part `recovery` of scripts/bench: every fault of ours, the same of the peers, and the targets beside what was measured."""

import contextlib
import pathlib
import statistics
import tempfile

from benchlib import cases, ours, peers, processes
from benchlib.basics import ROOT, TORCHFT, Failed, Others, foreign, peer_python, say, spread

OURS = {"kill": cases.killed, "stop": cases.stopped, "join": cases.joined, "node": cases.node_lost,
        "coordinator": cases.coordinator_killed, "resume": cases.all_killed}
PEERS = {"torchrun": peers.torchrun, "torchft": peers.torchft}
CASES = [*OURS, *PEERS]
# One trial of a peer takes up to a minute and a half.
PEER_SHARE = 7
PEER_TRIALS_MIN = 3
P99_TRIALS_MIN = 100
GAP = "between two finished rounds, by the clock"
# Which fault of ours stands beside that of a peer.
BESIDE = {"kill -9": "kill -9 of a worker", "SIGSTOP": "SIGSTOP of a worker", "loss of a node": "all workers of a node killed",
          "return of": "a worker joins", "a replica joins: the other": "a worker joins"}


def measure(options):
    """The lines of the section."""
    chosen, others = options.cases or CASES, Others()
    python = peer_python(torchft=True) if set(chosen) & set(PEERS) else None
    peer_rounds = max(PEER_TRIALS_MIN, options.rounds // PEER_SHARE) if options.rounds > 1 else 1
    rows, results, count, failures = [], [], None, []
    processes.adopt_orphans()
    with place() as folder:
        try:
            for name in (name for name in CASES if name in chosen):
                say(f"recovery: {name}")
                try:
                    if name in PEERS:
                        results += PEERS[name](python, folder / name, peer_rounds)
                    else:
                        rows += OURS[name](options.bin, folder / name, options.rounds)
                    if name == "resume":
                        count = cases.parameters(options.bin, folder / name)
                except Failed as error:
                    say(f"recovery: {name} FAILED: {error}")
                    failures.append(name)
            if failures:
                print("\n".join(table(rows) + beside(results, rows)), flush=True)
                raise Failed(f"not measured: {', '.join(failures)}")
        finally:
            processes.sweep()
    if python and count is not None and (theirs := peers.parameters(python)) != count:
        raise Failed(f"the networks are not alike: {count} parameters of ours, {theirs} of the peers")
    return table(rows) + told_of(count) + (beside(results, rows) if results else []) + ["", foreign(others)]


@contextlib.contextmanager
def place():
    """Where runs and logs lie: gone afterwards, unless something failed."""
    (ROOT / "target").mkdir(exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=ROOT / "target", prefix="recovery-"))
    try:
        yield folder
    except BaseException:
        say(f"recovery: what the runs left is in {folder}")
        raise
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def table(rows):
    text = ["| CPU, loopback: what happens | what was measured | trials | median, s | greatest, s | p99, s | target | met |",
            "|---|---|---:|---:|---:|---:|---|---|"]
    for row in rows:
        middle, most = statistics.median(row.values), max(row.values)
        p99 = statistics.quantiles(row.values, n=100, method="inclusive")[98] if len(row.values) >= P99_TRIALS_MIN else None
        target, met = judge(row, middle, p99 if p99 is not None else most)
        digits = 3 if row.unit else 0
        text.append(f"| {row.fault} | {row.what} | {trials(row)} | {middle:.{digits}f} | {most:.{digits}f} "
                    f"| {'-' if p99 is None else f'{p99:.{digits}f}'} | {target} | {met} |")
    return text


def trials(row):
    return f"{len(row.values)} of {len(row.values) + row.untold}" if row.untold else str(len(row.values))


def judge(row, middle, most):
    """The target in words, and whether it was met."""
    if row.median is None:
        return "-", "-"
    limit = row.median + row.steps * row.step
    words = f"{row.median:g} {row.unit}".strip() + (f" + 1 step = {limit:.3f} s" if row.steps else "")
    met = middle <= limit
    if row.p99 is not None:
        words += f"; p99 {row.p99:g} s"
        met = met and most <= row.p99
    return words, "yes" if met else "**no**"


def told_of(count):
    size = f" ({count} parameters)" if count else ""
    return ["", f"A worker is one process of one thread, {cases.WORLD} of them unless something else is said, over the networks "
            f"of {ours.DEFAULTS['width']} feature maps at 16 px{size}, minibatch {ours.DEFAULTS['minibatch']}. The targets are "
            f"those set before anything was measured. A p99 is given from {P99_TRIALS_MIN} trials on; below, its target is held against "
            "the greatest."]


def beside(results, rows):
    clock = {row.fault: row.values for row in rows if row.what == GAP}
    text = ["", "| CPU, loopback: peer | what happens | trials | without a finished round, s | never went on "
            "| rounds taken again, at most | ours, without a finished round, s |", "|---|---|---:|---:|---:|---:|---:|"]
    for result in results:
        seconds = result.seconds()
        same = next((fault for begin, fault in BESIDE.items() if result.fault.startswith(begin)
                     and "lighthouse" not in result.fault), None)
        text.append(f"| {result.peer} | {result.fault}{'; ' + result.note if result.note else ''} | {len(result.trials)} "
                    f"| {spread(seconds, 2) if seconds else '-'} | {result.failed()} | {result.again() if seconds else '-'} "
                    f"| {spread(clock[same], 2) if same in clock else '-'} |")
    return text + ["", f"The peers train the same networks, over {peers.WORLD} workers where nothing else is said, with "
                   f"their own defaults; torchft {TORCHFT}. \"Never went on\": not within {peers.GIVEN_UP_SECONDS} s. torchrun "
                   "goes back to its checkpoint, which it writes every 5 rounds; ours wrote none. A round is one update of each "
                   "network."]
