-- What a rollback undoes, and what it does not.
SET client_min_messages = warning;
-- Events: only what commits is dispatched.
SELECT subdispatch.subscribe('c', id => 'w');
BEGIN; SELECT subdispatch.publish('c', '"rolled back"'); ROLLBACK;
BEGIN; SELECT subdispatch.publish('c', '"committed"'); COMMIT;
BEGIN;
SELECT subdispatch.publish('c', '1');
SAVEPOINT a;
SELECT subdispatch.publish('c', '"lost 1"');
SAVEPOINT b;
SELECT subdispatch.publish('c', '"lost 2"');
RELEASE b;
ROLLBACK TO a;
SELECT subdispatch.publish('c', '2');
SAVEPOINT c;
SELECT subdispatch.publish('c', '3');
SAVEPOINT d;
SELECT subdispatch.publish('c', '4');
RELEASE c;
SAVEPOINT e;
SELECT subdispatch.publish('c', '"lost 3"');
ROLLBACK TO e;
ROLLBACK TO e;
SELECT subdispatch.publish('c', '5');
COMMIT;
SELECT * FROM tst.results('w');
-- plpgsql's exception blocks are savepoints; a failed statement's events go with it.
DO $$
BEGIN
  FOR i IN 1..4 LOOP
    BEGIN
      PERFORM subdispatch.publish('c', to_jsonb(i));
      IF i % 2 = 0 THEN RAISE 'undo'; END IF;
    EXCEPTION WHEN OTHERS THEN
      PERFORM subdispatch.publish('c', to_jsonb('instead of ' || i));
    END;
  END LOOP;
END $$;
\set VERBOSITY sqlstate
SELECT subdispatch.publish('c', '"lost"'), 1/0;
\set VERBOSITY default
SELECT * FROM tst.results('w');
-- Row images likewise.
CREATE TABLE tst.undone (id int);
CREATE TRIGGER undone AFTER INSERT ON tst.undone FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('c');
BEGIN; INSERT INTO tst.undone VALUES (1); SAVEPOINT s; INSERT INTO tst.undone VALUES (2); ROLLBACK TO s; INSERT INTO tst.undone VALUES (3); COMMIT;
BEGIN; INSERT INTO tst.undone VALUES (4); ROLLBACK;
SELECT r #> '{row,id}' AS id FROM tst.results('w') r;
DROP TABLE tst.undone;
-- A procedure that commits on its way publishes at each commit.
CREATE PROCEDURE tst.commits() LANGUAGE plpgsql AS $$
BEGIN
  PERFORM subdispatch.publish('c', '"first transaction"'); COMMIT;
  PERFORM subdispatch.publish('c', '"undone"'); ROLLBACK;
  PERFORM subdispatch.publish('c', '"third transaction"');
END $$;
CALL tst.commits();
DROP PROCEDURE tst.commits;
SELECT * FROM tst.results('w');
-- Many subtransactions.
DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN PERFORM subdispatch.publish('c', to_jsonb(i)); IF i % 3 = 0 THEN RAISE 'undo'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;
SELECT count(*), array_agg(r::int ORDER BY ord) = array(SELECT i FROM generate_series(1, 300) i WHERE i % 3 <> 0) AS right FROM tst.results('w') WITH ORDINALITY x(r, ord);
-- COMMIT of a failed transaction is a rollback.
BEGIN;
SELECT subdispatch.publish('c', '"lost"');
\set VERBOSITY sqlstate
SELECT 1/0;
\set VERBOSITY default
COMMIT;
SELECT count(*) FROM tst.results('w');
SELECT tst.clean();

-- subscribe() is undone by a rollback of its transaction or savepoint.
BEGIN; SELECT subdispatch.subscribe('c', id => 'undone', consumer => 'g'); ROLLBACK;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('undone')$$), count(*) FROM subdispatch.subscriptions;
BEGIN;
SELECT subdispatch.subscribe('c', id => 'kept');
SAVEPOINT s;
SELECT subdispatch.subscribe('c', id => 'undone');
SELECT subdispatch.subscribe('c', id => 'undone 2') FROM (SELECT 1) x;
ROLLBACK TO s;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('undone')$$) AS gone_at_once;
SAVEPOINT t;
SELECT subdispatch.subscribe('c', id => 'released');
RELEASE t;
COMMIT;
SELECT id FROM subdispatch.subscriptions ORDER BY id;
-- The id is free again.
SELECT subdispatch.subscribe('c', id => 'undone');
SELECT subdispatch.publish('c', '1');
SELECT id, array(SELECT * FROM tst.results(id)) FROM unnest('{kept,released,undone}'::text[]) id;
SELECT tst.clean();
-- An event of the transaction that subscribes is seen by it.
BEGIN;
SELECT subdispatch.publish('c', '"before"');
SELECT subdispatch.subscribe('c', id => 'own');
SELECT subdispatch.publish('c', '"after"');
COMMIT;
SELECT r FROM tst.results('own') r WHERE r = '"after"';
SELECT tst.clean();
-- Subscribed and unsubscribed, then rolled back; and the other way round.
BEGIN; SELECT subdispatch.subscribe('c', id => 'x'), subdispatch.unsubscribe('x'); ROLLBACK;
SELECT subdispatch.unsubscribe('x') AS there;
SELECT subdispatch.subscribe('c', id => 'x');
BEGIN; SELECT subdispatch.unsubscribe('x'), subdispatch.subscribe('c', id => 'x'); ROLLBACK;
SELECT subdispatch.unsubscribe('x') AS there;
BEGIN; SELECT subdispatch.subscribe('c', id => 'x'); SELECT subdispatch.unsubscribe('x'), subdispatch.subscribe('c', id => 'x'); COMMIT;
SELECT subdispatch.unsubscribe('x') AS there;
BEGIN; SELECT subdispatch.subscribe('c', id => 'x'), subdispatch.complete('x'); SELECT subdispatch.next_response('x')::jsonb->>'type'; ROLLBACK;
SELECT subdispatch.unsubscribe('x') AS there;

-- unsubscribe, complete, disconnect and reading take effect at once and are not undone.
SELECT subdispatch.subscribe('c', id => i, connection_id => 'ws-' || i) FROM unnest('{unsubscribed,completed,disconnected,read}'::text[]) i;
SELECT subdispatch.publish('c', '1'), subdispatch.publish('c', '2');
SELECT tst.dispatched();
BEGIN;
SELECT subdispatch.unsubscribe('unsubscribed'), subdispatch.complete('completed'), subdispatch.disconnect('ws-disconnected'), subdispatch.next_response('read')::jsonb #> '{payload,data}' AS data;
ROLLBACK;
SELECT subdispatch.unsubscribe('unsubscribed') AS unsubscribed, subdispatch.disconnect('ws-disconnected') AS disconnected, subdispatch.next_response('read')::jsonb #> '{payload,data}' AS data;
SELECT r->>'type' AS type, r #> '{payload,data}' AS data FROM tst.drain('completed') r;
SELECT tst.clean();
