-- A PL/Python resolver: what it is given, and what becomes of what it returns.
SET client_min_messages = warning;
CREATE FUNCTION tst.py(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return {"event is": type(event).__name__, "variables are": type(variables).__name__, "keys": sorted(event.keys()),
        "data": event["data"], "channel": event["channel"], "event_type": event["event_type"], "source": event["source"],
        "correlation_id": event["correlation_id"], "federation_id": event["federation_id"], "id is": type(event["id"]).__name__,
        "timestamp is": type(event["timestamp"]).__name__, "variables": variables, "total": event["data"]["price"] * variables["quantity"]}
$$;
SELECT subdispatch.subscribe('py', 'tst.py', '{"quantity": 3, "nested": {"list": [1, null, "x"]}}', id => 'py', operation_id => '1');
SELECT subdispatch.publish('py', '{"price": 2, "name": "pen"}', 'PriceChanged', 'corr', 'fed');
SELECT tst.dispatched();
SELECT r LIKE '{"type":"next","id":"1","payload":{"data":{%},"errors":null}}' AS format, jsonb_pretty(r::jsonb) AS response FROM subdispatch.next_response('py') r;
SELECT subdispatch.unsubscribe('py');

-- Whatever JSON a function can return is the result.
CREATE FUNCTION tst.py_any(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
import decimal
return {"int": 5, "list": [1, [2], {}], "string": "x\"y", "true": True, "false": False, "decimal": decimal.Decimal("0.1"), "none in it": {"a": None}, "empty": {}}[event["data"]]
$$;
SELECT subdispatch.subscribe('py', 'tst.py_any', id => 'py'), subdispatch.subscribe('py', 'tst.py_any', id => 'keyed', response_key => 'thing');
SELECT count(subdispatch.publish('py', to_jsonb(k)) IS NULL) FROM unnest('{int,list,string,true,false,decimal,"none in it",empty}'::text[]) k;
SELECT * FROM tst.results('py');
SELECT * FROM tst.results('keyed');
SELECT tst.clean();

-- None is "nothing for this event".
CREATE FUNCTION tst.py_none(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return event["data"] if event["data"] % 2 else None
$$;
SELECT subdispatch.subscribe('py', 'tst.py_none', id => 'py');
SELECT count(subdispatch.publish('py', to_jsonb(n)) IS NULL) FROM generate_series(1, 5) n;
SELECT * FROM tst.results('py');
SELECT tst.clean();

-- It may ask the database, and sees the event's transaction committed.
CREATE TABLE tst.product (id int PRIMARY KEY, name text);
CREATE FUNCTION tst.py_query(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
rows = plpy.execute(plpy.prepare("SELECT name FROM tst.product WHERE id = $1", ["int"]), [event["data"]["product"]])
return [r["name"] for r in rows]
$$;
SELECT subdispatch.subscribe('py', 'tst.py_query', id => 'py');
BEGIN;
SELECT subdispatch.publish('py', '{"product": 1}');
INSERT INTO tst.product VALUES (1, 'written after the publish');
COMMIT;
SELECT * FROM tst.results('py');
SELECT tst.clean();

-- Without the transform it gets, and returns, text.
CREATE FUNCTION tst.py_text(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import json
return json.dumps([type(event).__name__, json.loads(event)["data"], json.loads(variables)])
$$;
-- What is not JSON, and an exception, become errors of these subscriptions only.
CREATE FUNCTION tst.py_not_json(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
return "{not json"
$$;
CREATE FUNCTION tst.py_raises(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return event["no such key"]
$$;
CREATE FUNCTION tst.py_sqlstate(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
plpy.error("too late", sqlstate="AB123", detail="a detail")
$$;
CREATE FUNCTION tst.py_exit(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
import sys
sys.exit(3)
$$;
SELECT subdispatch.subscribe('py', ('tst.py_' || f)::regproc, '{"v": 1}', id => f) FROM unnest('{text,not_json,raises,sqlstate,exit}'::text[]) f;
SELECT subdispatch.publish('py', '"data"');
SELECT tst.dispatched();
SELECT f, r #> '{payload,data}' AS data, r #>> '{payload,errors,0,extensions,code}' AS code, r #>> '{payload,errors,0,message}' ~ CASE f WHEN 'raises' THEN 'no such key' WHEN 'sqlstate' THEN 'too late' ELSE '' END AS message,
       jsonb_array_length(nullif(r #> '{payload,errors}', 'null')) AS errors
  FROM unnest('{text,not_json,raises,sqlstate,exit}'::text[]) f, LATERAL (SELECT subdispatch.next_response(f)::jsonb AS r) x;
SELECT tst.clean();

-- Batched: a list of all distinct variables, as many results.
CREATE FUNCTION tst.py_batched(event jsonb, variables jsonb[]) RETURNS jsonb[] LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return [{"of": len(variables), "is": type(variables).__name__, "mine": v["n"], "data": event["data"]} for v in variables]
$$;
SELECT count(subdispatch.subscribe('py', 'tst.py_batched', jsonb_build_object('n', n % 3), id => 'b' || n)) FROM generate_series(1, 6) n;
SELECT subdispatch.publish('py', '"data"');
SELECT n, r FROM generate_series(1, 6) n, tst.results('b' || n) r ORDER BY n;
SELECT tst.clean();
DROP FUNCTION tst.py, tst.py_any, tst.py_none, tst.py_query, tst.py_text, tst.py_not_json, tst.py_raises, tst.py_sqlstate, tst.py_exit, tst.py_batched;
DROP TABLE tst.product;
