-- dispatch_performance: the time from taking an event to all responses being
-- readable, as the dispatcher measures it, for 1, 100 and 10,000 subscriptions.
-- Run it by bench/run.sh.
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS plpython3u;
CREATE EXTENSION IF NOT EXISTS jsonb_plpython3u;
CREATE EXTENSION IF NOT EXISTS subdispatch;

CREATE OR REPLACE FUNCTION bench_resolver(event jsonb, variables jsonb) RETURNS jsonb
LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return {"order": event["data"]["id"], "total": event["data"]["total"]}
$$;

CREATE TEMP TABLE result (variant text, subscriptions int, events int, resolver_calls bigint,
                          p50_us bigint, p99_us bigint, mean_us numeric, bytes_per_subscription numeric);

CREATE OR REPLACE PROCEDURE bench_dispatch(variant text, n int, events int, resolver regproc,
                                           vars text DEFAULT '{}')
LANGUAGE plpgsql AS $$
DECLARE
    before bigint;
    after bigint;
    s subdispatch.stats%ROWTYPE;
BEGIN
    SELECT shared_memory_used INTO before FROM subdispatch.stats;
    PERFORM subdispatch.open_consumer('bench');
    PERFORM subdispatch.subscribe('bench', resolver, replace(vars, '%', i::text)::jsonb,
                                  id => 'bench' || i, consumer => 'bench', max_pending => 10)
       FROM generate_series(1, n) i;
    COMMIT;
    SELECT shared_memory_used INTO after FROM subdispatch.stats;
    -- warm: the interpreter, the caches
    FOR i IN 1..20 LOOP
        PERFORM subdispatch.publish('bench', '{"id": 1, "total": "9.99", "customer": 7}');
        COMMIT;
    END LOOP;
    PERFORM subdispatch.wait_dispatched('60s');
    PERFORM subdispatch.reset_stats();
    FOR i IN 1..events LOOP
        PERFORM subdispatch.publish('bench', jsonb_build_object('id', i, 'total', '9.99', 'customer', 7));
        COMMIT;
        -- one event at a time: what is measured is a dispatch, not a queue
        PERFORM subdispatch.wait_dispatched('60s');
    END LOOP;
    SELECT * INTO s FROM subdispatch.stats;
    INSERT INTO result VALUES (variant, n, s.events_dispatched, s.resolver_calls,
        s.dispatch_time_p50_us, s.dispatch_time_p99_us,
        round(s.dispatch_time_us::numeric / nullif(s.events_dispatched, 0), 1),
        round((after - before)::numeric / n, 0));
    PERFORM subdispatch.close_consumer('bench');
    COMMIT;
END
$$;

CALL bench_dispatch('no resolver', 1, 2000, NULL);
CALL bench_dispatch('no resolver', 100, 2000, NULL);
CALL bench_dispatch('no resolver', 10000, 2000, NULL);
CALL bench_dispatch('PL/Python resolver, shared', 1, 2000, 'bench_resolver');
CALL bench_dispatch('PL/Python resolver, shared', 100, 2000, 'bench_resolver');
CALL bench_dispatch('PL/Python resolver, shared', 10000, 2000, 'bench_resolver');
CALL bench_dispatch('PL/Python resolver, variables each', 100, 500, 'bench_resolver', '{"n": %}');
TABLE result;
