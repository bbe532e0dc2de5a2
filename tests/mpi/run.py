#!/usr/bin/env python3
"""Starts ranks.c (or rows.c) under MPI's launcher: run.py PROGRAM exchange|rows|faults|launchers|namespaces.

Environment: MOEC_COMM_MPI (the backend's file), MPIRUN; MOEC_COMM_MPICH and MPIRUN_MPICH where that MPI is there too.
What is missing is said, and the test skipped (77). After every run no process may be left, and nothing in /dev/shm.
"""
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

SKIP = 77
DEADLINE = 1.0  # of faults; ranks report at most a second later
MESSAGE = re.compile(r"^rank (\d+): after ([0-9.]+): (.*)$", re.M)


def environment(**more):
    settings = {  # as root, and with more ranks than processors
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_plm": "isolated"}
    return {**os.environ, **settings, **more}


def processes(program):
    """Numbers of the processes that run the program, without those that are only waiting to be collected."""
    found = set()
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == program.encode():
            found.add(int(folder.name))
    return found


def shared_memory():
    folder = pathlib.Path("/dev/shm")
    return set(os.listdir(folder)) if folder.is_dir() else set()


def in_use():
    """Files of shared memory that a process has: another group's, of somebody else."""
    found = set()
    for maps in pathlib.Path("/proc").glob("[0-9]*/maps"):
        try:
            found |= set(re.findall(r"/dev/shm/(.+)$", maps.read_text(errors="replace"), re.M))
        except OSError:
            continue
    return found


def run(mpirun, options, n, program, arguments, **more):
    """What the ranks printed, the launcher's exit code, and what was wrong with the end."""
    before, memory = processes(program), shared_memory()
    began = time.monotonic()
    launched = subprocess.Popen([mpirun, *options, "-np", str(n), program, *arguments], env=environment(**more),
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    faults = []
    try:
        text, _ = launched.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        faults.append("the launcher did not return")
        for pid in processes(program) - before:
            os.kill(pid, 9)
        launched.kill()
        text, _ = launched.communicate()
    until = time.monotonic() + 5
    while True:  # files of another group that comes or goes are in nobody's maps for a moment: one good look is enough
        running, files = processes(program) - before, shared_memory() - memory - in_use()
        if not running and not files or time.monotonic() > until:
            break
        time.sleep(0.02)
    if running:
        faults.append(f"processes are left: {sorted(running)}")
    if files:
        faults.append(f"left in shared memory: {sorted(files)}")
    return text, launched.returncode, faults, time.monotonic() - began


def report(name, faults, text, seconds):
    print(f"{name}: {'; '.join(faults) if faults else 'ok'} ({seconds:.2f} s)", flush=True)
    if faults:
        print(text, flush=True)
    return bool(faults)


def exchange(program):
    failed = False
    for n in (1, 2, 3, 4, 8):
        text, code, faults, seconds = run(os.environ["MPIRUN"], [], n, program, ["exchange"])
        good = sorted(int(r) for r in re.findall(rf"^rank (\d+) of {n}, {n} on each node, over mpi \(.*\): good$", text, re.M))
        if good != list(range(n)):
            faults.append(f"good on ranks {good} of {n}")
        if code:
            faults.append(f"the launcher returned {code}")
        failed |= report(f"exchange of {n} ranks", faults, text, seconds)
    text, code, faults, seconds = run(os.environ["MPIRUN"], [], 4, program, ["exchange"], MOEC_RANKS_PER_NODE="2")
    if code or text.count("of 4, 2 on each node") != 4:
        faults.append("MOEC_RANKS_PER_NODE was not followed")
    failed |= report("two nodes by decree", faults, text, seconds)
    text, code, faults, seconds = run(os.environ["MPIRUN"], [], 4, program, ["exchange"], MOEC_RANKS_PER_NODE="3")
    if not code or "MOEC_RANKS_PER_NODE is '3': give a divisor of the 4 ranks" not in text:
        faults.append("no error about it")
    failed |= report("nodes that do not divide", faults, text, seconds)
    return failed


def rows(program):
    """Dispatches of expert parallelism: rows.c."""
    failed = False
    for n in (1, 2, 3, 4, 8):
        text, code, faults, seconds = run(os.environ["MPIRUN"], [], n, program, ["60"])
        if code or "60 cases" not in text:
            faults.append(f"the launcher returned {code}")
        failed |= report(f"rows between {n} ranks", faults, text, seconds)
    return failed


# What the survivors say, and whether somebody has to wait for the deadline first.
FAULTS = {
    "kill": (r"rank \d waited .* rank {who}\b.* in step {step}", True),
    # its bytes may have left already: then some go on, and wait for those who noticed
    "kill_between": (r"rank \d waited .* in step {step}", True),
    "stop": (r"rank \d waited .* rank {who}\b.* in step {step}", True),
    "stop_between": (r"rank \d waited .* in step {step}", True),
    "less": (r"rank {who} sends \d+ bytes where \d+ were expected", False),
    "more": (r"rank {who} sends \d+ bytes where \d+ were expected", False),
    "nothing": (r"rank \d waited .* in step {step}", True),  # then both wait for each other
    "model": (r"model 0+5678|model 0+1234", False),
    "epoch": (r"placement [12]\b|epoch [12]\b", False),
    "step": (r"\bstep {step}\b.*\bstep 2\b|\bstep 2\b.*\bstep {step}\b", False),
    "abort": (r"rank {who} gave up: out of patience in step {step}", False),
    "leave": (r"rank {who} has left the group", False),
}
RECOVER = ["--enable-recovery"]
# kind, who, step, place, launcher's options, ranks
CASES = [
    ("kill", 1, 2, "records", RECOVER, 3), ("kill", 0, 0, "rows", [], 3), ("kill", 2, 3, "large", RECOVER, 3),
    ("kill", 3, 1, "gather", RECOVER, 4), ("kill_between", 0, 2, "large", RECOVER, 3),
    ("stop", 0, 2, "records", [], 3), ("stop", 1, 0, "rows", RECOVER, 3), ("stop", 1, 1, "gather", RECOVER, 2),
    ("stop_between", 1, 3, "large", RECOVER, 3), ("nothing", 1, 1, "rows", RECOVER, 2),
    ("less", 1, 1, "rows", [], 3), ("more", 2, 0, "rows", RECOVER, 3), ("less", 0, 3, "large", RECOVER, 3),
    ("model", 1, 1, "records", [], 3), ("epoch", 0, 2, "gather", RECOVER, 3), ("step", 2, 1, "records", RECOVER, 3),
    ("abort", 1, 3, "large", RECOVER, 3), ("leave", 0, 1, "rows", RECOVER, 3),
]


def check_fault(text, n, kind, who, step, place, survivors_live):
    if kind.startswith("kill") and not survivors_live:  # the launcher ends the others within a second, and says why
        return [] if f"noticed that process rank {who} " in text else ["the launcher does not name the rank"]
    pattern, waits = FAULTS[kind]
    said = {int(rank): (float(after), message) for rank, after, message in MESSAGE.findall(text)}
    faults = []
    for rank in range(n):
        if rank == who:
            continue
        if rank not in said:
            faults.append(f"rank {rank} said nothing")
            continue
        after, message = said[rank]
        if not re.search(pattern.format(who=who, step=step), message):
            faults.append(f"rank {rank} says: {message}")
        if not waits and "gave up: out of patience" not in message and place not in message:
            faults.append(f"rank {rank} does not name '{place}': {message}")
        if after > (DEADLINE if waits else 0) + 1:
            faults.append(f"rank {rank} said it after {after:.2f} s")
    if not any(re.search(rf"rank {who}\b", message) for rank, (_, message) in said.items() if rank != who):
        faults.append("nobody names the rank")
    return faults


def faults(program):
    failed = False
    for kind, who, step, place, options, n in CASES:
        arguments = ["fault", kind, str(who), str(step), place, str(DEADLINE)]
        text, code, wrong, seconds = run(os.environ["MPIRUN"], options, n, program, arguments)
        wrong += check_fault(text, n, kind, who, step, place, options == RECOVER)
        if not options and not code:
            wrong.append("the launcher returned 0")
        failed |= report(f"{kind} of rank {who} in step {step}, {place}, {n} ranks {' '.join(options)}", wrong, text, seconds)
    return failed


def launchers(program):
    """A backend under the launcher of another MPI; no backend; and that other MPI under its own."""
    failed = False
    text, code, wrong, seconds = run(os.environ["MPIRUN"], [], 2, program, ["exchange"], MOEC_COMM_MPI="/nowhere/none.so")
    if not code or "no group (not found): " not in text or "/nowhere/none.so" not in text:
        wrong.append("no error about the backend's file")
    failed |= report("a backend that is not there", wrong, text, seconds)
    other, mpirun = os.environ.get("MOEC_COMM_MPICH"), os.environ.get("MPIRUN_MPICH")
    if not other or not mpirun:
        print("skipped: MPICH is not installed (Debian: apt install mpich libmpich-dev)")
        return failed
    for launcher, backend in ((mpirun, os.environ["MOEC_COMM_MPI"]), (os.environ["MPIRUN"], other)):
        text, code, wrong, seconds = run(launcher, [], 2, program, ["exchange"], MOEC_COMM_MPI=backend)
        if not code or not re.search(r"no group \(mismatch\): .*says that 2 processes were started", text):
            wrong.append("no error about the launcher")
        failed |= report(f"{backend.rsplit('/')[-1]} under {launcher}", wrong, text, seconds)
    text, code, wrong, seconds = run(mpirun, [], 2, program, ["exchange"], MOEC_COMM_MPI=other)
    if code or len(re.findall(r"over mpi \(MPICH .*\): good$", text, re.M)) != 2:
        wrong.append(f"the launcher returned {code}")
    failed |= report("MPICH, 2 ranks", wrong, text, seconds)
    return failed


def namespaces(program):
    """Ranks on hosts with links between them; a host whose link is cut."""
    script = str(pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "ep_namespaces.sh")
    failed = False
    for hosts, each in ((2, 2), (4, 1)):
        n = hosts * each
        before, began = processes(program), time.monotonic()
        done = subprocess.run([script, str(hosts), str(each), "2gbit", program, "exchange"], env=environment(),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        if done.returncode == SKIP:
            print(done.stdout.strip())
            sys.exit(SKIP)
        wrong = [] if done.returncode == 0 else [f"returned {done.returncode}"]
        if len(re.findall(rf"^rank \d of {n}, {each} on each node, over .*: good$", done.stdout, re.M)) != n:
            wrong.append("not every rank is good")
        if processes(program) - before:
            wrong.append("processes are left")
        failed |= report(f"exchange of {hosts} hosts of {each}", wrong, done.stdout, time.monotonic() - began)
    return failed | cut(script, program)


def cut(script, program):
    """Open MPI's launcher never returns when it cannot reach a host, so it is ended once the others have spoken."""
    before, began = processes(program), time.monotonic()
    started = subprocess.Popen([script, "3", "1", "0", program, "fault", "cut", "2", "1", "rows", str(DEADLINE)],
                               env=environment(MPIRUN_OPTIONS="--enable-recovery"), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = ""
    timer = threading.Timer(60, started.terminate)
    timer.start()
    while len(MESSAGE.findall(text)) < 2 and (line := started.stdout.readline()):
        text += line
    timer.cancel()
    time.sleep(0.5)
    started.terminate()
    text += started.communicate()[0]
    pattern = r"rank \d waited .* rank 2 in step 1"
    said = {int(rank): (float(after), message) for rank, after, message in MESSAGE.findall(text)}
    wrong = [f"rank {r} said {said.get(r)}" for r in (0, 1)
             if r not in said or said[r][0] > DEADLINE + 1 or not re.search(pattern, said[r][1])]
    until = time.monotonic() + 5
    while time.monotonic() < until and processes(program) - before:
        time.sleep(0.02)
    if processes(program) - before:
        wrong.append("processes are left")
    return report("a host whose link is cut", wrong, text, time.monotonic() - began)


def main():
    program, part = sys.argv[1:]
    if not os.environ.get("MOEC_COMM_MPI") or not os.environ.get("MPIRUN"):
        print("skipped: there is no MPI here (Debian: apt install openmpi-bin libopenmpi-dev), or it was configured off")
        sys.exit(SKIP)
    sys.exit({"exchange": exchange, "rows": rows, "faults": faults, "launchers": launchers,
              "namespaces": namespaces}[part](program))


if __name__ == "__main__":
    main()
