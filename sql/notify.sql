-- Plain NOTIFY, from any tool, reaches the channel's subscriptions.
SET client_min_messages = warning;
SELECT subdispatch.subscribe('notified', id => 'n'), subdispatch.subscribe('notified', 'tst.echo', id => 'event');
NOTIFY notified, '{"a": 1}';
SELECT * FROM tst.results('n');
-- Such an event brings its data only.
SELECT e - '{id,timestamp}'::text[] AS event, jsonb_typeof(e->'id') AS id, jsonb_typeof(e->'timestamp') AS timestamp FROM tst.results('event') e;
-- What is not JSON becomes a JSON string; what is, is kept exactly.
NOTIFY notified, 'not JSON';
NOTIFY notified, '{"a": 1';
NOTIFY notified;
NOTIFY notified, '5';
NOTIFY notified, '"string"';
NOTIFY notified, ' [1, 2] ';
NOTIFY notified, '18446744073709551617.000000000000000000001';
NOTIFY notified, '{"a": "\u0000"}';
NOTIFY notified, 'null';
NOTIFY notified, '{"a": 1} trailing';
NOTIFY notified, 'quote " and backslash \ ';
SELECT * FROM tst.results('n');
SELECT pg_notify('notified', repeat('[', 100) || repeat(']', 100)), pg_notify('notified', repeat('[', 7990)), pg_notify('notified', '"' || repeat('x', 7990) || '"');
SELECT jsonb_typeof(r), length(r::text) FROM tst.results('n') r;
-- In the order of commits, rolled back ones not at all.
BEGIN; NOTIFY notified, '"rolled back"'; ROLLBACK;
BEGIN; SELECT pg_notify('notified', n::text) FROM generate_series(1, 20) n; COMMIT;
SELECT array_agg(r ORDER BY ord) FROM tst.results('n') WITH ORDINALITY x(r, ord);
-- Other spellings of a channel are other channels.
SELECT subdispatch.subscribe('orders.eu', id => 'dotted'), subdispatch.subscribe('Orders', id => 'upper'), subdispatch.subscribe('orders', id => 'lower'), subdispatch.subscribe('*', id => 'star');
SELECT pg_notify('orders.eu', '"dotted"'), pg_notify('Orders', '"upper"'), pg_notify('orders', '"lower"'), pg_notify('not subscribed to', '"nobody"');
SELECT id, array(SELECT * FROM tst.results(id)) FROM unnest('{dotted,upper,lower}'::text[]) id;
-- The star gets every event that the dispatchers see.
SELECT array(SELECT r FROM tst.results('star') r WHERE r <> '"nobody"' ORDER BY r);
-- publish() and NOTIFY on one channel.
BEGIN; SELECT subdispatch.publish('notified', '"published"'); NOTIFY notified, '"notified"'; COMMIT;
SELECT r FROM tst.results('n') r ORDER BY r;
-- A new subscription LISTENs before it returns; the last one's end stops that.
SELECT subdispatch.unsubscribe('n'), subdispatch.unsubscribe('event');
NOTIFY notified, '"nobody is there"';
SELECT tst.dispatched();
SELECT subdispatch.subscribe('notified', id => 'n');
NOTIFY notified, '"first"';
SELECT * FROM tst.results('n');
-- Filters and resolvers take it as any event.
SELECT subdispatch.subscribe('notified', filter => '{"k": {"gt": 1}}', id => 'filtered');
NOTIFY notified, '{"k": 1}'; NOTIFY notified, '{"k": 2}'; NOTIFY notified, 'text';
SELECT * FROM tst.results('filtered');
-- A name that NOTIFY cannot carry is no obstacle to publish() on the memory bus.
SELECT subdispatch.subscribe(repeat('n', 100), id => 'long');
SELECT subdispatch.publish(repeat('n', 100), '1');
SELECT pg_notify(repeat('n', 63), '2');
SELECT * FROM tst.results('long');
SELECT tst.clean();
