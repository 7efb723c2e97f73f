"""A pgbench that is let run for a slice of time now and then, so that many short turns of several loads can be compared.

Connecting, the first plans and the first rows of a table cost more than what a benchmark is to tell apart, and the disk's speed
changes within seconds. So every load keeps its connections and its consumer for the whole benchmark, stopped (SIGSTOP) but
for its slices. What its consumer has not read when a slice ends is read before the next one begins.
"""

import glob
import mmap
import os
import signal
import subprocess
import time

from .server import BenchError

READ_SECONDS = 60           # for what is left to be read after a slice
LAST_COMMITS = 0.05         # after a stop: for the transactions that are under way


def switches(pid, kind):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith(kind))


class Drain:
    """A consumer (bench/src/drain.c), whose count of deliveries can be read at any time."""

    def __init__(self, server, way, name, env=None):
        path = os.path.join(os.environ["TMPDIR"], f"drain_{name}_{os.path.basename(server.directory)}")
        with open(path, "wb") as f:
            f.write(bytes(8))
        self.application = f"drain_{name}"
        self.process = server.start("drain", way, 1, path, env={**(env or {}), "BENCH_NAME": name, "PGAPPNAME": self.application})
        with open(path, "rb") as f:
            self.count_ = mmap.mmap(f.fileno(), 8, access=mmap.ACCESS_READ)

    def count(self):
        return int.from_bytes(self.count_[:8], "little")

    def wait(self, count):
        deadline = time.monotonic() + READ_SECONDS
        while self.count() < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self.count()} of {count} deliveries were read within {READ_SECONDS} s")
            time.sleep(0.002)


class Load:
    """clients connections that run a script; rows is SQL for how many transactions there were; drain may be None.

    A slice gives figures: tps, p50 and p99 in ms, read (the share that was read at its end), and per transaction, with all that
    is read afterwards, the processor time in µs of everything (cpu), of the load's backends, of all other processes of the
    server, of the dispatchers, of the consumer with its backend, the backends' context switches, and how often the dispatchers
    went to sleep.
    """

    def __init__(self, server, name, script, rows, clients, threads=2, drain=None, deliveries=1, env=None):
        self.server, self.rows, self.drain, self.deliveries = server, rows, drain, deliveries
        self.prefix = os.path.join(os.environ["TMPDIR"], f"load_{name}_{os.path.basename(server.directory)}")
        for old in glob.glob(self.prefix + "*_log.*"):
            os.unlink(old)
        with open(self.prefix + ".sql", "w", encoding="ascii") as f:
            f.write(script)
        self.application = f"load_{name}"
        self.process = server.start("/usr/bin/env", "pgbench", "-n", "-M", "prepared", "-c", clients, "-j", threads, "-T", 86400,
                                    "-f", self.prefix + ".sql", "-l", "--log-prefix", self.prefix + "_log",
                                    env={**(env or {}), "PGAPPNAME": self.application})
        self.logs = {}
        server.wait_until(f"SELECT count(*) = {clients} FROM pg_stat_activity WHERE application_name = '{self.application}'",
                          f"{clients} connections of pgbench")
        time.sleep(0.2)         # first plans and rows
        self.signal(signal.SIGSTOP)
        time.sleep(LAST_COMMITS)
        self.backends = self.pids(self.application)
        self.consumers = []
        self.read_all()
        if drain:
            self.consumers = [drain.process.pid, *self.pids(drain.application)]
            drain.process.send_signal(signal.SIGSTOP)

    def pids(self, application):
        return [pid for (pid,) in self.server.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [application])]

    def signal(self, number):
        if self.process.poll() is not None:
            raise BenchError(f"pgbench has ended, with status {self.process.returncode}")
        self.process.send_signal(number)

    def read_all(self):
        """Waits until everything is read; returns how many transactions there were."""
        rows = self.server.value(self.rows)
        if self.drain:
            self.drain.wait(rows * self.deliveries)
        return rows

    # --- measuring

    def cpu(self, pids):
        return sum(self.server.cpu_seconds(pids).values())

    def processor_times(self):
        ours = [*self.threads(self.process.pid), *self.consumers]
        processes = set(self.server.processes())
        return {"cpu": self.cpu(processes | set(ours)), "backends": self.cpu(self.backends), "others": self.cpu(processes - set(self.backends)),
                "dispatchers": self.cpu(self.server.dispatchers()), "consumer": self.cpu(self.consumers)}

    @staticmethod
    def threads(pid):
        return [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]

    def switches(self):
        """Context switches of the backends, and how often the dispatchers went to sleep."""
        return {"switches": sum(switches(pid, "voluntary_ctxt") + switches(pid, "nonvoluntary_ctxt") for pid in self.backends),
                "sleeps": sum(switches(pid, "voluntary_ctxt") for pid in self.server.dispatchers())}

    def latencies(self, begin, end):
        """Of the transactions that began and ended in the slice, in ms, sorted; the log's last lines may still be in pgbench."""
        found = []
        for path in glob.glob(self.prefix + "_log.*"):
            with open(path, encoding="ascii") as f:
                f.seek(self.logs.get(path, 0))
                text = f.read()
            whole = text.rfind("\n") + 1
            self.logs[path] = self.logs.get(path, 0) + whole
            for line in text[:whole].splitlines():
                fields = line.split()
                ended, took = int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1e6
                if begin <= ended - took and ended <= end:
                    found.append(took * 1000)
        return sorted(found)

    def slice(self, seconds):
        rows = self.read_all()
        times, before = self.processor_times(), self.switches()
        if self.drain:
            self.drain.process.send_signal(signal.SIGCONT)
        begin, started = time.time(), time.monotonic()
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)
        took, end = time.monotonic() - started, time.time()
        read = self.drain.count() if self.drain else None
        time.sleep(LAST_COMMITS)
        all_rows = self.read_all()
        made = all_rows - rows
        if made == 0:
            raise BenchError(f"no transaction within {seconds} s")
        figures = {"tps": made / took}
        for key, value in self.switches().items():
            figures[key] = (value - before[key]) / made
        for key, value in self.processor_times().items():
            figures[key] = (value - times[key]) * 1e6 / made
        if self.drain is None:
            del figures["consumer"]
        else:
            self.drain.process.send_signal(signal.SIGSTOP)
            figures["read"] = 1 - (all_rows - read / self.deliveries) / made
        latencies = self.latencies(begin, end)
        if latencies:
            figures["p50"] = latencies[len(latencies) // 2]
            figures["p99"] = latencies[len(latencies) * 99 // 100]
        return figures

    def end(self):
        for process in (self.process, self.drain.process if self.drain else None):
            if process is None:
                continue
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
