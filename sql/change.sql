-- publish_change(): the images of the change.
SET client_min_messages = warning;
CREATE TYPE tst.mood AS ENUM ('sad', 'happy');
CREATE TYPE tst.pair AS (a int, b text);
CREATE TABLE tst.item (id int PRIMARY KEY, gone int, name text, price numeric, at timestamptz, d date, span interval, b bytea,
                       f float8, arr int[], j jsonb, mood tst.mood, pair tst.pair, r daterange,
                       twice numeric GENERATED ALWAYS AS (price * 2) STORED);
ALTER TABLE tst.item DROP COLUMN gone;
CREATE TRIGGER item_row AFTER INSERT OR UPDATE OR DELETE ON tst.item
  FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
CREATE TRIGGER item_truncate AFTER TRUNCATE ON tst.item
  FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('items');

SELECT subdispatch.subscribe('items', id => 'item');
INSERT INTO tst.item (id, name, price) VALUES (1, 'pen', 1.50), (2, NULL, NULL);
UPDATE tst.item SET name = 'pencil' WHERE id = 1;
DELETE FROM tst.item WHERE id = 2;
TRUNCATE tst.item;
-- INSERT and DELETE have no "old", TRUNCATE has neither image.
SELECT d - '{row,old}'::text[] AS change, jsonb_strip_nulls(d->'row') AS "row", jsonb_strip_nulls(d->'old') AS old,
       d ? 'row' AS has_row, d ? 'old' AS has_old
  FROM tst.results('item') d;

-- Every column is there, NULL or not; dropped ones are not.
INSERT INTO tst.item (id) VALUES (3);
SELECT d->'row' AS "row" FROM tst.results('item') d;

-- What the JSON shows does not depend on the writer's settings.
CREATE FUNCTION tst.write(n int) RETURNS void LANGUAGE sql AS $$
  INSERT INTO tst.item VALUES (n, 'x', 1.10, '2024-02-03 04:05:06.789+00', '2024-02-03', '1 year 2 days 03:04:05', '\x00ff41',
                               0.1::float8 + 0.2, '{1,NULL,3}', '{"b": [1.0], "a": null}', 'happy', '(1,"x,y")', '[2024-02-03,2024-03-04)');
$$;
SELECT tst.write(10);
SET datestyle = 'German'; SET timezone = 'Asia/Kathmandu'; SET intervalstyle = 'sql_standard'; SET bytea_output = 'escape';
SET extra_float_digits = -10; SET search_path = pg_catalog; SET lc_monetary = 'C';
SELECT tst.write(11);
RESET datestyle; RESET timezone; RESET intervalstyle; RESET bytea_output; RESET extra_float_digits; RESET search_path; RESET lc_monetary;
CREATE TABLE tst.got AS SELECT d->'row' AS "row" FROM tst.results('item') d;
SELECT count(*), count(DISTINCT "row" - 'id') AS different, bool_and("row" - 'id' = (SELECT to_jsonb(i) - 'id' FROM tst.item i WHERE id = 10)
       OR ("row"->>'at')::timestamptz = '2024-02-03 04:05:06.789+00') AS right
  FROM tst.got;
SELECT "row"->'d' AS d, "row"->'f' AS f, "row"->'b' AS b, "row"->'arr' AS arr, "row"->'j' AS j, "row"->'mood' AS mood, "row"->'pair' AS pair,
       "row"->'r' AS r, "row"->'price' AS price, "row"->'twice' AS twice, ("row"->>'span')::interval = '1 year 2 days 03:04:05' AS span,
       ("row"->>'at')::timestamptz = '2024-02-03 04:05:06.789+00' AS at
  FROM tst.got WHERE ("row"->'id')::int = 10;
DROP TABLE tst.got;

-- The image is of the change, not of the row as it is later.
BEGIN;
UPDATE tst.item SET name = 'first' WHERE id = 10;
UPDATE tst.item SET name = 'second' WHERE id = 10;
DELETE FROM tst.item WHERE id = 10;
COMMIT;
SELECT d->'op' AS op, d #> '{row,name}' AS name, d #> '{old,name}' AS old_name FROM tst.results('item') d;

-- Values stored out of line, also those that an UPDATE did not touch.
CREATE TABLE tst.big (id int PRIMARY KEY, n int, v text);
ALTER TABLE tst.big ALTER COLUMN v SET STORAGE EXTERNAL;
CREATE TRIGGER big AFTER INSERT OR UPDATE OR DELETE ON tst.big FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items', 'big.changed');
BEGIN;
INSERT INTO tst.big VALUES (1, 1, repeat('v', 100000));
UPDATE tst.big SET n = 2;
DELETE FROM tst.big;
COMMIT;
VACUUM tst.big;
SELECT d->>'op' AS op, d #>> '{row,v}' = repeat('v', 100000) AS "row", d #>> '{old,v}' = repeat('v', 100000) AS old FROM tst.results('item') d;
-- A row too large for an event names the setting, and the row is not written.
SELECT tst.fails($$INSERT INTO tst.big VALUES (2, 1, repeat('v', 1100000))$$, 'subdispatch.max_event_size');
SELECT count(*) FROM tst.big;

-- The event around the change: source, the type from the trigger's second argument.
SELECT subdispatch.subscribe('items', 'tst.echo', id => 'event');
INSERT INTO tst.big VALUES (3, 1, 'v');
SELECT subdispatch.publish('items', '{"op": "INSERT", "schema": "tst", "table": "big", "row": {"id": 4}}');
SELECT e - '{id,timestamp}'::text[] AS event FROM tst.results('event') e;
SELECT count(*) FROM tst.results('item');

-- Two channels, a condition, one column only: plain PostgreSQL triggers.
CREATE TRIGGER big_big AFTER UPDATE OF n ON tst.big FOR EACH ROW WHEN (NEW.n > 10) EXECUTE FUNCTION subdispatch.publish_change('big numbers');
SELECT subdispatch.subscribe('big numbers', id => 'numbers');
UPDATE tst.big SET n = 11; UPDATE tst.big SET n = 5; UPDATE tst.big SET v = 'w';
SELECT d #> '{row,n}' AS n FROM tst.results('numbers') d;
SELECT d #> '{row,n}' AS n, d #> '{row,v}' AS v FROM tst.results('item') d;

-- A name that needs quotes; a table in another schema.
CREATE SCHEMA "Odd ""schema";
CREATE TABLE "Odd ""schema"."Odd ""table" ("Odd ""column" int);
CREATE TRIGGER odd AFTER INSERT ON "Odd ""schema"."Odd ""table" FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
INSERT INTO "Odd ""schema"."Odd ""table" VALUES (1);
SELECT d FROM tst.results('item') d;
DROP SCHEMA "Odd ""schema" CASCADE;

-- A partitioned table: the table is the one that the trigger was created on, whatever the leaf's column order;
-- an UPDATE that moves a row is a DELETE and an INSERT.
CREATE TABLE tst.part (id int, region text, v int) PARTITION BY LIST (region);
CREATE TABLE tst.part_eu PARTITION OF tst.part FOR VALUES IN ('eu');
CREATE TABLE tst.part_us (v int, dropped text, region text, id int);
ALTER TABLE tst.part_us DROP COLUMN dropped;
ALTER TABLE tst.part ATTACH PARTITION tst.part_us FOR VALUES IN ('us');
CREATE TRIGGER part AFTER INSERT OR UPDATE OR DELETE ON tst.part FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('parts');
CREATE TRIGGER part_truncate AFTER TRUNCATE ON tst.part FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('parts');
SELECT subdispatch.subscribe('parts', id => 'part');
INSERT INTO tst.part VALUES (1, 'eu', 10), (2, 'us', 20);
UPDATE tst.part SET v = v + 1;
UPDATE tst.part SET region = 'us' WHERE id = 1;
INSERT INTO tst.part_us (id, region, v) VALUES (3, 'us', 30);
DELETE FROM tst.part WHERE id = 2;
TRUNCATE tst.part;
SELECT d FROM tst.results('part') d;
-- A sub-partition, and a trigger that a partition has of its own.
CREATE TABLE tst.part_as PARTITION OF tst.part FOR VALUES IN ('as') PARTITION BY RANGE (id);
CREATE TABLE tst.part_as1 PARTITION OF tst.part_as FOR VALUES FROM (0) TO (100);
CREATE TRIGGER own AFTER INSERT ON tst.part_eu FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('parts', 'own');
INSERT INTO tst.part VALUES (4, 'as', 40), (5, 'eu', 50);
SELECT d FROM tst.results('part') d ORDER BY d #> '{row,id}', d->'table';

-- The table changes within the transaction that wrote: the images stay those of the change.
CREATE TABLE tst.alter (id int, a int, b text);
CREATE TRIGGER alter AFTER INSERT OR UPDATE ON tst.alter FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
BEGIN;
INSERT INTO tst.alter VALUES (1, 1, 'x');
ALTER TABLE tst.alter ADD COLUMN c int DEFAULT 7;
INSERT INTO tst.alter VALUES (2, 2, 'y', 8);
ALTER TABLE tst.alter DROP COLUMN b;
INSERT INTO tst.alter VALUES (3, 3, 9);
ALTER TABLE tst.alter ALTER COLUMN a TYPE text USING 'text ' || a;
INSERT INTO tst.alter VALUES (4, 'four', 10);
COMMIT;
SELECT d->'table' AS "table", d #> '{row,id}' AS id, d #>> '{row,a}' AS a, coalesce(d #>> '{row,b}', 'x') IN ('x', 'y') AS b FROM tst.results('item') d;
-- It is dropped before the dispatcher can look at it: nobody can be shown more than the image, and later events arrive.
BEGIN;
INSERT INTO tst.alter VALUES (5, 'five', 10);
DROP TABLE tst.alter;
SELECT subdispatch.publish('items', '"after the drop"');
COMMIT;
SELECT d FROM tst.results('item') d WHERE jsonb_typeof(d) = 'string';

-- COPY, ON CONFLICT, MERGE and foreign keys' actions fire triggers as ever.
CREATE TABLE tst.child (id int PRIMARY KEY, big int REFERENCES tst.big ON DELETE CASCADE);
CREATE TRIGGER child AFTER INSERT OR UPDATE OR DELETE ON tst.child FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
COPY tst.child FROM stdin;
1	3
2	3
\.
INSERT INTO tst.child VALUES (1, 3) ON CONFLICT (id) DO UPDATE SET id = 7;
DELETE FROM tst.big;
SELECT d->'op' AS op, d->'table' AS "table", d #> '{row,id}' AS id FROM tst.results('item') d ORDER BY d->'table', d->'op', d #> '{row,id}';

-- Trigger definitions that are refused when they fire.
CREATE TABLE tst.wrong (id int);
CREATE VIEW tst.wrong_view AS SELECT * FROM tst.wrong;
CREATE FUNCTION tst.try(definition text, cmd text DEFAULT 'INSERT INTO tst.wrong VALUES (1)') RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
  BEGIN
    EXECUTE 'CREATE TRIGGER try ' || definition;
    result := tst.fails(cmd);
    RAISE 'undo';
  EXCEPTION WHEN raise_exception THEN RETURN result;
            WHEN OTHERS THEN RETURN 'refused by CREATE TRIGGER';
  END;
END $$;
SELECT tst.try($$BEFORE INSERT ON tst.wrong FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items')$$) AS before;
SELECT tst.try($$AFTER INSERT ON tst.wrong FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('items')$$) AS for_each_statement;
SELECT tst.try($$INSTEAD OF INSERT ON tst.wrong_view FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items')$$, 'INSERT INTO tst.wrong_view VALUES (1)') AS instead_of;
SELECT tst.try($$BEFORE TRUNCATE ON tst.wrong FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('items')$$, 'TRUNCATE tst.wrong') AS before_truncate;
SELECT tst.try($$AFTER INSERT ON tst.wrong FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change()$$) AS no_channel;
SELECT tst.try($$AFTER INSERT ON tst.wrong FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('')$$) AS empty_channel;
SELECT tst.try($$AFTER INSERT ON tst.wrong FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('*')$$) AS star;
SELECT tst.try($$AFTER INSERT ON tst.wrong FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items', 'type', 'more')$$) AS too_many;
SELECT tst.fails('SELECT subdispatch.publish_change()') AS not_a_trigger;
-- Temporary tables are refused.
CREATE TEMP TABLE temporary (id int);
CREATE TRIGGER temporary AFTER INSERT ON temporary FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
SELECT tst.fails('INSERT INTO temporary VALUES (1)', 'temporary');
SELECT count(*) FROM tst.results('item');

DROP TABLE tst.item, tst.child, tst.big, tst.part, tst.wrong CASCADE;
DROP TYPE tst.mood, tst.pair;
DROP FUNCTION tst.write, tst.try;
SELECT tst.clean();
