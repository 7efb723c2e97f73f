-- pause() and resume(): a slow client's responses stay in their queues.
SET client_min_messages = warning;
CREATE FUNCTION tst.polled(consumer text, OUT what text) LANGUAGE sql AS $$
  SELECT string_agg(subscription_id || ' ' || coalesce(response::jsonb #>> '{payload,data}', response::jsonb->>'type'), ', ' ORDER BY subscription_id, n) FROM subdispatch.poll(consumer) WITH ORDINALITY p(subscription_id, c, o, event_id, dropped, response, batch, n) $$;
CREATE FUNCTION tst.send(VARIADIC data int[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM subdispatch.publish('c', to_jsonb(d)) FROM unnest(data) d; END $$;

SELECT subdispatch.open_consumer('g'), subdispatch.open_consumer('h');
SELECT subdispatch.subscribe('c', id => 's1', connection_id => 'slow', consumer => 'g'), subdispatch.subscribe('c', id => 's2', connection_id => 'slow', consumer => 'g', max_pending => 2),
       subdispatch.subscribe('c', id => 's3', connection_id => 'slow', consumer => 'h'), subdispatch.subscribe('c', id => 's4', connection_id => 'slow'),
       subdispatch.subscribe('c', id => 'f1', connection_id => 'fast', consumer => 'g'), subdispatch.subscribe('c', id => 'n1', consumer => 'g');
SELECT subdispatch.pause('slow') AS paused, subdispatch.pause('slow') AS still, subdispatch.pause('nobody') AS unknown, subdispatch.pause('slow', 'nobody') AS no_consumer;
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT tst.send(1, 2, 3); SELECT tst.dispatched();
-- Polling does not see them, in either form; others are not concerned.
SELECT tst.polled('g');
SELECT count(*) FROM subdispatch.poll_shared('g');
SELECT tst.polled('h');
SELECT id, state, pending, dropped FROM subdispatch.subscriptions ORDER BY id;
-- Waiting does not end because of them.
CALL subdispatch.await_responses('g', '50ms');
SELECT count(*) FROM subdispatch.poll('h', timeout => '50ms');
-- Reading one by its id is not polling.
SELECT array(SELECT r #> '{payload,data}' FROM tst.drain('s4') r) AS s4, subdispatch.next_response('s1')::jsonb #> '{payload,data}' AS s1;
-- Later ones on the connection are paused from the start.
SELECT subdispatch.subscribe('c', id => 's5', connection_id => 'slow', consumer => 'g');
SELECT tst.send(4); SELECT tst.dispatched();
SELECT tst.polled('g');
SELECT id, state, pending FROM subdispatch.subscriptions WHERE id = 's5';
-- For one consumer only: back, and there.
SELECT subdispatch.resume('slow', 'g') AS resumed;
SELECT tst.polled('g');
SELECT subdispatch.subscribe('c', id => 's6', connection_id => 'slow', consumer => 'g'), subdispatch.subscribe('c', id => 's7', connection_id => 'slow', consumer => 'h');
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT subdispatch.resume('slow') AS resumed, subdispatch.resume('slow') AS none_paused;
SELECT tst.polled('h');
SELECT subdispatch.pause('slow', 'h') AS paused;
SELECT subdispatch.subscribe('c', id => 's8', connection_id => 'slow', consumer => 'g'), subdispatch.subscribe('c', id => 's9', connection_id => 'slow', consumer => 'h');
SELECT id, state FROM subdispatch.subscriptions WHERE connection_id = 'slow' ORDER BY id;
SELECT subdispatch.resume('slow', 'h');
SELECT count(*) FILTER (WHERE state <> 'active') AS paused FROM subdispatch.subscriptions;
-- One that was behind already, and one that is behind when it comes back, in order.
SELECT tst.polled('g'); SELECT tst.polled('h');
SELECT tst.send(5, 6); SELECT tst.dispatched();
SELECT subdispatch.pause('slow', 'g');
SELECT tst.polled('g');
SELECT tst.send(7); SELECT tst.dispatched();
SELECT tst.polled('g');
SELECT subdispatch.resume('slow');
SELECT tst.polled('g');
SELECT tst.clean();

-- The limits apply: each of the three ways to overflow.
SELECT subdispatch.subscribe('c', id => 'oldest', connection_id => 'slow', consumer => 'g', max_pending => 2), subdispatch.subscribe('c', id => 'newest', connection_id => 'slow', consumer => 'g', max_pending => 2, overflow => 'drop_newest'),
       subdispatch.subscribe('c', id => 'error', connection_id => 'slow', consumer => 'g', max_pending => 2, overflow => 'error');
SELECT subdispatch.pause('slow');
SELECT tst.send(1, 2, 3, 4); SELECT tst.dispatched();
SELECT tst.polled('g');
SELECT id, state, pending, dropped FROM subdispatch.subscriptions ORDER BY id;
-- Ended ones say so when they are resumed, and are forgotten then; ended ones do not count.
SELECT subdispatch.complete('oldest');
SELECT tst.polled('g');
CALL subdispatch.await_responses('g', '50ms');
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT subdispatch.resume('slow');
CALL subdispatch.await_responses('g', '1h');
SELECT subscription_id, dropped, response::jsonb->>'type' AS type, response::jsonb #> '{payload,data}' AS data FROM subdispatch.poll('g') WITH ORDINALITY ORDER BY subscription_id, ordinality;
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
-- Paused after its end.
SELECT subdispatch.complete('newest'), subdispatch.pause('slow');
SELECT tst.polled('g');
SELECT subdispatch.next_response('newest') IS NOT NULL AS by_its_id;
-- All kinds of ends of paused ones; a connection that is gone is not paused when it comes again.
SELECT subdispatch.subscribe('c', id => 'p1', connection_id => 'slow', consumer => 'g'), subdispatch.subscribe('c', id => 'p2', connection_id => 'slow', consumer => 'h');
SELECT subdispatch.pause('slow'), subdispatch.pause('slow', 'g'), subdispatch.resume('slow', 'h');
SELECT subdispatch.unsubscribe('p1'), subdispatch.disconnect('slow');
SELECT subdispatch.subscribe('c', id => 'p1', connection_id => 'slow', consumer => 'g');
SELECT id, state FROM subdispatch.subscriptions;
SELECT subdispatch.pause('slow'), subdispatch.complete('p1');
SELECT subdispatch.subscribe('c', id => 'p1', connection_id => 'slow', consumer => 'g');
SELECT id, state FROM subdispatch.subscriptions;
SELECT subdispatch.complete('p1'), subdispatch.subscribe('c', id => 'p3', connection_id => 'slow', consumer => 'g');
SELECT subdispatch.open_consumer('g') AS ended;
SELECT count(*) FROM subdispatch.subscriptions;
-- With an acknowledgement outstanding: what is in a batch is not taken back.
SELECT subdispatch.subscribe('c', id => 'p4', connection_id => 'slow', consumer => 'g');
SELECT tst.send(8); SELECT tst.dispatched();
SELECT count(*) AS outstanding FROM subdispatch.poll('g', ack => 0);
SELECT subdispatch.pause('slow');
SELECT count(*) AS repeated FROM subdispatch.poll('g', ack => 0);
-- Taken effect at once; not undone.
BEGIN;
SELECT subdispatch.resume('slow');
ROLLBACK;
SELECT id, state FROM subdispatch.subscriptions;
-- Arguments; the namespace is the owner's.
SELECT tst.sqlstate('SELECT subdispatch.pause(NULL)'), tst.sqlstate('SELECT subdispatch.resume(NULL)');
SET ROLE regress_sub_bob;
SELECT subdispatch.pause('slow'), subdispatch.resume('slow');
RESET ROLE;
SELECT id, state FROM subdispatch.subscriptions;
SELECT tst.clean();
SELECT count(*) AS consumers FROM subdispatch.consumers;
DROP FUNCTION tst.polled, tst.send;
