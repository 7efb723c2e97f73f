# Random operations on a consumer, compared with a model of a few lines after each: reading with and without
# acknowledgements, repeating, pausing, ending, replacing. SUBDISPATCH_MODEL_STEPS and SUBDISPATCH_MODEL_SEED choose.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $steps = $ENV{SUBDISPATCH_MODEL_STEPS} || 3000;
my $seed = $ENV{SUBDISPATCH_MODEL_SEED} || int(rand(1000000));

my $node = start_node('model', '.fsync' => 'off', '.log_statement' => 'none');
my $before = memory_in_use($node);
$node->safe_psql('postgres', 'CREATE EXTENSION plpython3u');
my $code = do { local $/; <DATA> };
my ($out, $err) = try_sql($node, "DO LANGUAGE plpython3u \$code\$\nSTEPS, SEED = $steps, $seed\n$code\n\$code\$");
is($err =~ s/^.*?NOTICE:.*\n//mgr, '', "$steps steps with seed $seed");
note($err);
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer(consumer) FROM subdispatch.consumers; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");
eventually('the memory is back to where it was', sub { my $m = memory_in_use($node) // -1; return ($m <= $before, "$m, before $before") });
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;
done_testing();

__DATA__
import json
import random

rng = random.Random(SEED)
history = []


def run(query):
    history.append(query)
    return list(plpy.execute(query))


def value(query):
    row = run("SELECT " + query + " AS v")
    return row[0]["v"]


def fails(query, state):
    history.append(query)
    try:
        with plpy.subtransaction():
            plpy.execute(query)
    except plpy.SPIError as e:
        check(e.sqlstate == state, "fails with %s" % e.sqlstate)
        return
    check(False, "does not fail")


def check(ok, *what):
    if not ok:
        raise Exception("seed %d, step %d: %s\n%s" % (SEED, step, " ".join(map(str, what)), "\n".join(history[-25:])))


class Sub:
    def __init__(self, id, channel, connection, max_pending):
        self.id, self.channel, self.connection, self.max_pending = id, channel, connection, max_pending
        self.queue, self.lost, self.ended, self.told = [], 0, False, False

    def push(self, v):
        if self.ended:
            return
        self.queue.append(v)
        if len(self.queue) > self.max_pending:
            self.queue.pop(0)
            self.lost += 1

    # What it gives next: (value, losses before it), "complete", or None.
    def take(self):
        if self.queue:
            lost, self.lost = self.lost, 0
            return (self.queue.pop(0), lost)
        if self.ended and not self.told:
            self.told = True
            return "complete"
        return None

    def has(self):
        return bool(self.queue) or (self.ended and not self.told)


subs = {}               # by id
paused = set()          # connections
counter = {"c": 0, "d": 0}
number = 0              # of the batch that was read last; 0: none in this run
previous = 0            # acknowledged last
outstanding = None      # (function, rows, whose last message is in it)
last_number = 0


def forget(sub):
    if subs.get(sub.id) is sub:
        del subs[sub.id]
    settle_connections()


def settle_connections():
    for c in list(paused):
        if not any(s.connection == c for s in subs.values()):
            paused.discard(c)


def acknowledge():
    nonlocal outstanding, previous
    previous = number
    for s in outstanding[2]:
        forget(s)
    outstanding = None


def message(text):
    m = json.loads(text)
    if m["type"] == "complete":
        return "complete"
    payload = m["payload"]
    lost = payload.get("extensions", {}).get("subdispatch", {}).get("dropped", 0)
    return (payload["data"]["v"], lost)


# A row's deliveries, in the order in which they were taken.
def deliveries(function, row):
    if function == "poll":
        yield row["subscription_id"], message(row["response"])
    else:
        for id in row["subscription_ids"]:
            yield id, message(json.dumps({"type": row["type"], "payload": row["payload"] and json.loads(row["payload"])}))


def check_new(function, rows, most, size):
    ends = []
    for row in rows:
        for id, got in deliveries(function, row):
            s = subs.get(id)
            check(s is not None, "response for", id, "which is not there")
            check(s.connection not in paused, "response for", id, "which is paused")
            expected = s.take()
            check(got == expected, id, "gets", got, "instead of", expected)
            if got == "complete":
                ends.append(s)
    left = [s.id for s in subs.values() if s.connection not in paused and s.has()]
    check(len(rows) <= most, "too many rows")
    check(rows or not left, "no row while there is something for", left)
    if size == 1:           # one of any size, and what has none
        check(len(rows) - len(ends) <= 1, "more than max_bytes")
    elif len(rows) < most:
        check(not left, "not all is read:", left)
    return ends


def poll():
    nonlocal number, last_number, outstanding
    function = rng.choice(["poll", "poll", "poll_shared"])
    most = rng.choice([1, 2, 5, 40, 300, 1000])
    size = rng.choice([1, 4194304, 4194304, 4194304])
    call = "SELECT * FROM subdispatch.%s('g', %d, max_bytes => %d" % (function, most, size)
    how = rng.random()
    if how < 0.08:
        wrong = rng.choice([-1, 1, number + 1, number - 1, 2**62])
        if wrong not in (0, number, previous):
            fails(call + ", ack => %d)" % wrong, "22023")
        return
    ack = None if how < 0.18 else rng.choice([previous, 0]) if how < 0.4 else number if outstanding else previous
    call += ")" if ack is None else ", ack => %d)" % ack
    if outstanding and ack is not None and ack == number:
        acknowledge()
    if outstanding:
        if outstanding[0] != function:
            fails(call, "55000")
            return
        rows = run(call)
        check(rows == outstanding[1], "the batch is not repeated as it was:", rows, outstanding[1])
        if ack is None:
            acknowledge()
        return
    rows = run(call)
    ends = check_new(function, rows, most, size)
    if ack is None:
        check(all(r["batch"] is None for r in rows), "a number without ack")
        for s in ends:
            forget(s)
    elif rows:
        numbers = {r["batch"] for r in rows}
        check(len(numbers) == 1 and min(numbers) > last_number, "numbers", numbers)
        number = last_number = numbers.pop()
        outstanding = (function, rows, ends)


def publish():
    channel = rng.choice("ccd")
    for _ in range(rng.choice([1, 1, 3, 10, 60])):
        counter[channel] += 1
        run("SELECT subdispatch.publish('%s', '{\"v\": %d}')" % (channel, counter[channel]))
        for s in subs.values():
            if s.channel == channel:
                s.push(counter[channel])
    plpy.commit()
    check(value("subdispatch.wait_dispatched('60s')"), "not dispatched")


def subscribe():
    id = "s%d" % rng.randrange(12)
    channel = rng.choice("ccd")
    connection = rng.choice([None, "w0", "w1", "w2"])
    most = rng.choice([1000, 1000, 3])
    call = "SELECT subdispatch.subscribe('%s', id => '%s', consumer => 'g', connection_id => %s, max_pending => %d, filter => '%s')" % (
        channel, id, "'%s'" % connection if connection else "NULL", most, rng.choice(["{}", "{}", '{"v": {"gte": 0}}']))
    if id in subs and not subs[id].ended:
        fails(call, "42710")
        return
    run(call)
    subs[id] = Sub(id, channel, connection, most)
    settle_connections()


def end():
    id = "s%d" % rng.randrange(12)
    live = id in subs and not subs[id].ended
    if rng.random() < 0.6:
        check(value("subdispatch.complete('%s')" % id) == live, "complete")
        if live:
            subs[id].ended = True
    else:
        check(value("subdispatch.unsubscribe('%s')" % id) == live, "unsubscribe")
        if id in subs:
            forget(subs[id])


def pause():
    connection = rng.choice(["w0", "w1", "w2"])
    consumer = rng.choice(["", ", 'g'"])
    of = [s for s in subs.values() if s.connection == connection]
    n = len([s for s in of if not s.ended])
    if rng.random() < 0.5:
        check(value("subdispatch.pause('%s'%s)" % (connection, consumer)) == n, "pause")
        if of:
            paused.add(connection)
    else:
        check(value("subdispatch.resume('%s'%s)" % (connection, consumer)) == n, "resume")
        paused.discard(connection)


def disconnect():
    connection = rng.choice(["w0", "w1", "w2"])
    of = [s for s in subs.values() if s.connection == connection]
    check(value("subdispatch.disconnect('%s')" % connection) == len([s for s in of if not s.ended]), "disconnect")
    for s in of:
        forget(s)


def read_one():
    if not subs:
        return
    s = rng.choice(list(subs.values()))
    got = value("subdispatch.next_response('%s')" % s.id)
    expected = s.take()
    check((got and message(got)) == expected, s.id, "gives", got, "instead of", expected)
    if expected == "complete":
        forget(s)


def open_again():
    nonlocal number, previous, outstanding
    check(value("subdispatch.open_consumer('g')") == len([s for s in subs.values() if not s.ended]), "open_consumer")
    subs.clear()
    paused.clear()
    number = previous = 0
    outstanding = None


def check_views():
    row = run("SELECT * FROM subdispatch.consumers WHERE consumer = 'g'")[0]
    n = sum(len(list(deliveries(outstanding[0], r))) for r in outstanding[1]) if outstanding else 0
    check(row["outstanding"] == n and row["batch"] == (number if outstanding else None), "consumers:", row)
    check(row["pending"] == sum(len(s.queue) for s in subs.values()), "pending:", row)
    check(row["subscriptions"] == len([s for s in subs.values() if not s.ended]), "subscriptions:", row)
    rows = run("SELECT id, state, pending FROM subdispatch.subscriptions")
    check({r["id"]: (r["state"], r["pending"]) for r in rows} == {
        s.id: ("complete" if s.ended else "paused" if s.connection in paused else "active", len(s.queue)) for s in subs.values()},
        "subscriptions:", rows)


step = 0
run("SELECT subdispatch.open_consumer('g')")
for step in range(1, STEPS + 1):
    rng.choices([poll, publish, subscribe, end, pause, disconnect, read_one, open_again],
                [40, 20, 14, 6, 8, 1, 6, 0.3])[0]()
    check_views()
    plpy.commit()
