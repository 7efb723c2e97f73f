"""What the demos with one server and with two share: the workload, what a subscription received, pgbench, and small helpers."""

import argparse
import collections
import json
import os
import random
import subprocess
import sys

import psycopg2

CONSUMER = "gateway"
BATCH = 5000

SETUP = """
CREATE EXTENSION jsonb_plpython3u CASCADE;
CREATE EXTENSION subdispatch;
CREATE SCHEMA demo;

CREATE TRIGGER publish AFTER INSERT OR UPDATE ON pgbench_accounts
  FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('accounts');
CREATE TRIGGER publish AFTER INSERT OR UPDATE ON pgbench_history
  FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('history');

CREATE FUNCTION demo.statement_line(event jsonb, variables jsonb) RETURNS jsonb
  LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
    row = event["data"]["row"]
    row["text"] = "%s of %s %s" % ("deposit" if row["delta"] >= 0 else "withdrawal", abs(row["delta"]), variables["currency"])
    return row
$$;
"""

# matches: what the filter says, in SQL, over pgbench_history. An account's change has the aid of the history row that the
# same transaction writes, so a condition on aid alone counts account changes, too.
Subscription = collections.namedtuple("Subscription", "name channel filter matches resolver variables connection")


def plain(name, channel, filter_, matches):
    return Subscription(name, channel, filter_, matches, None, {}, "dashboard")


def phone(n, currency):
    return Subscription("phone-%02d" % n, "history", {"row.bid": 1}, "bid = 1", "demo.statement_line",
                        {"currency": currency}, "phone-%02d" % n)


def subscribe(cursor, subscriptions):
    cursor.execute("SELECT subdispatch.open_consumer(%s)", (CONSUMER,))
    for s in subscriptions:
        cursor.execute(
            "SELECT subdispatch.subscribe(%s, %s, variables => %s, filter => %s, response_key => %s, id => %s,"
            " connection_id => %s, consumer => %s)",
            (s.channel, s.resolver, json.dumps(s.variables), json.dumps(s.filter),
             "statementLine" if s.resolver else None, s.name, s.connection, CONSUMER))


def polled(gateway):
    """What a gateway's connection reads, by batches, until there is nothing more."""
    while True:
        with gateway.cursor() as cursor:
            cursor.execute("SELECT subscription_id, connection_id, operation_id, event_id, dropped, response"
                           " FROM subdispatch.poll(%s, %s)", (CONSUMER, BATCH))
            rows = cursor.fetchall()
        if not rows:
            return
        yield rows


class Problems:
    """Counts them all, and keeps the first."""

    def __init__(self):
        self.count = 0
        self.texts = []

    def add(self, text):
        self.count += 1
        if len(self.texts) < 20:
            self.texts.append(text)

    def show(self):
        print("FAILED, %s problems:" % number(self.count))
        for text in self.texts:
            print("  " + text[:300])


class Ledger:
    """What one subscription received."""

    def __init__(self, number_, subscription, problems):
        self.number = number_
        self.subscription = subscription
        self.problems = problems
        self.responses = 0
        self.account_changes = 0
        self.last_event_id = 0
        self.balances = {}          # by the account's filler, which names its server if there are two, and its number
        self.first = None

    def take(self, connection_id, operation_id, event_id, dropped, response):
        """Checks a response against those before it; returns the row of pgbench_history that it brings, if it does."""
        name = self.subscription.name
        self.responses += 1
        if self.first is None:
            self.first = response
        message = json.loads(response)
        payload = message.get("payload")
        if (message["type"] != "next" or message["id"] != operation_id or operation_id != name
                or connection_id != self.subscription.connection or dropped != 0 or set(payload) != {"data", "errors"}
                or payload["errors"] is not None):
            self.problems.add("%s: not the response that was expected: %s" % (name, response))
            return None
        if event_id <= self.last_event_id:
            self.problems.add("%s: event %d after event %d" % (name, event_id, self.last_event_id))
        self.last_event_id = event_id

        data = payload["data"]
        if self.subscription.resolver:
            row = data["statementLine"]
            if row["text"] != "%s of %d %s" % ("deposit" if row["delta"] >= 0 else "withdrawal", abs(row["delta"]),
                                               self.subscription.variables["currency"]):
                self.problems.add("%s: wrong result: %s" % (name, response))
            return row
        if data["table"] == "pgbench_history":
            return data["row"]
        self.take_account(data["old"], data["row"])
        return None

    def take_account(self, old, row):
        # Each change starts from the balance that the one before it left: a change that is lost, doubled or in the wrong
        # order breaks the chain.
        self.account_changes += 1
        account = row["filler"], row["aid"]
        balance = self.balances.get(account, 0)
        if (old["filler"], old["aid"]) != account or old["abalance"] != balance:
            self.problems.add("%s: account %d: the change starts from %d, the one before it ended at %d"
                              % (self.subscription.name, row["aid"], old["abalance"], balance))
        self.balances[account] = row["abalance"]

    def check_balances(self, rows):
        """rows: filler, aid and balance of all accounts that the subscription is about and that have one."""
        name = self.subscription.name
        balances = dict(self.balances)
        for filler, aid, abalance in rows:
            if balances.pop((filler, aid), 0) != abalance:
                self.problems.add("%s: account %d does not end at its balance" % (name, aid))
        if any(balances.values()):
            self.problems.add("%s: an account has no balance, but the last change left one" % name)


class Delays:
    """A sample of them, of bounded size, in microseconds."""

    SIZE = 10000

    def __init__(self):
        self.count = 0
        self.sample = []

    def add(self, delay):
        self.count += 1
        if len(self.sample) < self.SIZE:
            self.sample.append(delay)
        else:
            place = random.randrange(self.count)
            if place < self.SIZE:
                self.sample[place] = delay

    def __str__(self):
        if not self.sample:
            return "none"
        ordered = sorted(self.sample)
        return "p50 %s, p99 %s" % (number(ordered[len(ordered) // 2]), number(ordered[len(ordered) * 99 // 100]))


class Pgbench:
    """A run of pgbench in the background."""

    def __init__(self, seconds, clients, host=None):
        self.log_path = os.path.join(os.environ["TMPDIR"], "pgbench-%s.log" % os.path.basename(host or "server"))
        with open(self.log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                ["pgbench", "-n", "-M", "prepared", "-T", str(seconds), "-c", str(clients), "-j", str(min(2, clients))]
                + (["-h", host] if host else []), stdout=log, stderr=subprocess.STDOUT)

    def running(self):
        return self.process.poll() is None

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()

    def tps(self):
        """Transactions a second; raises if pgbench failed."""
        with open(self.log_path, encoding="utf-8") as log:
            output = log.read()
        if self.process.returncode != 0:
            raise RuntimeError("pgbench failed:\n" + output)
        for line in output.splitlines():
            if line.startswith("tps = "):
                return float(line.split()[2])
        raise RuntimeError("pgbench told no speed:\n" + output)


def number(value):
    return "{:,.0f}".format(value)


def connect(host=None):
    connection = psycopg2.connect("host=%s" % host if host else "")
    connection.autocommit = True
    return connection


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise RuntimeError("%s failed:\n%s" % (command[0], done.stdout.decode()))


def argument_parser():
    """What all demos are told on their command line."""
    parser = argparse.ArgumentParser()
    for name in ("--duration", "--clients", "--scale"):
        parser.add_argument(name, type=int, required=True)
    return parser


def conclude(ledgers, problems, claims):
    """The end of the report: what came first, and whether all is well. Returns the exit status."""
    print()
    print("first responses:")
    for label, ledger in ledgers:
        print("  %s%s" % (label, (ledger.first or "none")[:600]))
    print()
    if problems.count:
        problems.show()
        return 1
    print("OK: " + "\n    ".join(claims))
    return 0


def run_demo(main):
    try:
        sys.exit(main())
    except (RuntimeError, psycopg2.Error) as error:
        sys.exit("demo: %s" % error)
