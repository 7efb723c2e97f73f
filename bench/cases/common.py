"""What several benchmarks use: the resolver, and a loop that dispatches one event at a time."""

RESOLVER = """
CREATE OR REPLACE FUNCTION bench_resolver(event jsonb, variables jsonb) RETURNS jsonb
LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return {"order": event["data"]["id"], "total": event["data"]["total"]}
$$
"""

# One event at a time: what is measured is a dispatch, not a queue.
DISPATCH = """
CREATE OR REPLACE PROCEDURE bench_dispatch(channel text, events int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..events LOOP
        PERFORM subdispatch.publish(channel, jsonb_build_object('id', i, 'total', '9.99', 'customer', 7));
        COMMIT;
        IF NOT subdispatch.wait_dispatched('60s') THEN
            RAISE 'not dispatched';
        END IF;
        COMMIT;
    END LOOP;
END
$$
"""


def dispatch_time(server, channel, events, warm=20):
    """Microseconds per event, from taking it to its last response being readable, as the dispatcher measures it."""
    server.execute("CALL bench_dispatch(%s, %s)", [channel, warm])
    server.execute("SELECT subdispatch.reset_stats()")
    server.execute("CALL bench_dispatch(%s, %s)", [channel, events])
    stats = server.stats()
    if stats["events_dispatched"] != events:
        raise RuntimeError(f"{stats['events_dispatched']} events dispatched, not {events}")
    return float(stats["dispatch_time_us"]) / events, stats
