-- publish(): what arrives, and what is refused at the call.
-- With nobody subscribed the event ends there.
SELECT subdispatch.publish('nobody', '{"a": 1}');

SELECT subdispatch.subscribe('orders', 'tst.echo', id => 'p');
SELECT subdispatch.publish('orders', '{"a": 1}');
SELECT subdispatch.publish('orders', '{"a": 2}', 'OrderPlaced', 'corr-1', 'fed-1');
SELECT subdispatch.publish('other', '{"a": 3}');

-- The event as the README describes it. Its id is below 2^53 and about the present time in microseconds.
CREATE TABLE tst.got AS SELECT row_number() OVER () AS n, d AS event FROM tst.results('p') d;
SELECT n, array(SELECT k FROM jsonb_object_keys(event) k ORDER BY k) AS keys FROM tst.got ORDER BY n;
SELECT n, event - '{id,timestamp}'::text[] AS event,
       jsonb_typeof(event->'id') AS id_type,
       (event->>'id')::numeric BETWEEN 1000000 * extract(epoch FROM now() - interval '1 day') AND 9007199254740991 AS id_is_fine,
       event->>'timestamp' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$' AS rfc_3339,
       abs(extract(epoch FROM now() - (event->>'timestamp')::timestamptz)) < 3600 AS timestamp_is_fine
  FROM tst.got ORDER BY n;
SELECT (SELECT event->'id' FROM tst.got WHERE n = 1) < (SELECT event->'id' FROM tst.got WHERE n = 2) AS rising;
DROP TABLE tst.got;

-- Any JSON, unchanged, in order; equal events stay as many as they were.
SELECT subdispatch.unsubscribe('p');
SELECT subdispatch.subscribe('any', id => 'p');
BEGIN;
SELECT subdispatch.publish('any', '"text"'), subdispatch.publish('any', 'null'), subdispatch.publish('any', '[1, [2], {}]'),
       subdispatch.publish('any', 'true'), subdispatch.publish('any', '18446744073709551617.000000000000000000001'),
       subdispatch.publish('any', '{"twice": 1}'), subdispatch.publish('any', '{"twice": 1}');
COMMIT;
SELECT * FROM tst.results('p');

-- What must be escaped, and what must not be touched.
CREATE TABLE tst.odd (n serial, data jsonb);
INSERT INTO tst.odd (data) VALUES
  (jsonb_build_object('quote " backslash \ slash / tab' || chr(9) || 'newline' || chr(10) || 'bell' || chr(7) || 'del' || chr(127), E'\b\f\r')),
  ('{"": "", "a.b": 1, " ": null}'),
  ('{"n": [1e400, -0.0, 0.1000, 123456789012345678901234567890, 1e-20]}'),
  (jsonb_build_object('long', repeat('0123456789', 10000))),
  ((repeat('[', 100) || repeat(']', 100))::jsonb);
SELECT count(subdispatch.publish('any', data) IS NULL) FROM (SELECT data FROM tst.odd ORDER BY n) o;
SELECT n, o.data = d.data AND o.data::text = d.data::text AS same
  FROM (SELECT row_number() OVER () AS n, data FROM tst.results('p') data) d FULL JOIN tst.odd o USING (n) ORDER BY n;
DROP TABLE tst.odd;
-- Beyond ASCII, if the database's encoding has it.
SELECT count(subdispatch.publish('any', jsonb_build_object('k', chr(233))) IS NULL) <= 1 AS published
  FROM pg_database WHERE datname = current_database() AND pg_encoding_to_char(encoding) = 'UTF8';
SELECT coalesce(bool_and(d = jsonb_build_object('k', chr(233))), true) AS same FROM tst.results('p') d;

-- Nearly 1 MB passes; more is an error at the call that names the setting.
SELECT subdispatch.publish('any', jsonb_build_object('x', repeat('x', 1000000)));
SELECT length(d->>'x') FROM tst.results('p') d;
SELECT tst.fails($$SELECT subdispatch.publish('any', jsonb_build_object('x', repeat('x', 1100000)))$$, 'subdispatch.max_event_size');
-- Refused with nobody on the channel as well: whether anybody subscribes is decided later.
SELECT tst.fails($$SELECT subdispatch.publish('nobody', jsonb_build_object('x', repeat('x', 1100000)))$$, 'subdispatch.max_event_size');
-- The transaction that catches the error goes on.
SELECT count(*) FROM tst.results('p');

-- Long channel names are told apart to their end.
SELECT subdispatch.unsubscribe('p');
SELECT subdispatch.subscribe(repeat('c', 200) || '1', id => 'p');
SELECT subdispatch.publish(repeat('c', 200) || '1', '1');
SELECT subdispatch.publish(repeat('c', 200) || '2', '2');
SELECT subdispatch.publish(repeat('c', 200), '3');
SELECT * FROM tst.results('p');
SELECT tst.fails($$SELECT subdispatch.publish(repeat('c', 10000000), '1')$$);

-- A channel's name is just a string.
SELECT subdispatch.subscribe(c, id => 'odd ' || c) FROM unnest('{"UPPER", "with space", "quote''\"s", "a.b", "x.*", "%"}'::text[]) c;
SELECT count(subdispatch.publish(c, to_jsonb(c)) IS NULL) FROM unnest('{"UPPER", "with space", "quote''\"s", "a.b", "x.*", "%", "upper", "x.y"}'::text[]) c;
SELECT s.id, array(SELECT * FROM tst.results(s.id)) AS got FROM subdispatch.subscriptions s WHERE s.id LIKE 'odd %' ORDER BY s.id COLLATE "C";

-- '*' gets every event, in the order of ids.
SELECT subdispatch.subscribe('*', 'tst.echo', id => 'star');
SELECT count(subdispatch.publish('s' || n % 7, to_jsonb(n)) IS NULL) FROM generate_series(1, 50) n;
SELECT count(*), array_agg((e->'data')::int ORDER BY ord) = array(SELECT generate_series(1, 50)) AS in_order,
       bool_and(coalesce((e->>'id')::bigint > last, true)) AS ids_rise
  FROM (SELECT e, ord, lag((e->>'id')::bigint) OVER (ORDER BY ord) AS last FROM tst.results('star') WITH ORDINALITY r(e, ord)) x;

-- Refused at the call.
SELECT tst.fails($$SELECT subdispatch.publish(NULL, '{}')$$) AS null_channel;
SELECT tst.fails($$SELECT subdispatch.publish('', '{}')$$) AS empty_channel;
SELECT tst.fails($$SELECT subdispatch.publish('*', '{}')$$) AS star;
SELECT tst.fails($$SELECT subdispatch.publish('orders', NULL)$$) AS null_data;
-- One that failed does not spoil the transaction's others.
BEGIN;
SELECT subdispatch.publish('s1', '"before"');
SAVEPOINT s;
SELECT tst.fails($$SELECT subdispatch.publish('', '{}')$$);
SELECT subdispatch.publish('s1', '"after"');
COMMIT;
SELECT e->'data' AS data FROM tst.results('star') e;

-- The same row order within one statement, and a thousand events in one transaction.
SELECT count(subdispatch.publish('s1', to_jsonb(n)) IS NULL) FROM generate_series(1, 1000) n;
SELECT count(*), array_agg((e->'data')::int ORDER BY ord) = array(SELECT generate_series(1, 1000)) AS in_order
  FROM tst.results('star') WITH ORDINALITY r(e, ord);
SELECT tst.clean();
