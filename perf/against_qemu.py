#!/usr/bin/env python3
"""Replicated writes of Lockstep and of QEMU's replication pair by turns, on one machine: medians and ratios.

  against_qemu.py target/release DIRECTORY [ROUNDS]

4 KiB random writes at depth 32 on RAM disks of 1 GiB, acknowledged when both nodes have them. Each round runs both, in
turn the one and the other first: `qemu_replication.py --sections throughput` beside this file (QEMU's rows over UNIX
sockets: its faster ones), and `pair.sh` beside this file under `lockstep-perf nvme`. "settled": after the blocks were
written in this epoch before; "fresh": right after a checkpoint. CPU is of both nodes, without the load generator.
DIRECTORY is for sockets and metadata files. Needs what qemu_replication.py needs. Standard library only.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = "127.0.0.1:4430/nqn.2026-01.io.lockstep:volume"
LOADS = {"fresh": ["--warm-up", "0", "--time", "1"], "settled": ["--warm-up", "4", "--range", "256m", "--time", "2"]}


def of_qemu():
    command = [sys.executable, str(HERE / "qemu_replication.py"), "--sections", "throughput", "--reps", "1", "--runtime", "2"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=600)
    rows = json.loads(done.stdout)["throughput"]["results"]["randwrite-4k-qd32"]
    return {state: (rows[f"{state}/unix"]["iops"]["med"], rows[f"{state}/unix"]["cpu_s_per_gib"]["med"]) for state in LOADS}


def of_lockstep(binaries, directory):
    found = {}
    for state, options in LOADS.items():
        pair = subprocess.Popen(["sh", str(HERE / "pair.sh"), str(binaries / "lockstep"), str(directory), "1024", "0", "1"])
        try:
            sockets = [directory / "primary.sock", directory / "secondary.sock"]
            call = [str(binaries / "lockstep"), "rpc", "--socket", str(sockets[0]), "replication_get_groups"]
            end = time.monotonic() + 30
            while True:
                answer = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                if answer.returncode == 0 and json.loads(answer.stdout)[0]["state"] == "running":
                    break
                if time.monotonic() > end:
                    sys.exit(f"the pair does not start: {answer.stdout}; see {directory}/*.log")
                time.sleep(0.1)
            children = pathlib.Path(f"/proc/{pair.pid}/task/{pair.pid}/children").read_text().split()
            result = directory / "load.json"
            load = [str(binaries / "lockstep-perf"), "nvme", TARGET, "--rw", "randwrite", "--depth", "32", "--cores", "1",
                    "--idle", "adaptive", "--cpu-of", ",".join(children), "--json", str(result), *options]
            subprocess.run(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=120)
            figures = json.loads(result.read_text())
            found[state] = (figures["iops"], figures["cpu_seconds_per_gib"])
        finally:
            pair.terminate()
            pair.wait()
    return found


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    binaries, directory = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    os.makedirs(directory, exist_ok=True)
    rounds = []
    for number in range(int(sys.argv[3]) if len(sys.argv) == 4 else 3):
        order = ["lockstep", "qemu"] if number % 2 == 0 else ["qemu", "lockstep"]
        rounds.append({who: of_qemu() if who == "qemu" else of_lockstep(binaries, directory) for who in order})
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    print("| | lockstep writes/s | QEMU writes/s | ratio | lockstep CPU s/GiB | QEMU CPU s/GiB | ratio |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for state in LOADS:
        (ours, cpu), (theirs, their_cpu) = (
            [statistics.median(r[who][state][k] for r in rounds) for k in (0, 1)] for who in ("lockstep", "qemu")
        )
        print(f"| {state} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} | {cpu:.2f} | {their_cpu:.1f} | 1/{their_cpu / cpu:.1f} |")


main()
