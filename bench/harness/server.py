"""The throw-away server that bench/run.sh started, and the placement of processes on processors.

Round trips differ fourfold between one core and two, so every benchmark says where its processes run:

    one core     everything on one core
    two cores    the load generator on one, the server with its workers on the other
    apart        the dispatchers (or what does their work elsewhere) on one core, everything else on the other
    free         wherever the kernel puts them
"""

import json
import os
import subprocess
import sys
import time

import psycopg

CORES = sorted(os.sched_getaffinity(0))
FIRST, SECOND, ALL = {CORES[0]}, {CORES[-1]}, set(CORES)

#                (load generator, server, dispatchers)
PLACEMENTS = {
    "one core": (FIRST, FIRST, FIRST),
    "two cores": (FIRST, SECOND, SECOND),
    "apart": (FIRST, FIRST, SECOND),
    "free": (ALL, ALL, ALL),
}

# A server of some size, on which commits wait for the disk. Nothing is tuned beyond what keeps one benchmark's checkpoints
# and limits out of another's figures.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "300",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "subdispatch.shared_memory_size": "1GB",
    "subdispatch.max_subscriptions": "200000",
    "subdispatch.max_subscriptions_per_role": "0",
    "subdispatch.context_settings": "bench.identity",
    "subdispatch.subscription_idle_timeout": "0",
    # every NOTIFY wakes every session of its database that LISTENs: the dispatchers would be a load of NOTIFY's own figures
    "subdispatch.listen_channels": "",
    # consumers may fall behind for as long as a benchmark runs
    "subdispatch.max_pending": "1000000",
    "subdispatch.max_pending_bytes": "512MB",
}


class BenchError(Exception):
    """A benchmark that could not do its work."""


class Server:
    def __init__(self, bindir, source, directory=None):
        self.bindir = bindir
        self.source = source
        self.programs = os.path.join(source, "bench", "src")
        self.here = os.path.join(source, "bench")
        self.directory = directory or os.environ["PGHOST"]
        self.data = os.path.join(self.directory, "data")
        self.current = None
        self.client = ALL
        self.db = None
        self.redis = None

    # --- the server

    def create(self):
        """A server of its own in the directory, as bench/run.sh made the first one; configure() starts it."""
        os.makedirs(self.directory, exist_ok=True)
        subprocess.run([os.path.join(self.bindir, "initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                        "--locale=C", "--no-sync", "--no-instructions"], check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(self.source, "test", "subdispatch.conf"), encoding="utf-8") as f:
            common = f.read()
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as f:
            f.write(f"{common}\nunix_socket_directories = '{self.directory}'\nport = 65432\n")

    def configure(self, settings):
        """Restarts the server if it does not run with SETTINGS and these."""
        wanted = {**SETTINGS, **settings}
        if wanted == self.current:
            return
        if self.db:
            self.db.close()
        with open(os.path.join(self.data, "postgresql.auto.conf"), "w", encoding="utf-8") as conf:
            for name, value in wanted.items():
                conf.write(f"{name} = '{value}'\n")
        # "restart" starts a server that is stopped, but none that never ran
        how = ["restart", "-m", "fast"] if os.path.exists(os.path.join(self.data, "postmaster.opts")) else ["start"]
        subprocess.run([os.path.join(self.bindir, "pg_ctl"), *how, "-D", self.data, "-t", "120", "-w",
                        "-l", os.path.join(self.directory, "server.log")],
                       check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.current = wanted
        self.db = self.connect()

    def shut_down(self):
        if self.db:
            self.db.close()
        subprocess.run([os.path.join(self.bindir, "pg_ctl"), "-D", self.data, "-m", "fast", "-t", "60", "stop"], check=False,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.current = self.db = None

    def connect(self, **options):
        connection = psycopg.connect(host=self.directory, autocommit=True, prepare_threshold=None, **options)
        connection.execute("SET client_min_messages = warning")
        return connection

    def execute(self, sql, parameters=None):
        return self.db.execute(sql, parameters)

    def value(self, sql, parameters=None):
        return self.db.execute(sql, parameters).fetchone()[0]

    def stats(self):
        """The row of subdispatch.stats, by column."""
        cursor = self.db.execute("SELECT * FROM subdispatch.stats")
        return dict(zip([column.name for column in cursor.description], cursor.fetchone()))

    def wait_dispatched(self):
        if not self.value("SELECT subdispatch.wait_dispatched('120s')"):
            raise BenchError("not everything was dispatched within 120 s")

    def wait_until(self, sql, what, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            value = self.value(sql)
            if value is True:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: not within {seconds} s, the last value is {value}")
            time.sleep(0.01)

    def start_redis(self):
        """The Redis server of pub/sub, on a Unix socket, without persistence."""
        if self.redis:
            return
        path = os.path.join(os.environ["PGHOST"], "redis.sock")
        self.redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no",
                                       "--dir", os.environ["PGHOST"], "--client-output-buffer-limit", "pubsub 0 0 0"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.environ["BENCH_REDIS"] = path
        deadline = time.monotonic() + 10
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                raise BenchError("redis-server did not start within 10 s")
            time.sleep(0.01)

    def stop(self):
        if self.redis:
            self.redis.terminate()
            self.redis.wait()

    # --- subscriptions

    def subscribe(self, count=1, consumer="bench", channel="bench", resolver=None, max_pending=None, identity=None,
                  prefix="bench", filter_=None, run_as=None):
        """A new consumer with that many subscriptions. identity and filter_ are SQL over i, the subscription's number."""
        self.execute("SELECT subdispatch.open_consumer(%s)", [consumer])
        settings = f"jsonb_build_object('bench.identity', {identity})" if identity else "NULL"
        self.execute(f"""SELECT count(subdispatch.subscribe(%s, resolver => %s::regproc, id => %s || i, consumer => %s,
                             max_pending => %s, settings => {settings}, filter => {filter_ or "'{}'"}, run_as => %s::regrole))
                         FROM generate_series(1, %s) i""",
                     [channel, resolver, prefix, consumer, max_pending, run_as, count])

    def end(self, *consumers):
        for consumer in consumers or ("bench",):
            self.execute("SELECT subdispatch.close_consumer(%s)", [consumer])

    # --- processes

    def processes(self):
        """The postmaster and its children; Redis' threads, if there is Redis."""
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as f:
            postmaster = int(f.readline())
        with open(f"/proc/{postmaster}/task/{postmaster}/children", encoding="ascii") as f:
            pids = [postmaster, *map(int, f.read().split())]
        if self.redis:
            pids += map(int, os.listdir(f"/proc/{self.redis.pid}/task"))
        return pids

    def cpu_seconds(self, pids=None):
        """Processor time of these, by process."""
        times = {}
        for pid in self.processes() if pids is None else pids:
            try:
                with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
                    times[pid] = int(f.read().split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                pass
        return times

    def dispatchers(self):
        return [pid for (pid,) in self.execute("SELECT pid FROM subdispatch.workers WHERE kind = 'dispatcher' AND pid IS NOT NULL")]

    def place(self, name):
        """Moves the server there, its backends and workers, those to come too, and what run() starts from now on."""
        client, server, dispatchers = PLACEMENTS[name]
        workers = self.dispatchers()
        self.client = client
        for pid in self.processes():
            try:
                os.sched_setaffinity(pid, dispatchers if pid in workers else server)
            except ProcessLookupError:
                pass

    def start(self, *command, cores=None, env=None):
        """A program of bench/src, or another one by its path, placed as place() says."""
        argv = [str(word) for word in command]
        if "/" not in argv[0]:
            argv[0] = os.path.join(self.programs, argv[0])
        cores = cores or self.client
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                env={**os.environ, **(env or {})}, preexec_fn=lambda: os.sched_setaffinity(0, cores))

    def finish(self, process, seconds=300):
        """What a program that was started printed: one line of JSON."""
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BenchError(f"{process.args[0]}: no end within {seconds} s") from None
        if process.returncode != 0:
            raise BenchError(f"{' '.join(process.args)}: exit status {process.returncode}")
        return json.loads(output)

    def run(self, *command, cores=None, seconds=300, env=None):
        return self.finish(self.start(*command, cores=cores, env=env), seconds)

    def run_measured(self, *command, env=None, others=()):
        """run() of a program that tells its own and its backends' processor time, and adds that of these servers' others."""
        before = [server.cpu_seconds() for server in (self, *others)]
        figures = self.run(*command, env=env)
        after = [server.cpu_seconds() for server in (self, *others)]
        for old, new in zip(before, after):
            figures["cpu_seconds"] += sum(time_ - old[pid] for pid, time_ in new.items() if pid in old)
        return figures

    def python(self, script, *arguments, cores=None):
        """Debian's Python, which has Debian's psycopg."""
        return self.run(sys.executable, "-B", os.path.join(self.here, script), *arguments, cores=cores)
