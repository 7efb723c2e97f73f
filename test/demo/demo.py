"""The main job on a workload from elsewhere: pgbench's own TPC-B tables and script.

Triggers publish every change of pgbench_accounts and pgbench_history; subscriptions with different filters, with and without
a PL/Python resolver, get their responses; one consumer drains them all while pgbench runs. In the end every committed row
must have reached every subscription that it matches, exactly once, and each account's changes in the order of their commits.

The comparison is exact and needs no memory that grows: what the consumer reads goes to a file, which PostgreSQL compares with
pgbench_history as multisets of whole rows.

If asked for, all of this goes on beside many other subscriptions of another consumer: half of them on the same channel, with
equality filters on values that no row has, the others on channels where nothing happens.
"""

import json
import os
import threading
import time

from common import (CONSUMER, SETUP, Delays, Ledger, Pgbench, Problems, argument_parser, conclude, connect, number, phone, plain, polled, run,
                    run_demo, subscribe)

RECEIVED = """
-- as on paper: what each subscription received, to be compared with what was committed
CREATE UNLOGGED TABLE demo.received (subscription int, tid int, bid int, aid int, delta int, mtime timestamp);
"""

# 10,000 in a transaction; 20 for each connection.
SUBSCRIBE_IDLE = """
SELECT count(subdispatch.subscribe(CASE WHEN n %% 2 = 0 THEN 'history' ELSE 'idle ' || n %% 1000 END,
           filter => jsonb_build_object('row.aid', -n), id => 'idle ' || n, connection_id => 'idle ' || n / 20, consumer => 'idle'))
  FROM generate_series(%s, %s) AS n
"""

SUBSCRIPTIONS = [
    plain("history", "history", {}, "true"),
    plain("teller 3", "history", {"row.tid": 3}, "tid = 3"),
    plain("deposits", "history", {"row.delta": {"gt": 0}}, "delta > 0"),
    plain("large", "history", {"or": [{"row.delta": {"gte": 4500}}, {"row.delta": {"lt": -4500}}]},
          "delta >= 4500 OR delta < -4500"),
    plain("not branch 1", "history", {"not": {"row.bid": 1}, "row.tid": {"in": [1, 2, 11, 12]}},
          "bid <> 1 AND tid IN (1, 2, 11, 12)"),
    plain("accounts", "accounts", {}, "true"),
    plain("accounts to 9999", "accounts", {"row.aid": {"lte": 9999}}, "aid <= 9999"),
    plain("everything", "*", {}, "true"),
] + [phone(n, "USD") for n in range(1, 9)] + [phone(n, "EUR") for n in range(9, 11)]


class Demo:
    def __init__(self, options):
        self.options = options
        self.problems = Problems()
        self.ledgers = {s.name: Ledger(i, s, self.problems) for i, s in enumerate(SUBSCRIPTIONS)}
        self.received_path = os.path.join(os.environ["TMPDIR"], "received")
        self.received = open(self.received_path, "w", encoding="ascii")
        self.delays = Delays()
        self.batches = 0
        self.gateway = connect()
        self.observer = connect()

    # ---------------------------------------------------------------- set-up

    def set_up(self):
        run("pgbench", "-i", "-q", "-s", str(self.options.scale))
        with self.observer.cursor() as cursor:
            cursor.execute(SETUP + RECEIVED)
        with self.gateway.cursor() as cursor:
            subscribe(cursor, SUBSCRIPTIONS)
        self.subscribe_idle(self.options.idle_subscriptions)

    def subscribe_idle(self, n):
        if n == 0:
            return
        start = time.monotonic()
        with self.observer.cursor() as cursor:
            for first in range(1, n + 1, 10000):
                cursor.execute(SUBSCRIBE_IDLE, (first, min(first + 9999, n)))
            cursor.execute("SELECT shared_memory_used FROM subdispatch.stats")
            used = cursor.fetchone()[0]
        print("== beside %s other subscriptions, which took %.1f s and %.0f bytes each" % (
            number(n), time.monotonic() - start, used / n))

    # -------------------------------------------------------------- the work

    def work(self):
        """Runs pgbench, and drains until everything that it committed is dispatched and read."""
        seconds = self.options.duration
        pgbench = Pgbench(seconds, self.options.clients)
        try:
            start = time.monotonic()
            next_line = start + 2
            dispatched = None
            while True:
                with self.gateway.cursor() as cursor:
                    cursor.execute("CALL subdispatch.await_responses(%s, '500ms')", (CONSUMER,))
                done = dispatched is not None and not dispatched.is_alive()
                self.drain()
                now = time.monotonic()
                if now >= next_line:
                    self.progress(now - start)
                    next_line = now + 2
                if done:
                    break
                if pgbench.running():
                    if now > start + seconds + 120:
                        raise RuntimeError("pgbench did not end")
                elif dispatched is None:
                    dispatched = threading.Thread(target=self.wait_dispatched)
                    dispatched.start()
            self.progress(time.monotonic() - start)
        finally:
            pgbench.kill()
        self.received.close()
        self.tps = pgbench.tps()

    def wait_dispatched(self):
        with connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT subdispatch.wait_dispatched('60s')")
            if not cursor.fetchone()[0]:
                self.problems.add("not all that was committed was dispatched within 60 s after pgbench's end")

    def drain(self):
        """Reads until there is nothing more."""
        for rows in polled(self.gateway):
            now = time.time() * 1e6
            self.batches += 1
            for name, connection_id, operation_id, event_id, dropped, response in rows:
                ledger = self.ledgers[name]
                row = ledger.take(connection_id, operation_id, event_id, dropped, response)
                if row is not None:
                    self.received.write("%d\t%d\t%d\t%d\t%d\t%s\n" % (
                        ledger.number, row["tid"], row["bid"], row["aid"], row["delta"], row["mtime"]))
            # An event's id is the microsecond in which it was dispatched. A sample will do.
            if event_id is not None:
                self.delays.add(now - event_id)

    def progress(self, seconds):
        with self.observer.cursor() as cursor:
            cursor.execute("SELECT s.events_dispatched, s.resolver_calls, c.pending"
                           " FROM subdispatch.stats s, subdispatch.consumers c WHERE c.consumer = %s", (CONSUMER,))
            events, calls, pending = cursor.fetchone()
        print("%6.0f s %10s events %10s resolver calls %10s responses read %8s pending" % (
            seconds, number(events), number(calls), number(sum(l.responses for l in self.ledgers.values())),
            number(pending)))

    # ------------------------------------------------------------- the check

    def check(self):
        self.expected = {}
        with self.observer.cursor() as cursor:
            cursor.execute("COPY demo.received FROM '%s'" % self.received_path)
            cursor.execute("CREATE INDEX ON demo.received (subscription); ANALYZE demo.received")
            cursor.execute("SELECT count(*) FROM pgbench_history")
            self.transactions = cursor.fetchone()[0]
            if self.transactions == 0:
                self.problems.add("pgbench committed nothing")
            for ledger in self.ledgers.values():
                expected = 0
                if ledger.subscription.channel in ("history", "*"):
                    expected += self.check_history(cursor, ledger)
                if ledger.subscription.channel in ("accounts", "*"):
                    expected += self.check_accounts(cursor, ledger)
                if expected != ledger.responses:
                    self.problems.add("%s: %d responses expected, %d read" % (ledger.subscription.name, expected, ledger.responses))
                self.expected[ledger.subscription.name] = expected
            cursor.execute("SELECT * FROM subdispatch.stats")
            self.stats = dict(zip([c.name for c in cursor.description], cursor.fetchone()))
            cursor.execute("SELECT count(*) FROM subdispatch.subscriptions")
            if cursor.fetchone()[0] != len(SUBSCRIPTIONS) + self.options.idle_subscriptions:
                self.problems.add("there are not as many subscriptions as were made")
            cursor.execute("SELECT sum(pending), sum(dropped), sum(errors), count(*) FILTER (WHERE state <> 'active')"
                           " FROM subdispatch.subscriptions")
            if any(cursor.fetchone()):
                self.problems.add("a subscription has something pending, dropped or failed, or has ended")
            cursor.execute("SELECT sum(delivered) FROM subdispatch.subscriptions WHERE consumer = 'idle'")
            if cursor.fetchone()[0]:
                self.problems.add("a subscription received something that does not match it")
        for counter in ("responses_dropped", "resolver_errors", "resolver_timeouts"):
            if self.stats[counter] != 0:
                self.problems.add("%s is %d" % (counter, self.stats[counter]))
        if self.stats["resolver_calls"] >= self.resolved():
            self.problems.add("%d resolver calls for %d resolved responses" % (self.stats["resolver_calls"], self.resolved()))

    def resolved(self):
        return sum(l.responses for l in self.ledgers.values() if l.subscription.resolver)

    def check_history(self, cursor, ledger):
        committed = "SELECT tid, bid, aid, delta, mtime FROM pgbench_history WHERE " + ledger.subscription.matches
        received = "SELECT tid, bid, aid, delta, mtime FROM demo.received WHERE subscription = %d" % ledger.number
        cursor.execute("SELECT count(*) FROM (%s) AS c" % committed)
        expected = cursor.fetchone()[0]
        for what, query in (("committed, and not received: ", "%s EXCEPT ALL %s" % (committed, received)),
                            ("received, and not committed (or not so often): ", "%s EXCEPT ALL %s" % (received, committed))):
            cursor.execute("SELECT count(*), min(d::text) FROM (%s) AS d" % query)
            n, example = cursor.fetchone()
            if n:
                self.problems.add("%s: %d history rows %sfor example %s" % (ledger.subscription.name, n, what, example))
        return expected

    def check_accounts(self, cursor, ledger):
        # "matches" holds aid alone or nothing, so it is a condition on both tables.
        cursor.execute("SELECT count(*) FROM pgbench_history WHERE " + ledger.subscription.matches)
        expected = cursor.fetchone()[0]
        if expected != ledger.account_changes:
            self.problems.add("%s: %d account changes expected, %d received"
                         % (ledger.subscription.name, expected, ledger.account_changes))
        cursor.execute("SELECT filler, aid, abalance FROM pgbench_accounts WHERE abalance <> 0 AND (%s)"
                       % ledger.subscription.matches)
        ledger.check_balances(cursor)
        return expected

    # ------------------------------------------------------------ the report

    def report(self):
        stats = self.stats
        read = sum(l.responses for l in self.ledgers.values())
        print()
        print("transactions      %12s   (%s a second)" % (number(self.transactions), number(self.tps)))
        print("events            %12s   dispatched" % number(stats["events_dispatched"]))
        print("responses         %12s   stored once each, however many subscriptions share them" % number(stats["responses_queued"]))
        print("                  %12s   read, in %s polls" % (number(read), number(self.batches)))
        print("resolver calls    %12s   for %s resolved responses" % (number(stats["resolver_calls"]), number(self.resolved())))
        times = ["%s %s" % (name.replace("dispatch_time", "").replace("_us", "").strip("_") or "total", number(value))
                 for name, value in stats.items() if name.startswith("dispatch_time") and value is not None]
        print("dispatch time     %12s   us: %s" % ("", ", ".join(times)))
        print("until the read    %12s   us after the dispatch: %s" % ("", self.delays))
        print()
        print("%-18s %-9s %-70s %10s %10s" % ("subscription", "channel", "filter", "committed", "received"))
        for ledger in self.ledgers.values():
            s = ledger.subscription
            print("%-18s %-9s %-70s %10s %10s" % (s.name, s.channel, json.dumps(s.filter), number(self.expected[s.name]),
                                                 number(ledger.responses)))
        return conclude([("", self.ledgers[name]) for name in ("history", "accounts", "phone-01", "phone-09")], self.problems, [
            "every committed row reached every subscription that it matches, exactly once;",
            "each account's changes came in the order of their commits."])


def main():
    parser = argument_parser()
    parser.add_argument("--idle-subscriptions", type=int, default=0)
    options = parser.parse_args()
    demo = Demo(options)
    demo.set_up()
    print("== pgbench with %d clients for %d s, %d subscriptions, one consumer" % (
        options.clients, options.duration, len(SUBSCRIPTIONS)))
    demo.work()
    print("== comparing what was received with what was committed")
    demo.check()
    return demo.report()


if __name__ == "__main__":
    run_demo(main)
