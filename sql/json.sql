-- What JSON shows is, byte for byte, what PostgreSQL's jsonb shows.
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE TYPE tst.kind AS ENUM ('sad', 'happy');
CREATE TABLE tst.kinds (id int PRIMARY KEY, s int2, b int8, n numeric, f float8, f4 float4, yes bool, t text, v varchar(40), c char(5), d date,
                        ts timestamp, tz timestamptz, u uuid, j jsonb, o json, a text[], nn numeric(10,3), na name, by bytea, feeling tst.kind);
CREATE TRIGGER kinds AFTER INSERT ON tst.kinds FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('kinds');
SELECT subdispatch.subscribe('kinds', id => 'kinds');

INSERT INTO tst.kinds (id) VALUES (1);
INSERT INTO tst.kinds VALUES
  (2, 32767, 9223372036854775807, 1.10, 0.1::float8 + 0.2, 1.5, true, 'plain', 'v', 'ab', '2024-02-29', '2024-02-29 23:59:59.999999',
   '2024-02-29 23:59:59+00', '00000000-0000-0000-0000-00000000002a', '{"b": [1.0, {"x": null}], "a": "é", "cc": {}}', '{"z": 1, "a": [ ]}', '{a,NULL,"b c"}',
   5, 'name', '\x00ff', 'happy'),
  (-3, -32768, -9223372036854775808, -0.000, 'NaN', '-Infinity', false, E'q"uo\\te /\b\f\n\r\t\x01\x1f é \x7f', '', '', 'infinity', '-infinity', 'infinity',
   NULL, '"just a string"', '12.50', '{}', 0, '', '', 'sad'),
  (4, 0, 0, 'NaN', 1e300, 1e-30, NULL, repeat('long "text" ', 1000), NULL, NULL, '0044-03-15 BC', '0044-03-15 12:00 BC', '294276-12-31 23:59:59+00',
   NULL, '[]', 'null', '{{1,2},{3,4}}', 99999.999, NULL, NULL, NULL),
  (5, 1, 1, 'Infinity', 0, -0.0::float4, true, 'x', 'x', 'x', 'today', '1970-01-01', '1970-01-01', NULL, 'null', '"x"', NULL,
   NULL, NULL, NULL, NULL),
  (6, 1, 1, 123456789012345678901234567890.123456789012345678901234567890e40, 1e15, 1e6, true, '', 'x', 'x', NULL, NULL, NULL, NULL, '1e400', '1e2', NULL,
   NULL, NULL, NULL, NULL);
SELECT subdispatch.wait_dispatched();
SELECT count(*) AS rows, bool_and(r = format('{"type":"next","id":"kinds","payload":{"data":%s,"errors":null}}',
         jsonb_build_object('op', 'INSERT', 'schema', 'tst', 'table', 'kinds', 'row', to_jsonb(k)))) AS same
  FROM subdispatch.next_responses('kinds') r JOIN tst.kinds k ON k.id = (r::jsonb #>> '{payload,data,row,id}')::int;

-- More members than lie between two offsets of jsonb's; dropped columns; names that sort by length first.
DO $$
BEGIN
  EXECUTE (SELECT 'CREATE TABLE tst.wide (id int PRIMARY KEY, ' || string_agg(format('%I %s', repeat(chr(97 + n % 26), 1 + n % 7) || n,
             CASE n % 4 WHEN 0 THEN 'numeric' WHEN 1 THEN 'text' WHEN 2 THEN 'bool' ELSE 'jsonb' END), ', ') || ')' FROM generate_series(1, 100) n);
END $$;
ALTER TABLE tst.wide DROP COLUMN bb1;
CREATE TRIGGER wide AFTER INSERT ON tst.wide FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('kinds');
INSERT INTO tst.wide (id) VALUES (1);
INSERT INTO tst.wide SELECT (jsonb_populate_record(NULL::tst.wide, (SELECT jsonb_object_agg(attname,
    CASE atttypid WHEN 'numeric'::regtype THEN to_jsonb(attnum * 1.5) WHEN 'text'::regtype THEN to_jsonb(repeat('é', attnum % 5))
                  WHEN 'bool'::regtype THEN to_jsonb(attnum % 3 = 0) WHEN 'jsonb'::regtype THEN jsonb_build_array(attnum, jsonb_build_object('k', attnum))
                  ELSE '2' END) FROM pg_attribute WHERE attrelid = 'tst.wide'::regclass AND attnum > 0 AND NOT attisdropped))).*;
SELECT subdispatch.wait_dispatched();
SELECT count(*) AS rows, bool_and(r = format('{"type":"next","id":"kinds","payload":{"data":%s,"errors":null}}',
         jsonb_build_object('op', 'INSERT', 'schema', 'tst', 'table', 'wide', 'row', to_jsonb(w)))) AS same
  FROM subdispatch.next_responses('kinds') r JOIN tst.wide w ON w.id = (r::jsonb #>> '{payload,data,row,id}')::int;

-- What was published, scalars too, and through a resolver's envelope.
CREATE FUNCTION tst.envelope(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event - '{id,timestamp}'::text[] $$;
SELECT subdispatch.subscribe('docs', id => 'docs'), subdispatch.subscribe('docs', 'tst.envelope', id => 'envelope');
CREATE TABLE tst.doc (n int, d jsonb);
INSERT INTO tst.doc VALUES (1, '1.500'), (2, '"s\"\\\u0001"'), (3, 'null'), (4, 'true'), (5, '[]'), (6, '{}'), (7, '[[], {}, [[1, -0.0]], "é\n"]'),
  (8, (SELECT jsonb_object_agg('key' || i, jsonb_build_array(i, i / 3.0, repeat('x', i))) FROM generate_series(1, 200) i)),
  (9, (SELECT jsonb_agg(jsonb_build_object('i', i)) FROM generate_series(1, 200) i)), (10, (repeat('[', 300) || repeat(']', 300))::jsonb);
SELECT count(subdispatch.publish('docs', d, 'type', 'corr', NULL)) FROM (SELECT d FROM tst.doc ORDER BY n) d;
SELECT subdispatch.wait_dispatched();
SELECT count(*) AS rows, bool_and(r = format('{"type":"next","id":"docs","payload":{"data":%s,"errors":null}}', d)) AS same
  FROM (SELECT r, row_number() OVER () AS n FROM subdispatch.next_responses('docs') r) r JOIN tst.doc USING (n);
SELECT count(*) AS rows, bool_and(r = format('{"type":"next","id":"envelope","payload":{"data":%s,"errors":null}}',
         jsonb_build_object('event_type', 'type', 'channel', 'docs', 'data', d, 'correlation_id', 'corr', 'federation_id', NULL, 'source', 'publish'))) AS same
  FROM (SELECT r, row_number() OVER () AS n FROM subdispatch.next_responses('envelope') r) r JOIN tst.doc USING (n);
SELECT subdispatch.unsubscribe(id) FROM unnest('{kinds,docs,envelope}'::text[]) id;
DROP TABLE tst.kinds, tst.wide, tst.doc;
DROP FUNCTION tst.envelope;
DROP TYPE tst.kind;
