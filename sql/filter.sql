-- Filters: every operator, on what is there and on what is not. One event, a subscription for each case; only what is
-- answered otherwise than expected is listed.
SET client_min_messages = warning;
CREATE TABLE tst.cases (n serial, filter jsonb, expected boolean);
INSERT INTO tst.cases (filter, expected) VALUES
  ('{}', true),
  -- eq and its short form
  ('{"a": {"eq": 1}}', true), ('{"a": 1}', true), ('{"a": 1.0}', true), ('{"a": 1.000000000000000000001}', false), ('{"a": 2}', false),
  ('{"b": 1}', true), ('{"b": {"eq": 1.00}}', true),
  ('{"big": 18446744073709551617}', true), ('{"big": 18446744073709551618}', false), ('{"big": 18446744073709551616}', false),
  ('{"big": 18446744073709551617.0}', true), ('{"big": 1.8446744073709551617e19}', true),
  ('{"frac": 0.1}', true), ('{"frac": 0.10}', true), ('{"frac": 0.1000000000000000055511151231257827}', false),
  ('{"zero": 0}', true), ('{"zero": -0.0}', true),
  ('{"a": "1"}', false), ('{"a": true}', false), ('{"num_s": 1}', false), ('{"num_s": "1"}', true), ('{"s": "hello"}', true), ('{"s": "Hello"}', false), ('{"s": "hello "}', false),
  ('{"empty": ""}', true), ('{"empty": {"eq": null}}', false), ('{"t": true}', true), ('{"t": {"eq": false}}', false), ('{"f": false}', true), ('{"f": 0}', false),
  ('{"n": {"eq": null}}', true), ('{"n": null}', true), ('{"n": {"eq": false}}', false), ('{"missing": {"eq": null}}', false), ('{"missing": 1}', false),
  ('{"arr": {"eq": [1, 2.0, "x", null, {"k": 1}]}}', true), ('{"arr": {"eq": [1, 2, "x", null]}}', false), ('{"arr": [2, 1, "x", null, {"k": 1}]}', false),
  ('{"o": {"eq": {"x": {"y": 5.0}}}}', true), ('{"o": {"eq": {"x": {"y": 6}}}}', false),
  -- neq
  ('{"a": {"neq": 1.0}}', false), ('{"a": {"neq": 2}}', true), ('{"a": {"neq": "1"}}', true), ('{"a": {"neq": null}}', true), ('{"n": {"neq": null}}', false),
  ('{"missing": {"neq": 1}}', true), ('{"missing": {"neq": null}}', true), ('{"big": {"neq": 18446744073709551618}}', true),
  -- gt, gte, lt, lte
  ('{"a": {"gt": 0}}', true), ('{"a": {"gt": 1}}', false), ('{"a": {"gt": 0.999999999999999999999}}', true), ('{"a": {"gte": 1.0}}', true), ('{"a": {"gte": 1.000000000000000000001}}', false),
  ('{"a": {"lt": 1}}', false), ('{"a": {"lt": 1.000000000000000000001}}', true), ('{"a": {"lte": 1}}', true), ('{"a": {"lte": 0}}', false),
  ('{"neg": {"lt": -3}}', true), ('{"neg": {"gt": -4}}', true), ('{"neg": {"gt": 3}}', false),
  ('{"big": {"gt": 18446744073709551616}}', true), ('{"big": {"gt": 18446744073709551617}}', false), ('{"big": {"lt": 18446744073709551618}}', true), ('{"big": {"lt": 1e400}}', true),
  ('{"a": {"gt": 0, "lt": 2}}', true), ('{"a": {"gt": 0, "lt": 1}}', false),
  -- strings by bytes, whatever the database's collation
  ('{"s": {"gt": "h"}}', true), ('{"s": {"gt": "i"}}', false), ('{"s": {"gt": "Z"}}', true), ('{"s": {"gt": "hello"}}', false), ('{"s": {"gte": "hello"}}', true),
  ('{"s": {"lt": "hello!"}}', true), ('{"s": {"lt": "hell"}}', false), ('{"s": {"lte": "hello"}}', true), ('{"empty": {"lt": "a"}}', true), ('{"u": {"gt": "_"}}', false),
  -- unlike types have no order
  ('{"s": {"gt": 1}}', false), ('{"s": {"lte": 1}}', false), ('{"a": {"lt": "z"}}', false), ('{"a": {"gte": "0"}}', false), ('{"n": {"lt": 1}}', false), ('{"n": {"gte": 0}}', false),
  ('{"t": {"gt": 0}}', false), ('{"arr": {"gt": 0}}', false), ('{"o": {"gte": "a"}}', false),
  ('{"missing": {"gt": 0}}', false), ('{"missing": {"gte": 0}}', false), ('{"missing": {"lt": 0}}', false), ('{"missing": {"lte": 0}}', false),
  -- in, nin
  ('{"a": {"in": [1, 2]}}', true), ('{"a": {"in": [2, 1.0]}}', true), ('{"a": {"in": [2, 3]}}', false), ('{"a": {"in": []}}', false), ('{"a": {"in": ["1"]}}', false),
  ('{"s": {"in": ["x", "hello"]}}', true), ('{"big": {"in": [18446744073709551618]}}', false), ('{"big": {"in": [18446744073709551617]}}', true), ('{"n": {"in": [null]}}', true), ('{"missing": {"in": [null]}}', false),
  ('{"o": {"in": [{"x": {"y": 5}}]}}', true),
  ('{"a": {"nin": [1.0]}}', false), ('{"a": {"nin": [2]}}', true), ('{"a": {"nin": []}}', true), ('{"a": {"nin": ["1"]}}', true), ('{"missing": {"nin": [1]}}', true), ('{"missing": {"nin": [null]}}', true), ('{"n": {"nin": [null]}}', false),
  -- exists
  ('{"a": {"exists": true}}', true), ('{"a": {"exists": false}}', false), ('{"missing": {"exists": true}}', false), ('{"missing": {"exists": false}}', true), ('{"n": {"exists": true}}', true), ('{"n": {"exists": false}}', false),
  ('{"o.x.y": {"exists": true}}', true), ('{"o.x.z": {"exists": true}}', false), ('{"o.x.y.z": {"exists": true}}', false), ('{"a.x": {"exists": false}}', true),
  -- contains: a part of a string, an element of an array
  ('{"s": {"contains": "ell"}}', true), ('{"s": {"contains": "hello"}}', true), ('{"s": {"contains": "ELL"}}', false), ('{"s": {"contains": ""}}', true), ('{"empty": {"contains": "x"}}', false),
  ('{"arr": {"contains": "x"}}', true), ('{"arr": {"contains": 2.0}}', true), ('{"arr": {"contains": 9}}', false), ('{"arr": {"contains": "1"}}', false), ('{"arr": {"contains": null}}', true),
  ('{"a": {"contains": "1"}}', false), ('{"missing": {"contains": "x"}}', false), ('{"n": {"contains": "x"}}', false),
  -- starts_with
  ('{"s": {"starts_with": "he"}}', true), ('{"s": {"starts_with": "hello"}}', true), ('{"s": {"starts_with": "hello!"}}', false), ('{"s": {"starts_with": "lo"}}', false), ('{"s": {"starts_with": ""}}', true),
  ('{"s": {"starts_with": "He"}}', false), ('{"a": {"starts_with": "1"}}', false), ('{"arr": {"starts_with": "x"}}', false), ('{"missing": {"starts_with": "x"}}', false), ('{"missing": {"starts_with": ""}}', false),
  -- paths
  ('{"o.x.y": 5}', true), ('{"o.x.y": {"gt": 5}}', false), ('{"o.x": {"eq": {"y": 5}}}', true), ('{"o.x.y.w": 5}', false), ('{"s.x": "hello"}', false),
  -- several fields: all of them
  ('{"a": 1, "s": "hello", "o.x.y": {"lt": 6}}', true), ('{"a": 1, "s": "hello", "o.x.y": {"lt": 5}}', false), ('{"a": 1, "missing": 1}', false),
  -- and, or, not
  ('{"and": [{"a": 1}, {"s": "hello"}]}', true), ('{"and": [{"a": 1}, {"s": "x"}]}', false), ('{"or": [{"a": 2}, {"s": "hello"}]}', true), ('{"or": [{"a": 2}, {"s": "x"}]}', false),
  ('{"not": {"a": 2}}', true), ('{"not": {"a": 1}}', false), ('{"not": {"missing": 1}}', true), ('{"not": {"missing": {"neq": 1}}}', false), ('{"not": {"a": 1, "s": "x"}}', true), ('{"not": {"not": {"a": 1}}}', true),
  ('{"a": 1, "or": [{"a": 2}, {"b": 1}]}', true), ('{"a": 2, "or": [{"a": 2}, {"b": 1}]}', false), ('{"a": 1, "or": [{"a": 2}, {"b": 2}]}', false),
  ('{"or": [{"and": [{"a": 1}, {"b": 2}]}, {"not": {"or": [{"a": 2}, {"s": {"contains": "z"}}]}}]}', true),
  ('{"a": 1, "not": {"s": "x"}, "and": [{"b": 1}], "or": [{"t": true}]}', true);
SELECT count(subdispatch.subscribe('filter', filter => filter, id => 'f' || n)) = (SELECT count(*) FROM tst.cases) AS all_accepted FROM tst.cases;
SELECT subdispatch.publish('filter', '{"a": 1, "b": 1.0, "big": 18446744073709551617, "frac": 0.1, "zero": 0, "neg": -3.5, "s": "hello", "empty": "", "u": "A", "num_s": "1",
  "n": null, "t": true, "f": false, "arr": [1, 2, "x", null, {"k": 1}], "o": {"x": {"y": 5}}}');
SELECT tst.dispatched();
SELECT filter, expected FROM tst.cases WHERE expected <> (subdispatch.next_response('f' || n) IS NOT NULL) ORDER BY n;
-- Data that are no object: every field is missing.
SELECT subdispatch.publish('filter', '5');
SELECT tst.dispatched();
SELECT filter FROM tst.cases WHERE (subdispatch.next_response('f' || n) IS NOT NULL) <> (filter::text IN
  ('{}', '{"a": {"neq": 1.0}}', '{"a": {"neq": 2}}', '{"a": {"neq": "1"}}', '{"a": {"neq": null}}', '{"n": {"neq": null}}', '{"missing": {"neq": 1}}', '{"missing": {"neq": null}}', '{"big": {"neq": 18446744073709551618}}',
   '{"a": {"nin": [1.0]}}', '{"a": {"nin": [2]}}', '{"a": {"nin": []}}', '{"a": {"nin": ["1"]}}', '{"missing": {"nin": [1]}}', '{"missing": {"nin": [null]}}', '{"n": {"nin": [null]}}',
   '{"a": {"exists": false}}', '{"missing": {"exists": false}}', '{"n": {"exists": false}}', '{"a.x": {"exists": false}}',
   '{"not": {"a": 2}}', '{"not": {"a": 1}}', '{"not": {"missing": 1}}', '{"not": {"a": 1, "s": "x"}}', '{"or": [{"and": [{"a": 1}, {"b": 2}]}, {"not": {"or": [{"a": 2}, {"s": {"contains": "z"}}]}}]}')) ORDER BY n;
SELECT tst.clean();

-- Strings are compared by their bytes beyond ASCII as well (a database in UTF8 or not).
SELECT subdispatch.subscribe('filter', filter => jsonb_build_object('u', jsonb_build_object('gt', 'z')), id => 'bytes');
SELECT count(subdispatch.publish('filter', jsonb_build_object('u', chr(233))) IS NULL) FROM generate_series(1, 1);
SELECT count(*) FROM tst.results('bytes');
SELECT tst.clean();

-- Filters on a change's images.
CREATE TABLE tst.filtered (id int, status text);
CREATE TRIGGER filtered AFTER INSERT OR UPDATE OR DELETE ON tst.filtered FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('changes');
SELECT subdispatch.subscribe('changes', filter => '{"row.status": "open"}', id => 'open'), subdispatch.subscribe('changes', filter => '{"op": {"in": ["UPDATE", "DELETE"]}}', id => 'op'),
       subdispatch.subscribe('changes', filter => '{"old.status": "open", "row.status": {"neq": "open"}}', id => 'closed');
INSERT INTO tst.filtered VALUES (1, 'open'), (2, 'closed');
UPDATE tst.filtered SET status = 'closed' WHERE id = 1;
DELETE FROM tst.filtered WHERE id = 1;
SELECT id, array(SELECT (r->>'op') || ' ' || (r #>> '{row,id}') FROM tst.results(id) r) FROM unnest('{open,op,closed}'::text[]) id;
DROP TABLE tst.filtered;
SELECT tst.clean();

-- Many streams that differ in the value of one field only: each event reaches its own.
SELECT count(subdispatch.subscribe('index', filter => jsonb_build_object('k', n), id => 'n' || n)), count(subdispatch.subscribe('index', filter => jsonb_build_object('k', n::text), id => 's' || n)) FROM generate_series(1, 100) n;
SELECT subdispatch.subscribe('index', filter => '{"k": {"eq": 7.00}, "extra": true}', id => 'both');
SELECT count(subdispatch.publish('index', jsonb_build_object('k', n)) IS NULL), count(subdispatch.publish('index', jsonb_build_object('k', n::text)) IS NULL) FROM generate_series(1, 100) n;
SELECT subdispatch.publish('index', '{"k": 7.0, "extra": true}');
SELECT tst.dispatched();
SELECT n, array(SELECT r FROM tst.results('n' || n) r) AS as_number, array(SELECT r FROM tst.results('s' || n) r) AS as_string FROM generate_series(7, 8) n;
SELECT count(*) FILTER (WHERE array(SELECT r FROM tst.results('n' || n) r) = array[jsonb_build_object('k', n)]) AS numbers_right,
       count(*) FILTER (WHERE array(SELECT r FROM tst.results('s' || n) r) = array[jsonb_build_object('k', n::text)]) AS strings_right FROM generate_series(9, 100) n;
SELECT * FROM tst.results('both');
SELECT tst.clean();

-- Refused, with what is wrong in the message.
SELECT f AS filter, tst.fails(format('SELECT subdispatch.subscribe(''c'', filter => %L)', f), names) FROM (VALUES
  ('[]', NULL), ('5', NULL), ('"x"', NULL), ('null', NULL),
  ('{"a": {"like": 1}}', 'like'), ('{"a": {"eq": 1, "regex": "x"}}', 'regex'), ('{"o": {"x": {"y": 5}}}', 'x'),
  ('{"a": {"in": 1}}', 'in'), ('{"a": {"nin": {"x": 1}}}', 'nin'), ('{"a": {"exists": 1}}', 'exists'), ('{"a": {"exists": null}}', 'exists'), ('{"a": {"starts_with": 1}}', 'starts_with'),
  ('{"and": {"a": 1}}', 'and'), ('{"or": 1}', 'or'), ('{"or": [1]}', 'or'), ('{"and": [[]]}', 'and'), ('{"not": [{"a": 1}]}', 'not'), ('{"not": 1}', 'not')) v(f, names);
-- At most 10 levels.
CREATE FUNCTION tst.nested(levels int) RETURNS jsonb LANGUAGE sql AS $$ SELECT (repeat('{"not": ', levels) || '{"a": 1}' || repeat('}', levels))::jsonb $$;
SELECT subdispatch.subscribe('c', filter => tst.nested(8), id => 'nested 8');
SELECT tst.fails('SELECT subdispatch.subscribe(''c'', filter => tst.nested(12))', '10'), tst.fails('SELECT subdispatch.subscribe(''c'', filter => tst.nested(2000))', '10');
SELECT subdispatch.publish('c', '{"a": 1}'), subdispatch.publish('c', '{"a": 2}');
SELECT * FROM tst.results('nested 8');
DROP FUNCTION tst.nested;
DROP TABLE tst.cases;
SELECT tst.clean();
