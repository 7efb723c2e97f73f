"""What several benchmarks use: the resolver, and a loop that dispatches one event at a time."""

from harness.server import BenchError
from harness.suite import Metric

# The server's settings for a million subscriptions.
MILLION = {"subdispatch.max_subscriptions": "1100000", "subdispatch.shared_memory_size": "3GB"}

RESOLVER = """
CREATE OR REPLACE FUNCTION bench_resolver(event jsonb, variables jsonb) RETURNS jsonb
LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return {"order": event["data"]["id"], "total": event["data"]["total"]}
$$
"""

# One event at a time: what is measured is a dispatch, not a queue. The customer goes through 1..customers in leaps.
DISPATCH = """
CREATE OR REPLACE PROCEDURE bench_dispatch(channel text, events int, customers bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..events LOOP
        PERFORM subdispatch.publish(channel, jsonb_build_object('id', i, 'total', '9.99', 'customer', 1 + i * 7919 % customers));
        COMMIT;
        IF NOT subdispatch.wait_dispatched('60s') THEN
            RAISE 'not dispatched';
        END IF;
        COMMIT;
    END LOOP;
END
$$
"""


DISPATCH_METRIC = Metric("cpu", "µs per event", label="processor time of the dispatchers")


def measure_dispatch(server, load, events):
    """load() makes that many events, one at a time.

    (time, cpu, stats): microseconds per event from taking it to its last response being readable, as the dispatcher measures it;
    the dispatchers' processor time, with waking up and going to sleep; the row of stats.
    """
    server.execute("SELECT subdispatch.reset_stats()")
    pids = server.dispatchers()
    cpu = sum(server.cpu_seconds(pids).values())
    load()
    cpu = sum(server.cpu_seconds(pids).values()) - cpu
    stats = server.stats()
    if stats["events_dispatched"] != events:
        raise BenchError(f"{stats['events_dispatched']} events dispatched, not {events}")
    return float(stats["dispatch_time_us"]) / events, cpu * 1e6 / events, stats


def dispatch_time(server, channel, events, warm=20, customers=1):
    """The same for events that are published on a channel."""
    call = "CALL bench_dispatch(%s, %s, %s)"
    server.execute(call, [channel, warm, customers])
    return measure_dispatch(server, lambda: server.execute(call, [channel, events, customers]), events)


OUTBOX = """
CREATE TABLE IF NOT EXISTS bench_outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL)
"""
