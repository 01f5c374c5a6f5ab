"""Hosts as network namespaces: a bridge with the coordinator's address, and a node behind a link that can be cut.

Needs root and `ip`. A cut link is silent: nothing is refused, packets vanish. (A namespace that is deleted lives on while a
process is in it, so deleting it proves nothing.)
"""

import contextlib
import os
import subprocess

from benchlib import processes
from benchlib.basics import Failed

SUBNET = "10.213.71"
HERE = f"{SUBNET}.1"


def missing():
    """What is missing here to make one, in words; nothing where it can be made."""
    if os.geteuid() != 0:
        return "root"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return None if tried.returncode == 0 else "network namespaces"


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"ip {' '.join(map(str, words))}: {done.stderr.strip()}")


class Node:
    """One host beside this one. Its processes are those that were started in it."""

    def __init__(self, number=2):
        tag = f"gfb{os.getpid() % 100000}"
        self.bridge, self.outer, self.inner, self.name = f"{tag}b", f"{tag}o", f"{tag}i", f"{tag}n"
        self.address = f"{SUBNET}.{number}"

    def __enter__(self):
        self.remove()
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("addr", "add", f"{HERE}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            ip("netns", "add", self.name)
            ip("link", "add", self.outer, "type", "veth", "peer", "name", self.inner, "netns", self.name)
            ip("link", "set", self.outer, "master", self.bridge)
            ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.inner)
            ip("-n", self.name, "link", "set", "lo", "up")
            ip("-n", self.name, "link", "set", self.inner, "up")
            self.mend()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.kill()
        self.remove()

    def cut(self):
        # taken out of the bridge, it would still be heard: the bridge had its address
        ip("link", "set", self.outer, "down")

    def mend(self):
        ip("link", "set", self.outer, "up")

    def kill(self):
        """Kills all that runs in it, at once."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        mine = set(processes.marked())
        for pid in map(int, listed):
            if pid in mine:
                processes.send(pid)

    def remove(self):
        for words in (("netns", "del", self.name), ("link", "del", self.outer), ("link", "del", self.bridge)):
            with contextlib.suppress(Failed):
                ip(*words)
