"""The main job on two servers of one group: make demo SERVERS=2.

Two independent servers with pgbench's tables use the Redis bus. pgbench runs on both at once, and on each a consumer drains
subscriptions to what either of them commits. In the end every committed row of each server must have reached every
subscription that it matches on both servers, exactly once, with the same event id and the same bytes, in the same order;
and each account's changes in the order of their commits.

A row says which server it is of: in pgbench's column "filler". As in the demo with one server, what is read goes to files,
which PostgreSQL compares with what was committed. Ids that rise on each server, and are the same on both, are in one order.
"""

import datetime
import os
import queue
import threading
import time
import zlib
from contextlib import closing

import psycopg2

from common import (CONSUMER, SETUP, Delays, Ledger, Pgbench, Problems, argument_parser, conclude, connect, number, phone, plain, polled, run,
                    run_demo, subscribe)

SERVERS = ("a", "b")
SUBSCRIPTIONS = [
    plain("history", "history", {}, "true"),
    plain("deposits", "history", {"row.delta": {"gt": 0}}, "delta > 0"),
    plain("accounts", "accounts", {}, "true"),
    plain("everything", "*", {}, "true"),
    phone(1, "USD"),
    phone(2, "EUR"),
]
PINGS = 200

COMPARISON = """
CREATE UNLOGGED TABLE demo.received (server text, subscription int, event_id bigint, response bigint,
  origin text, tid int, bid int, aid int, delta int, mtime timestamp);
CREATE UNLOGGED TABLE demo.committed (origin text, tid int, bid int, aid int, delta int, mtime timestamp);
"""


class Server:
    """One server, and the consumer that drains its subscriptions, in a thread of its own."""

    def __init__(self, name, host, problems):
        self.name = name
        self.host = host
        self.problems = problems
        self.ledgers = {s.name: Ledger(i, s, problems) for i, s in enumerate(SUBSCRIPTIONS)}
        self.received_path = os.path.join(os.environ["TMPDIR"], "received-" + name)
        self.received = open(self.received_path, "w", encoding="ascii")
        self.gateway = connect(host)
        self.observer = connect(host)
        self.all_is_there = threading.Event()       # what is to be read can be read
        self.thread = threading.Thread(target=self.consume, daemon=True)
        # of the rows that were committed on each server, in microseconds
        self.since_start = {origin: Delays() for origin in SERVERS}
        self.since_id = {origin: Delays() for origin in SERVERS}

    def set_up(self, scale):
        run("pgbench", "-i", "-q", "-s", str(scale), "-h", self.host)
        self.query("UPDATE pgbench_accounts SET filler = %s", self.name)
        self.query("ALTER TABLE pgbench_history ALTER filler SET DEFAULT %s", self.name)
        self.query("VACUUM ANALYZE pgbench_accounts")
        self.query(SETUP)

    def subscribe(self):
        with self.gateway.cursor() as cursor:
            subscribe(cursor, SUBSCRIPTIONS)

    def query(self, text, *parameters):
        """Rows, if the statement returns any."""
        with self.observer.cursor() as cursor:
            cursor.execute(text, parameters or None)
            return cursor.fetchall() if cursor.description else None

    def responses(self):
        return sum(l.responses for l in self.ledgers.values())

    def consume(self):
        try:
            last = False
            while not last:
                with self.gateway.cursor() as cursor:
                    cursor.execute("CALL subdispatch.await_responses(%s, '500ms')", (CONSUMER,))
                last = self.all_is_there.is_set()
                self.drain()
        except Exception as error:      # nobody else would see it
            self.problems.add("the consumer on server %s failed: %r" % (self.name, error))
        finally:
            self.received.close()

    def drain(self):
        """Reads until there is nothing more."""
        for rows in polled(self.gateway):
            now = time.time() * 1e6
            for name, connection_id, operation_id, event_id, dropped, response in rows:
                ledger = self.ledgers[name]
                row = ledger.take(connection_id, operation_id, event_id, dropped, response)
                self.write(ledger.number, event_id, response, row)
                if name == "history" and row is not None:
                    self.measure(now, event_id, row)

    def write(self, subscription, event_id, response, row):
        if row is None:
            columns = ["\\N"] * 6
        else:
            columns = [str(row["filler"]).strip()] + [row[c] for c in ("tid", "bid", "aid", "delta", "mtime")]
        self.received.write("%s\t%d\t%s\t%d\t%s\n" % (
            self.name, subscription, "\\N" if event_id is None else event_id, zlib.crc32(response.encode()),
            "\t".join(map(str, columns))))

    def measure(self, now, event_id, row):
        # mtime is the start of the transaction, an event's id the microsecond in which Redis gave it.
        origin = str(row["filler"]).strip()
        started = datetime.datetime.fromisoformat(row["mtime"]).replace(tzinfo=datetime.timezone.utc)
        self.since_start[origin].add(now - started.timestamp() * 1e6)
        self.since_id[origin].add(now - event_id)


class Demo:
    def __init__(self, options):
        self.options = options
        self.problems = Problems()
        self.servers = [Server(name, host, self.problems) for name, host in zip(SERVERS, options.host)]
        self.first = self.servers[0]

    def set_up(self):
        for server in self.servers:
            server.set_up(self.options.scale)
        self.first.query(COMPARISON)
        for server in self.servers:
            server.subscribe()

    # -------------------------------------------------------------- the work

    def work(self):
        """Runs pgbench on both, and drains both until everything that was committed is dispatched and read."""
        start = time.monotonic()
        runs = [Pgbench(self.options.duration, self.options.clients, s.host) for s in self.servers]
        try:
            for server in self.servers:
                server.thread.start()
            next_line = 2
            while any(r.running() for r in runs):
                time.sleep(0.1)
                seconds = time.monotonic() - start
                if seconds >= next_line:
                    self.progress(seconds)
                    next_line += 2
                if seconds > self.options.duration + 120:
                    raise RuntimeError("pgbench did not end")
        finally:
            for r in runs:
                r.kill()
        self.wait_dispatched()
        for server in self.servers:
            server.all_is_there.set()
        for server in self.servers:
            server.thread.join(120)
            if server.thread.is_alive():
                raise RuntimeError("the consumer on server %s did not come to an end" % server.name)
        self.progress(time.monotonic() - start)
        self.tps = {s.name: r.tps() for s, r in zip(self.servers, runs)}

    def wait_dispatched(self):
        # The first server cannot know what the second has yet to send; after the second has waited, it is all in Redis.
        for server in self.servers + [self.first]:
            if not server.query("SELECT subdispatch.wait_dispatched('60s')")[0][0]:
                self.problems.add("server %s: not all that was committed was dispatched within 60 s after pgbench's end"
                                  % server.name)

    def progress(self, seconds):
        parts = []
        for server in self.servers:
            events, pending = server.query("SELECT s.events_dispatched, c.pending FROM subdispatch.stats s,"
                                           " subdispatch.consumers c WHERE c.consumer = %s", CONSUMER)[0]
            parts.append("%s: %9s events %10s read %8s pending" % (
                server.name, number(events), number(server.responses()), number(pending)))
        print("%4.0f s   %s" % (seconds, "   ".join(parts)))

    # ------------------------------------------------------------- the check

    def check(self):
        for server in self.servers:
            path = os.path.join(os.environ["TMPDIR"], "committed-" + server.name)
            server.query("COPY (SELECT %s, tid, bid, aid, delta, mtime FROM pgbench_history) TO %s", server.name, path)
            self.first.query("COPY demo.committed FROM %s", path)
            self.first.query("COPY demo.received FROM %s", server.received_path)
        self.first.query("CREATE INDEX ON demo.received (server, subscription); ANALYZE demo.received, demo.committed")
        self.dispatched = {s.name: s.query("SELECT events_dispatched FROM subdispatch.stats")[0][0] for s in self.servers}
        self.committed = dict(self.first.query("SELECT origin, count(*) FROM demo.committed GROUP BY origin"))
        self.expected = {}
        for subscription in SUBSCRIPTIONS:
            self.expected[subscription.name] = self.check_subscription(subscription)
        self.check_ids()
        for server in self.servers:
            if not self.committed.get(server.name):
                self.problems.add("server %s: pgbench committed nothing" % server.name)
            self.check_server(server)

    def check_subscription(self, s):
        """How many responses it must have had on either server."""
        (n,) = self.first.query("SELECT count(*) FROM demo.committed WHERE " + s.matches)[0]
        expected = 0
        if s.channel in ("history", "*"):
            expected += n
            for server in self.servers:
                self.check_history(server, s)
        if s.channel in ("accounts", "*"):
            expected += n
            # "matches" holds aid alone or nothing, so it is a condition on both tables.
            balances = [row for server in self.servers for row in server.query(
                "SELECT filler, aid, abalance FROM pgbench_accounts WHERE abalance <> 0 AND (%s)" % s.matches)]
            for server in self.servers:
                ledger = server.ledgers[s.name]
                if ledger.account_changes != n:
                    self.problems.add("%s on server %s: %d account changes expected, %d received"
                                      % (s.name, server.name, n, ledger.account_changes))
                ledger.check_balances(balances)
        for server in self.servers:
            read = server.ledgers[s.name].responses
            if read != expected:
                self.problems.add("%s on server %s: %d responses expected, %d read" % (s.name, server.name, expected, read))
        return expected

    def check_history(self, server, s):
        committed = "SELECT origin, tid, bid, aid, delta, mtime FROM demo.committed WHERE " + s.matches
        received = ("SELECT origin, tid, bid, aid, delta, mtime FROM demo.received WHERE server = '%s' AND subscription = %d"
                    " AND origin IS NOT NULL" % (server.name, server.ledgers[s.name].number))
        where = "%s on server %s" % (s.name, server.name)
        self.none(where + ": committed, and not received", committed, received)
        self.none(where + ": received, and not committed (or not so often)", received, committed)

    def check_ids(self):
        a, b = ["SELECT subscription, event_id, response FROM demo.received WHERE server = '%s'" % s for s in SERVERS]
        self.none("received on a, and not with this id and these bytes on b", a, b)
        self.none("received on b, and not with this id and these bytes on a", b, a)
        # An event has one id, whatever subscription sees it.
        one, other, star = [self.first.ledgers[n].number for n in ("history", "accounts", "everything")]
        parts = "SELECT event_id FROM demo.received WHERE server = 'a' AND subscription IN (%d, %d)" % (one, other)
        whole = "SELECT event_id FROM demo.received WHERE server = 'a' AND subscription = %d" % star
        self.none("in its channel, and not under this id in *", parts, whole)
        self.none("in *, and not under this id in its channel", whole, parts)

    def none(self, what, query, other):
        """What a query returns and another does not is a problem."""
        n, example = self.first.query("SELECT count(*), min(d::text) FROM (%s EXCEPT ALL %s) AS d" % (query, other))[0]
        if n:
            self.problems.add("%s: %d rows, for example %s" % (what, n, example))

    def check_server(self, server):
        for counter in ("responses_dropped", "resolver_errors", "resolver_timeouts", "bad_envelopes", "bus_repeated",
                        "denied_image"):
            (value,) = server.query("SELECT %s FROM subdispatch.stats" % counter)[0]
            if value != 0:
                self.problems.add("server %s: %s is %d" % (server.name, counter, value))
        if any(server.query("SELECT sum(pending), sum(dropped), sum(errors), count(*) FILTER (WHERE state <> 'active')"
                            " FROM subdispatch.subscriptions")[0]):
            self.problems.add("server %s: a subscription has something pending, dropped or failed, or has ended" % server.name)
        ((health,),) = server.query("SELECT subdispatch.health()")
        if health["status"] != "ok":
            self.problems.add("server %s: health() is %s" % (server.name, health))

    # ------------------------------------------------------- without a load

    def ping(self, writer, reader):
        """From before a commit on one server until its response was read on another, one at a time."""
        arrived = queue.Queue()
        done = threading.Event()
        delays = Delays()

        def wait(connection):
            try:
                with connection.cursor() as cursor:
                    while not done.is_set():
                        cursor.execute("CALL subdispatch.await_responses('ping', '1s')")
                        cursor.execute("SELECT response FROM subdispatch.poll('ping')")
                        for (response,) in cursor.fetchall():
                            arrived.put((time.monotonic(), response))
            except psycopg2.Error as error:
                arrived.put((0, str(error)))

        # "with connection" alone would be a transaction
        with closing(connect(writer.host)) as publisher, closing(connect(reader.host)) as consumer, \
                publisher.cursor() as cursor:
            with consumer.cursor() as c:
                c.execute("SELECT subdispatch.subscribe('ping', id => 'ping', consumer => 'ping')")
            thread = threading.Thread(target=wait, args=(consumer,), daemon=True)
            thread.start()
            for i in range(PINGS):
                time.sleep(0.005)       # the reader waits again
                start = time.monotonic()
                cursor.execute("SELECT subdispatch.publish('ping', to_jsonb(%s))", (i,))
                try:
                    end, response = arrived.get(timeout=30)
                except queue.Empty:
                    raise RuntimeError("ping %d from server %s did not arrive on %s" % (i, writer.name, reader.name)) from None
                if response != '{"type":"next","id":"ping","payload":{"data":%d,"errors":null}}' % i:
                    raise RuntimeError("not the ping that was expected: " + response)
                delays.add((end - start) * 1e6)
            done.set()
            thread.join()               # when it has waited for its second
            with consumer.cursor() as c:
                c.execute("SELECT subdispatch.close_consumer('ping')")
        return delays

    # ------------------------------------------------------------ the report

    def report(self, pings):
        print()
        for server in self.servers:
            print("server %s   %s transactions (%s a second); %s events dispatched, %s responses read" % (
                server.name, number(self.committed.get(server.name, 0)), number(self.tps[server.name]),
                number(self.dispatched[server.name]), number(server.responses())))
        print()
        print("under this load, in microseconds until the read:")
        for server in self.servers:
            for origin in SERVERS:
                print("  committed on %s, read on %s   since the transaction's start: %s; since its event got its id: %s" % (
                    origin, server.name, server.since_start[origin], server.since_id[origin]))
        print("without load, one at a time, from before the commit:")
        for (origin, reader), delays in pings.items():
            print("  committed on %s, read on %s   %s" % (origin, reader, delays))
        print()
        print("%-12s %-9s %26s %12s %12s" % ("subscription", "channel", "changes committed on a, b", "read on a", "read on b"))
        for s in SUBSCRIPTIONS:
            print("%-12s %-9s %26s %12s %12s" % (
                (s.name, s.channel, number(self.expected[s.name]))
                + tuple(number(server.ledgers[s.name].responses) for server in self.servers)))
        return conclude([(server.name + ": ", server.ledgers["history"]) for server in self.servers], self.problems, [
            "every committed row of each server reached every subscription that it matches on both servers, exactly once,",
            "with the same event id and the same bytes, in the same order on both;",
            "each account's changes came in the order of their commits."])


def main():
    parser = argument_parser()
    parser.add_argument("host", nargs=len(SERVERS), help="of each server, the directory of its socket")
    options = parser.parse_args()
    demo = Demo(options)
    demo.set_up()
    print("== pgbench with %d clients on each of two servers for %d s; %d subscriptions and a consumer on each" % (
        options.clients, options.duration, len(SUBSCRIPTIONS)))
    demo.work()
    print("== comparing what was received with what was committed")
    demo.check()
    a, b = demo.servers
    return demo.report({(w.name, r.name): demo.ping(w, r) for w, r in ((a, b), (b, a))})


if __name__ == "__main__":
    run_demo(main)
