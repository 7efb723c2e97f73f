-- A subscription is its owner's; run_as, settings and EXECUTE are the identity's.
SET client_min_messages = warning;
CREATE FUNCTION tst.whoami(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tst.calls VALUES ('whoami', to_jsonb(current_user));
  RETURN jsonb_build_object('user', current_user, 'app.user_id', nullif(current_setting('app.user_id', true), ''), 'app.tenant', nullif(current_setting('app.tenant', true), ''));
END $$;
SELECT subdispatch.grant_channel('c', '-', 'subscribe');
-- Ids, connections and consumers are named in the owner's namespace.
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('c', id => 'mine', consumer => 'g', connection_id => 'ws'), subdispatch.subscribe('c', id => 'alice''s', consumer => 'alice''s', connection_id => 'alice''s');
SET ROLE regress_sub_bob;
SELECT subdispatch.subscribe('c', id => 'mine', consumer => 'g', connection_id => 'ws', response_key => 'bob');
SELECT id, owner::text, consumer, connection_id FROM subdispatch.subscriptions;
SELECT consumer, owner::text, subscriptions FROM subdispatch.consumers;
-- Somebody else's is like one that never was.
SELECT tst.sqlstate($$SELECT subdispatch.next_response('alice''s')$$) AS next_response, tst.sqlstate($$SELECT * FROM subdispatch.next_responses('alice''s')$$) AS next_responses,
       tst.sqlstate($$SELECT * FROM subdispatch.poll('alice''s')$$) AS poll, tst.sqlstate($$SELECT * FROM subdispatch.poll_shared('alice''s')$$) AS poll_shared,
       subdispatch.unsubscribe('alice''s') AS unsubscribe, subdispatch.complete('alice''s') AS complete, subdispatch.disconnect('alice''s') AS disconnect, subdispatch.close_consumer('alice''s') AS close_consumer;
\set VERBOSITY sqlstate
CALL subdispatch.await_response('alice''s', '50ms');
CALL subdispatch.await_responses('alice''s', '50ms');
\set VERBOSITY default
SELECT subdispatch.open_consumer('alice''s') AS his_own;
RESET ROLE;
-- A superuser sees all, and reads another's by SET ROLE only.
SELECT id, owner::text FROM subdispatch.subscriptions ORDER BY owner::text, id;
SELECT consumer, owner::text, subscriptions FROM subdispatch.consumers ORDER BY owner::text, consumer;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('alice''s')$$) AS next_response, subdispatch.unsubscribe('alice''s') AS unsubscribe;
SET ROLE regress_sub_monitor;
SELECT count(*) AS monitor_sees FROM subdispatch.subscriptions;
RESET ROLE;
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
SET ROLE regress_sub_alice;
SELECT subscription_id, response::jsonb #> '{payload,data}' AS data FROM subdispatch.poll('g');
SELECT subdispatch.disconnect('ws') AS one;
SET ROLE regress_sub_bob;
SELECT subscription_id, response::jsonb #> '{payload,data}' AS data FROM subdispatch.poll('g');
RESET ROLE;
-- SECURITY DEFINER: the owner is current_user.
CREATE FUNCTION tst.subscribe_as_alice() RETURNS text SECURITY DEFINER LANGUAGE sql AS $$ SELECT subdispatch.subscribe('c', id => 'definer') $$;
ALTER FUNCTION tst.subscribe_as_alice OWNER TO regress_sub_alice;
SELECT tst.subscribe_as_alice();
SELECT tst.sqlstate($$SELECT subdispatch.next_response('definer')$$);
SET ROLE regress_sub_alice;
SELECT subdispatch.next_response('definer') IS NULL AS hers;
SELECT tst.clean();
SET ROLE regress_sub_bob;
SELECT tst.clean();
RESET ROLE;

-- EXECUTE on nothing is PUBLIC's; with no grant not even the schema is open.
SET ROLE regress_sub_nobody;
SELECT has_schema_privilege('subdispatch', 'USAGE') AND tst.sqlstate($$SELECT subdispatch.subscribe('c')$$) <> '42501' AS may;
RESET ROLE;

-- Resolvers run with the owner's rights, or run_as's.
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('c', 'tst.whoami', id => 'alice');
SELECT tst.fails($$SELECT subdispatch.subscribe('c', run_as => 'regress_sub_bob')$$, 'regress_sub_bob'), tst.sqlstate($$SELECT subdispatch.subscribe('c', run_as => 'regress_sub_bob')$$);
SET ROLE regress_sub_gateway;
SELECT subdispatch.subscribe('c', 'tst.whoami', run_as => 'regress_sub_alice', id => 'for alice', consumer => 'gw'), subdispatch.subscribe('c', 'tst.whoami', id => 'gateway', consumer => 'gw'),
       subdispatch.subscribe('c', 'tst.whoami', id => 'gateway too', consumer => 'gw');
SELECT id, owner::text, role::text FROM subdispatch.subscriptions ORDER BY id;
RESET ROLE;
SELECT subdispatch.subscribe('c', 'tst.whoami', run_as => 'regress_sub_bob', id => 'for bob');
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
SELECT r->'user' AS "user" FROM tst.results('for bob') r;
SET ROLE regress_sub_alice;
SELECT r->'user' AS "user" FROM tst.results('alice') r;
SET ROLE regress_sub_gateway;
SELECT subscription_id, response::jsonb #> '{payload,data,user}' AS "user" FROM subdispatch.poll('gw') ORDER BY 1;
RESET ROLE;
-- An identity each: owner and role.
SELECT variables AS "user", count(*) FROM tst.calls GROUP BY 1 ORDER BY 1;
SELECT tst.clean();
SET ROLE regress_sub_alice;
SELECT tst.clean();
SET ROLE regress_sub_gateway;
SELECT tst.clean();
RESET ROLE;
TRUNCATE tst.calls;

-- EXECUTE on the resolver is asked at subscribe(), and again at every event.
CREATE FUNCTION tst.restricted(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event->''data''';
REVOKE EXECUTE ON FUNCTION tst.restricted FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tst.restricted TO regress_sub_alice;
SET ROLE regress_sub_bob;
SELECT tst.sqlstate($$SELECT subdispatch.subscribe('c', 'tst.restricted')$$);
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('c', 'tst.restricted', id => 'restricted');
RESET ROLE;
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
REVOKE EXECUTE ON FUNCTION tst.restricted FROM regress_sub_alice;
SELECT subdispatch.publish('c', '2');
SELECT tst.dispatched();
SET ROLE regress_sub_alice;
SELECT r->>'type' AS type, r #> '{payload,data}' AS data, r #>> '{payload,0,extensions,code}' AS code FROM tst.drain('restricted') r;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('restricted')$$);
SELECT tst.clean();
-- So is run_as: who lost the role loses the subscription.
SET ROLE regress_sub_gateway;
SELECT subdispatch.subscribe('c', id => 'lost', run_as => 'regress_sub_alice'), subdispatch.subscribe('c', id => 'own');
RESET ROLE;
REVOKE regress_sub_alice FROM regress_sub_gateway;
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
GRANT regress_sub_alice TO regress_sub_gateway;
SET ROLE regress_sub_gateway;
SELECT id, r->>'type' AS type, r #> '{payload,data}' AS data FROM unnest('{lost,own}'::text[]) id, tst.drain(id) r;
SELECT tst.clean();
RESET ROLE;
-- A dropped role ends what it owned.
CREATE ROLE regress_sub_brief;
SELECT subdispatch.subscribe('c', id => 'brief', run_as => 'regress_sub_brief');
DROP ROLE regress_sub_brief;
SELECT subdispatch.publish('c', '1');
SELECT r->>'type' AS type FROM tst.drain('brief') r;
SELECT tst.clean();

-- settings: only keys out of context_settings, exactly those given, the others unset.
SELECT tst.fails($$SET subdispatch.context_settings = 'app.user_id, role'$$, 'role'), tst.fails($$SET subdispatch.context_settings = 'search_path'$$, 'search_path'),
       tst.fails($$SET subdispatch.context_settings = 'session_authorization'$$, 'session_authorization'), tst.fails($$SET subdispatch.context_settings = 'row_security'$$, 'row_security');
SET ROLE regress_sub_alice;
SELECT tst.sqlstate($$SET subdispatch.context_settings = 'app.user_id'$$) AS only_a_superuser_sets_it;
RESET ROLE;
SET subdispatch.context_settings = 'app.user_id, app.tenant';
SET app.user_id = 'the session''s';
SET ROLE regress_sub_gateway;
SELECT subdispatch.subscribe('c', 'tst.whoami', settings => '{"app.user_id": "7"}', id => 'user 7', consumer => 'gw'), subdispatch.subscribe('c', 'tst.whoami', settings => '{"app.user_id": "8", "app.tenant": "t"}', id => 'user 8', consumer => 'gw'),
       subdispatch.subscribe('c', 'tst.whoami', settings => '{}', id => 'none', consumer => 'gw'), subdispatch.subscribe('c', 'tst.whoami', id => 'default', consumer => 'gw'),
       subdispatch.subscribe('c', 'tst.whoami', settings => '{"app.user_id": "7"}', id => 'user 7 too', consumer => 'gw');
SELECT tst.fails($$SELECT subdispatch.subscribe('c', settings => '{"app.other": "7"}')$$, 'app.other'), tst.fails($$SELECT subdispatch.subscribe('c', settings => '{"search_path": "x"}')$$, 'search_path');
SET app.user_id = 'another';
RESET ROLE;
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
SET ROLE regress_sub_gateway;
SELECT subscription_id, response::jsonb #> '{payload,data}' AS data FROM subdispatch.poll('gw') ORDER BY 1;
SELECT tst.clean();
RESET ROLE;
SELECT count(*) AS one_for_each_identity FROM tst.calls;
RESET subdispatch.context_settings;
RESET app.user_id;
TRUNCATE tst.calls;
DROP FUNCTION tst.whoami, tst.restricted, tst.subscribe_as_alice;
SELECT subdispatch.revoke_channel('c', '-', 'subscribe');
