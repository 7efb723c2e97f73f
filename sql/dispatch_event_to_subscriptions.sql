-- One event reaches every subscription that it matches, each in its own shape, and no other.
SET client_min_messages = warning;
CREATE TABLE tst.orders (id int PRIMARY KEY, status text, total numeric);
CREATE TRIGGER orders AFTER INSERT OR UPDATE OR DELETE ON tst.orders FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
CREATE FUNCTION tst.order_status(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
plpy.execute(plpy.prepare("INSERT INTO tst.calls (resolver, variables) VALUES ('order_status', $1)", ["jsonb"]), [variables])
row = event["data"]["row"]
return {"id": row["id"], "status": row["status"].upper() if variables.get("shout") else row["status"]}
$$;
SELECT subdispatch.subscribe('orders', id => 'all');
SELECT subdispatch.subscribe('orders', id => 'all too', operation_id => '2');
SELECT subdispatch.subscribe('orders', filter => '{"row.status": "paid"}', id => 'paid');
SELECT subdispatch.subscribe('orders', filter => '{"row.total": {"gt": 100}}', id => 'large');
SELECT subdispatch.subscribe('orders', 'tst.order_status', id => 'status', response_key => 'orderStatus');
SELECT subdispatch.subscribe('orders', 'tst.order_status', id => 'status too');
SELECT subdispatch.subscribe('orders', 'tst.order_status', '{"shout": true}', id => 'loud');
SELECT subdispatch.subscribe('orders', 'tst.order_status', '{"shout": true}', '{"row.status": "paid"}', id => 'loud and paid');
SELECT subdispatch.subscribe('*', id => 'star');
SELECT subdispatch.subscribe('invoices', id => 'other channel');

BEGIN;
INSERT INTO tst.orders VALUES (1, 'new', 50), (2, 'paid', 150);
UPDATE tst.orders SET status = 'paid' WHERE id = 1;
COMMIT;
SELECT tst.dispatched();
SELECT s.id, r.n, r.data #> '{op}' AS op, coalesce(r.data #> '{row,id}', r.data #> '{id}', r.data #> '{orderStatus,id}') AS "order", coalesce(r.data #> '{row,status}', r.data #> '{status}', r.data #> '{orderStatus,status}') AS status
  FROM subdispatch.subscriptions s, LATERAL (SELECT n, r #> '{payload,data}' AS data FROM tst.drain(s.id) WITH ORDINALITY d(r, n)) r ORDER BY s.id COLLATE "C", r.n;
-- Three events, two sets of variables: the resolver ran six times, not twelve, except where every stream's filter ruled it out.
SELECT variables, count(*) FROM tst.calls GROUP BY variables ORDER BY variables;
-- Read once.
SELECT s.id, count(r) FROM subdispatch.subscriptions s, LATERAL (SELECT subdispatch.next_response(s.id)) x(r) GROUP BY s.id ORDER BY s.id COLLATE "C";

-- One that subscribes later sees only what comes later, also where it joins a stream.
SELECT subdispatch.subscribe('orders', id => 'late');
UPDATE tst.orders SET status = 'sent' WHERE id = 2;
SELECT id, array(SELECT r #> '{row,status}' FROM tst.results(id) r) FROM unnest('{all,late}'::text[]) id;
-- One that left gets nothing, and the others go on.
SELECT subdispatch.unsubscribe('all');
DELETE FROM tst.orders WHERE id = 2;
SELECT id, array(SELECT r->'op' FROM tst.results(id) r) FROM unnest('{all too,late}'::text[]) id;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('all')$$);
SELECT tst.clean();
DROP TABLE tst.orders;
DROP FUNCTION tst.order_status;
TRUNCATE tst.calls;
