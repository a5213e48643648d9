#!/usr/bin/env python3
"""How fast a pair copies what is marked, against a plain copy of as much, and what the copy costs the writes of hosts.

usage: resync.py BIN_DIRECTORY DIRECTORY MiB [ROUNDS]

BIN_DIRECTORY has `lockstep` and `lockstep-perf`. In each round the primary of a pair (perf/pair.sh, RAM disks) goes on alone
while all of its volume is written, then copies it to the secondary; a plain copy sends a file of the same size in DIRECTORY
over a TCP connection of loopback into another one (sendfile, recv_into). Then the same copy with a load of hosts beside it:
without a target for their latency and with some, and without a copy.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time

NQN = "nqn.2026-01.io.lockstep:volume"
TARGET = "127.0.0.1:4430/" + NQN
LOAD = ["--rw", "randwrite", "--bs", "4k", "--depth", "4", "--rate", "2000", "--warm-up", "0", "--time", "2"]
TARGETS_US = (0, 1000, 5000)


class Pair:
    def __init__(self, binaries, directory, mib):
        self.lockstep, self.perf = binaries + "/lockstep", binaries + "/lockstep-perf"
        self.directory = directory
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pair.sh")
        self.process = subprocess.Popen(["sh", script, self.lockstep, directory, str(mib), "0", "1"])
        self.wait_for("running")

    def rpc(self, method, **params):
        params = {"group": "g0", **params} if method != "replication_get_groups" else params
        command = [self.lockstep, "rpc", "--socket", self.directory + "/primary.sock", method, json.dumps(params)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    def group(self):
        return self.rpc("replication_get_groups")[0]

    def wait_for(self, state):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if self.group()["state"] == state:
                    return
            except (subprocess.CalledProcessError, ValueError):
                pass
            time.sleep(0.02)
        raise SystemExit("the group is not " + state)

    def load(self, *arguments):
        out = os.path.join(self.directory, "load.json")
        command = [self.perf, "nvme", TARGET, "--cores", "1", "--idle", "adaptive", "--json", out, *arguments]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        with open(out) as file:
            return json.load(file)

    def diverge(self, mib):
        """All of the volume is written while the peer is away."""
        self.rpc("replication_stop")
        self.load("--rw", "write", "--bs", "128k", "--depth", "16", "--warm-up", "0", "--count", str(mib * 8), "--time", "120")
        assert self.group()["dirty_bytes"] == mib << 20, self.group()["dirty_bytes"]

    def copy(self):
        self.rpc("replication_start", sync="changed")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def plain_copy(directory, mib):
    source, target = directory + "/source", directory + "/target"
    for path in (source, target):
        with open(path, "wb") as file:
            block = os.urandom(1 << 20)
            for _ in range(mib):
                file.write(block)
    server = socket.create_server(("127.0.0.1", 0))

    def receive():
        connection, _ = server.accept()
        with open(target, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            at = 0
            while at < len(view):
                at += connection.recv_into(memoryview(view)[at : at + (1 << 20)])
        connection.sendall(b"!")

    receiver = threading.Thread(target=receive)
    receiver.start()
    began = time.monotonic()
    with open(source, "rb") as file, socket.create_connection(server.getsockname()) as connection:
        connection.sendfile(file)
        connection.recv(1)
    took = time.monotonic() - began
    receiver.join()
    os.remove(source)
    os.remove(target)
    return took


def latency(pair):
    found = pair.load(*LOAD)
    found = found.get("write_latency") or found["writes"]
    return f"p50 {found['p50_us']:.0f} us, p99 {found['p99_us']:.0f} us"


def main():
    binaries, directory, mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    os.makedirs(directory, exist_ok=True)
    pair = Pair(binaries, directory, mib)
    try:
        for number in range(rounds):
            pair.diverge(mib)
            began = time.monotonic()
            pair.copy()
            pair.wait_for("running")
            copied = time.monotonic() - began
            plain = plain_copy(directory, mib)
            print(f"round {number}: copy {mib / copied:.0f} MiB/s, plain {mib / plain:.0f} MiB/s, ratio {plain / copied:.2f}")
            print("  no copy             ", latency(pair), flush=True)
            for target in TARGETS_US:
                pair.diverge(mib)
                pair.rpc("replication_set_options", resync_latency_target_us=target)
                pair.copy()
                pair.wait_for("syncing")
                during = latency(pair)
                sync = pair.group().get("sync")
                left = f"{sync['left_bytes'] >> 20} MiB left after it" if sync else "the copy ended meanwhile"
                print(f"  copy, target {target:5} us", during, left, flush=True)
                pair.rpc("replication_set_options", resync_latency_target_us=0)
                pair.wait_for("running")
    finally:
        pair.stop()


main()
