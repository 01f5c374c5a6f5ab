"""What a run takes of the machine while it goes on: resident memory, descriptors, threads; and how long nothing happens."""

import contextlib
import os
import time

from benchlib import processes

AGES = (15, 60, 240)
# What may be added between the first and the last quarter: (absolute, share of what there was).
LIMITS = {"memory, MiB": (16, 0.1), "descriptors": (2, 0.05), "threads": (1, 0.05)}
# Seconds after a change of generations that are nobody's peace.
UNREST_SECONDS = 2
# Values of a class that each quarter must have.
VALUES_MIN = 5


class Watch:
    """Looks at a run once a second."""

    def __init__(self, run):
        self.run, self.began = run, time.time()
        self.values, self.born = [], {}
        self.generation, self.since = run.generation, self.began

    def look(self, guests):
        now = time.time()
        if self.run.ended or self.run.coordinator.poll() is not None:
            return
        if (self.run.generation, self.run.world) != self.generation:
            self.generation, self.since = (self.run.generation, self.run.world), now
        if not self.run.world or now - self.since < UNREST_SECONDS:
            return
        pids = [*processes.children(self.run.coordinator.pid), *(guest.pid for guest in guests if guest.poll() is None)]
        self.take("coordinator", 0, self.run.coordinator.pid, now)
        for pid in pids:
            born = self.born.setdefault(pid, now)
            age = sum(now - born >= limit for limit in AGES)
            self.take("workers", age, pid, now)

    def take(self, who, age, pid, now):
        with contextlib.suppress(OSError, ValueError):
            taken = usage(pid)
            if taken:
                self.values.append((now, who, (age, self.run.world), taken))

    def growth(self):
        """(who, what, value before, what was added or nothing, what may be added)."""
        ended = time.time()
        quarter = (ended - self.began) / 4
        for who in ("coordinator", "workers"):
            for what, (absolute, share) in LIMITS.items():
                first, last = {}, {}
                for now, whose, group, taken in self.values:
                    if whose == who and now < self.began + quarter:
                        first.setdefault(group, []).append(taken[what])
                    if whose == who and now > ended - quarter:
                        last.setdefault(group, []).append(taken[what])
                both = [g for g in first if min(len(first[g]), len(last.get(g, []))) >= VALUES_MIN]
                if not both:
                    yield who, what, 0.0, None, absolute
                    continue
                weight = {g: min(len(first[g]), len(last[g])) for g in both}
                mean = lambda values: sum(values) / len(values)
                total = sum(weight.values())
                before = sum(weight[g] * mean(first[g]) for g in both) / total
                after = sum(weight[g] * mean(last[g]) for g in both) / total
                yield who, what, before, after - before, absolute + share * before

    def longest_stall(self):
        """Longest time between two ticks, and when it began, in seconds since the start."""
        times = [self.began, *(at for at, _ in self.run.ticks if at > self.began)]
        pairs = [(b - a, a - self.began) for a, b in zip(times, times[1:])]
        return max(pairs, default=(float("inf"), 0.0))


def usage(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status if ":" in line)
    if "VmRSS" not in fields:
        return None
    return {"memory, MiB": int(fields["VmRSS"].split()[0]) / 1024, "threads": int(fields["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}
