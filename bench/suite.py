"""The benchmark suite, on the server that bench/run.sh started: rounds, one table, JSON and a chart per benchmark."""

import argparse
import datetime
import os
import subprocess
import sys
import time
import traceback

from harness import chart, report
from harness.server import CORES, PLACEMENTS, Server
from harness.suite import run_rounds

import cases


def processor():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "processor unknown"


def memory_gb():
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 ** 30)


def busy_share(seconds=1.0):
    """How much of the processors is in use while the suite does nothing."""
    def ticks():
        with open("/proc/stat", encoding="ascii") as f:
            values = list(map(int, f.readline().split()[1:]))
        return sum(values), values[3] + values[4]

    all_before, idle_before = ticks()
    time.sleep(seconds)
    all_after, idle_after = ticks()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def environment(server, options):
    """What figures depend on."""
    version = server.value("SHOW server_version").split()[0]
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    busy = busy_share()
    return {
        "note": f"other work took {busy:.0%} of the processors" if busy > 0.1 else "",
        "machine": f"{len(CORES)} core{'s' if len(CORES) != 1 else ''} ({processor()}), {memory_gb()} GB",
        "kernel": os.uname().release,
        "postgresql": version,
        "subdispatch": options.commit or server.value("SELECT extversion FROM pg_extension WHERE extname = 'subdispatch'"),
        "redis": redis.split("v=")[1].split()[0],
        "python": sys.version.split()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rounds": options.rounds,
        "quick": options.quick,
    }


def show_settings(server):
    rows = server.execute("""SELECT name, current_setting(name), boot_val FROM pg_settings
                             WHERE name ~ '^(fsync|synchronous_commit|shared_buffers|max_wal_size|max_connections|wal_level|jit)$'
                                OR name LIKE 'subdispatch.%' AND setting IS DISTINCT FROM boot_val ORDER BY 1""").fetchall()
    print("Settings: " + ", ".join(f"{name} = {value}" for name, value, _ in rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--bindir", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--results", required=True)
    options = parser.parse_args()
    wanted = options.bench.replace(",", " ").split() or list(cases.ALL)
    unknown = [name for name in wanted if name not in cases.ALL]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(cases.ALL)}")

    server = Server(options.bindir, options.source)
    server.configure({})
    for extension in ("plpython3u", "jsonb_plpython3u", "subdispatch"):
        server.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    env = environment(server, options)
    print("; ".join(f"{k} {v}" for k, v in env.items() if v != ""))
    show_settings(server)

    results, failed = [], []
    for name in wanted:
        benchmark = cases.ALL[name](server, options.quick, 0.3 if options.quick else options.seconds)
        print(f"== {name}: {benchmark.title}. Placement: {benchmark.placement}", flush=True)
        try:
            result = report.as_dict(run_rounds(benchmark, options.rounds), env)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            server.current = None       # the next one gets a fresh server
            continue
        report.write(result, options.results)
        chart.write(result, options.results)
        results.append(result)

    server.stop()
    print()
    for place, (client, backends, dispatchers) in PLACEMENTS.items():
        print(f"Placement \"{place}\": load generator on {sorted(client)}, server on {sorted(backends)}, "
              f"dispatchers on {sorted(dispatchers)}")
    print()
    print("\n".join(report.table(results)))
    print()
    print("\n".join(report.target_lines(results)))
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
