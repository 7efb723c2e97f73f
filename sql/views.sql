-- The views: their columns, and what they show.
SET client_min_messages = warning;
-- The documented columns, in their order; more may follow.
SELECT e.view, array(SELECT attname::text FROM pg_attribute WHERE attrelid = ('subdispatch.' || e.view)::regclass AND attnum BETWEEN 1 AND cardinality(e.columns) ORDER BY attnum) = e.columns AS as_documented
  FROM (VALUES ('subscriptions', '{id,owner,role,channel,resolver,variables,filter,security_context,operation_name,operation_id,connection_id,consumer,state,pending,delivered,dropped,rate_limited,errors,created_at,last_polled_at}'::text[]),
               ('consumers', '{consumer,owner,subscriptions,pending,oldest_pending_at,last_polled_at,waiting_pid}'), ('channels', '{channel,subscriptions,response_streams,events}'),
               ('workers', '{database,pid,kind,state,bus,backlog}')) e(view, columns);
SELECT array(SELECT unnest('{events_dispatched,resolver_calls,resolver_errors,resolver_timeouts,responses_queued,responses_delivered,responses_dropped}'::text[])
             EXCEPT SELECT attname::text FROM pg_attribute WHERE attrelid = 'subdispatch.stats'::regclass AND attnum > 0) AS missing_counters,
       (SELECT count(*) FROM pg_attribute WHERE attrelid = 'subdispatch.stats'::regclass AND attname ~ '^dispatch_time.*us$') >= 4 AS dispatch_times, (SELECT count(*) FROM subdispatch.stats) AS rows;

SELECT subdispatch.open_consumer('empty');
SELECT subdispatch.subscribe('v', id => 'a', consumer => 'g', connection_id => 'ws', operation_name => 'OnV', operation_id => '1', variables => '{"x": 1}', filter => '{"k": {"gt": 0}}');
SELECT subdispatch.subscribe('v', id => 'b', consumer => 'g'), subdispatch.subscribe('v', 'tst.echo', id => 'c');
SELECT id, owner::text = current_user AS owner, role::text = current_user AS role, channel, resolver::text, variables, filter, security_context, operation_name, operation_id, connection_id, consumer,
       pending, delivered, dropped, rate_limited, errors, created_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS created FROM subdispatch.subscriptions ORDER BY id;
-- A single one, by its id; others' are not to be seen.
SELECT count(*) AS found, bool_and(to_jsonb(s) = to_jsonb(v)) AS the_same FROM subdispatch.subscriptions v, LATERAL subdispatch.subscription(v.id) s;
SELECT count(*) AS none FROM subdispatch.subscription('not there');
SELECT tst.sqlstate('SELECT subdispatch.subscription(NULL)');
SELECT count(DISTINCT state) AS states, bool_and(last_polled_at IS NULL OR last_polled_at <= clock_timestamp()) AS polled FROM subdispatch.subscriptions;
SELECT consumer, subscriptions, pending, oldest_pending_at IS NULL AS none_pending, waiting_pid FROM subdispatch.consumers ORDER BY 1;
SELECT channel, subscriptions, response_streams FROM subdispatch.channels ORDER BY 1;

SELECT responses_queued AS queued, responses_delivered AS delivered, events_dispatched AS events, resolver_calls AS calls FROM subdispatch.stats \gset
SELECT subdispatch.publish('v', '{"k": 1}'), subdispatch.publish('v', '{"k": 0}');
SELECT tst.dispatched();
SELECT id, pending, delivered FROM subdispatch.subscriptions ORDER BY id;
SELECT consumer, subscriptions, pending, oldest_pending_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS oldest FROM subdispatch.consumers ORDER BY 1;
SELECT channel, events FROM subdispatch.channels;
SELECT count(*) FROM subdispatch.poll('g');
SELECT id, pending, delivered, last_polled_at IS NOT NULL AS polled FROM subdispatch.subscriptions ORDER BY id;
SELECT consumer, pending, last_polled_at IS NOT NULL AS polled FROM subdispatch.consumers ORDER BY 1;
SELECT responses_delivered - :delivered AS delivered, events_dispatched - :events AS events, resolver_calls - :calls AS calls, responses_queued > :queued AS queued FROM subdispatch.stats;
-- An ended one's state differs from the others'.
SELECT subdispatch.complete('c');
SELECT state = (SELECT state FROM subdispatch.subscriptions WHERE id = 'a') AS same_state FROM subdispatch.subscriptions WHERE id = 'c';

-- Row by row: a cursor may stop anywhere, a statement does not see what it makes or has ended, and joins, sorts and whole rows are as of a table.
SELECT count(subdispatch.subscribe('many', id => 'm' || i, consumer => 'm')) FROM generate_series(1, 100) i;
BEGIN;
DECLARE page CURSOR FOR SELECT channel, state FROM subdispatch.subscriptions WHERE channel = 'many';
FETCH 2 FROM page;
SELECT count(*) FROM subdispatch.subscriptions WHERE channel = 'many';
FETCH 1 FROM page;
COMMIT;
SELECT count(subdispatch.subscribe('more', id => 'more ' || id)) FROM subdispatch.subscriptions WHERE channel IN ('many', 'more');
SELECT count(*) FROM subdispatch.subscriptions WHERE channel = 'more';
SELECT count(*) AS ended, bool_and(subdispatch.unsubscribe(id)) AS all FROM subdispatch.subscriptions WHERE channel = 'more';
SELECT count(*), count(DISTINCT b) AS rows FROM subdispatch.subscriptions a JOIN subdispatch.subscriptions b USING (id) WHERE a.channel = 'many' AND b.state = 'active';
SELECT id, max_pending > 0 AS pending, end_reason FROM subdispatch.subscriptions WHERE channel = 'many' ORDER BY created_at, id LIMIT 2;
SELECT channel, count(*), max(id), sum(pending) FROM subdispatch.subscriptions WHERE consumer = 'm' GROUP BY 1;
SELECT array_agg((s).id ORDER BY (s).id) = array_agg(s.id ORDER BY s.id) AS whole_rows FROM subdispatch.subscriptions s WHERE channel = 'many';
SELECT (subdispatch.subscription('m7')).id, (SELECT s.id FROM subdispatch.subscription('m7') s), (SELECT l.id FROM subdispatch.list_subscriptions() l WHERE l.id = 'm7');
SELECT subdispatch.close_consumer('m');

-- Workers: the launcher, and this database's dispatchers.
SELECT kind, count(*), bool_and(w.pid IS NOT NULL AND w.state IS NOT NULL) AS running FROM subdispatch.workers w WHERE kind <> 'launcher' AND database::text = current_database() GROUP BY kind;
SELECT count(*) AS launchers FROM subdispatch.workers WHERE kind = 'launcher';
SELECT count(*) = current_setting('subdispatch.dispatchers')::int AS as_many_as_configured, bool_and(bus = current_setting('subdispatch.event_bus')) AS bus, bool_and(backlog >= 0) AS backlog
  FROM subdispatch.workers WHERE kind = 'dispatcher' AND database::text = current_database();
-- pg_stat_activity tells which they are, and what they wait for.
SELECT count(*) > 0 AS shown, bool_and(backend_type ~ 'subdispatch') AS named FROM pg_stat_activity a JOIN subdispatch.workers w USING (pid);

-- A role sees what it owns; workers are pg_monitor's.
SET ROLE regress_sub_alice;
SELECT (SELECT count(*) FROM subdispatch.subscriptions) AS subscriptions, (SELECT count(*) FROM subdispatch.subscription('a')) AS a, (SELECT count(*) FROM subdispatch.consumers) AS consumers;
SELECT tst.sqlstate('SELECT * FROM subdispatch.workers');
RESET ROLE;
SET ROLE regress_sub_monitor;
SELECT (SELECT count(*) FROM subdispatch.subscriptions) AS subscriptions, (SELECT count(*) FROM subdispatch.consumers) AS consumers, (SELECT count(*) FROM subdispatch.workers) > 0 AS workers, (SELECT count(*) FROM subdispatch.stats) AS stats;
RESET ROLE;
-- Views cannot be written.
SELECT tst.fails('DELETE FROM subdispatch.subscriptions') AS "delete", tst.fails('INSERT INTO subdispatch.channels (channel) VALUES (''x'')') AS "insert";
SELECT tst.clean();
