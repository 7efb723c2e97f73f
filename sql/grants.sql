-- Grants on channels: who may publish and subscribe where, what is granted and revoked takes effect with the next event.
SET client_min_messages = warning;
CREATE ROLE regress_sub_group;
CREATE ROLE regress_sub_member IN ROLE regress_sub_group;
CREATE ROLE regress_sub_apart NOINHERIT IN ROLE regress_sub_group;
GRANT EXECUTE ON FUNCTION subdispatch.publish, subdispatch.subscribe, subdispatch.next_responses, subdispatch.wait_dispatched TO regress_sub_group, regress_sub_apart;
-- Which of these a role may use.
CREATE TABLE tst.tried (n int GENERATED ALWAYS AS IDENTITY, channel text);
INSERT INTO tst.tried (channel) VALUES ('orders'), ('orders.eu'), ('orders.eu.new'), ('orders.'), ('ordersx'), ('Orders'), ('.x'), ('chat'), ('*');
GRANT SELECT ON tst.tried TO PUBLIC;
CREATE FUNCTION tst.may(role regrole) RETURNS TABLE (publish text, subscribe text) LANGUAGE plpgsql AS $$
DECLARE
  t record;
BEGIN
  EXECUTE format('SET ROLE %s', role);
  FOR t IN SELECT * FROM tst.tried ORDER BY n LOOP
    IF t.channel <> '*' AND tst.sqlstate(format('SELECT subdispatch.publish(%L, ''1'')', t.channel)) <> '42501' THEN
      publish := concat_ws(' ', publish, t.channel);
    END IF;
    IF tst.sqlstate(format('SELECT subdispatch.subscribe(%L, id => %L)', t.channel, 't' || t.n)) <> '42501' THEN
      subscribe := concat_ws(' ', subscribe, t.channel);
      PERFORM subdispatch.unsubscribe('t' || t.n);
    END IF;
  END LOOP;
  RESET ROLE;
  RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION subdispatch.unsubscribe TO regress_sub_group, regress_sub_apart;

-- Nobody but superusers has any.
SELECT * FROM tst.may('regress_sub_alice');
SELECT publish ~ 'chat' AS publish, subscribe ~ '\*' AS subscribe FROM tst.may(current_user::regrole);
-- A channel; another spelling is another channel.
SELECT subdispatch.grant_channel('orders', 'regress_sub_alice', 'publish'), subdispatch.grant_channel('orders', 'regress_sub_alice', 'publish');
SELECT * FROM tst.may('regress_sub_alice');
SELECT subdispatch.grant_channel('orders.eu', 'regress_sub_alice', 'subscribe');
SELECT * FROM tst.may('regress_sub_alice');
SELECT * FROM tst.may('regress_sub_bob');
-- A prefix is what stands before its star, the dot with it.
SELECT subdispatch.grant_channel('orders.*', 'regress_sub_bob', 'subscribe'), subdispatch.grant_channel('orders.eu.*', 'regress_sub_bob', 'publish');
SELECT * FROM tst.may('regress_sub_bob');
-- '*' is all channels, and alone allows to subscribe to '*'.
SELECT subdispatch.grant_channel('*', 'regress_sub_bob', 'subscribe');
SELECT * FROM tst.may('regress_sub_bob');
SELECT subdispatch.revoke_channel('*', 'regress_sub_bob', 'subscribe'), subdispatch.revoke_channel('orders.*', 'regress_sub_bob', 'subscribe');
SELECT * FROM tst.may('regress_sub_bob');
-- PUBLIC.
SELECT subdispatch.grant_channel('chat', '-', 'publish'), subdispatch.grant_channel('chat', '-', 'subscribe');
SELECT * FROM tst.may('regress_sub_bob');
-- Members of a role have what it has, unless they don't inherit.
SELECT subdispatch.grant_channel('orders', 'regress_sub_group', 'subscribe');
SELECT 'member' AS role, * FROM tst.may('regress_sub_member') UNION ALL SELECT 'not inheriting', * FROM tst.may('regress_sub_apart');
REVOKE regress_sub_group FROM regress_sub_member;
GRANT EXECUTE ON FUNCTION subdispatch.publish, subdispatch.subscribe, subdispatch.unsubscribe, subdispatch.next_responses, subdispatch.wait_dispatched TO regress_sub_member;
SELECT * FROM tst.may('regress_sub_member');
SELECT * FROM subdispatch.channel_grants ORDER BY channel, grantee::text, privilege;

-- The errors name channel and privilege, and how to grant it.
SET ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.publish('no such', '1')$$) AS sqlstate, tst.fails($$SELECT subdispatch.publish('no such', '1')$$, 'publish on channel "no such"') AS publish,
       tst.fails($$SELECT subdispatch.subscribe('it''s')$$, 'grant_channel\(''it''''s'', ''regress_sub_alice'', ''subscribe''\)') AS subscribe;
RESET ROLE;

-- run_as is whose grant counts.
SET ROLE regress_sub_apart;
SELECT tst.fails($$SELECT subdispatch.subscribe('orders')$$, 'regress_sub_apart') AS own, subdispatch.subscribe('orders', run_as => 'regress_sub_group', id => 'for the group') AS for_the_group;
SELECT subdispatch.unsubscribe('for the group');
RESET ROLE;

-- publish_change(): the table's owner needs it, whoever writes, and asks for nothing from who does.
CREATE TABLE tst.owned (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE tst.owned_1 PARTITION OF tst.owned FOR VALUES FROM (0) TO (10);
CREATE TRIGGER owned AFTER INSERT ON tst.owned FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders.eu');
GRANT INSERT ON tst.owned, tst.owned_1 TO PUBLIC;
ALTER TABLE tst.owned OWNER TO regress_sub_bob;
SELECT tst.sqlstate('INSERT INTO tst.owned VALUES (1)') AS sqlstate, tst.fails('INSERT INTO tst.owned VALUES (1)', 'regress_sub_bob.*owned.*publish'), tst.fails('INSERT INTO tst.owned_1 VALUES (1)', 'regress_sub_bob');
SELECT subdispatch.grant_channel('orders.eu', 'regress_sub_bob', 'publish');
SET ROLE regress_sub_nobody;
INSERT INTO tst.owned VALUES (1);
INSERT INTO tst.owned_1 VALUES (2);
RESET ROLE;
SELECT subdispatch.revoke_channel('orders.eu', 'regress_sub_bob', 'publish');
SELECT tst.fails('INSERT INTO tst.owned VALUES (3)', 'orders.eu');
ALTER TABLE tst.owned OWNER TO current_user;
INSERT INTO tst.owned VALUES (3);
DROP TABLE tst.owned;

-- In a transaction and in its savepoints: as for any change.
BEGIN;
SELECT subdispatch.grant_channel('tx', 'regress_sub_alice', 'publish');
SET LOCAL ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.publish('tx', '1')$$) AS granted;
ROLLBACK;
SET ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.publish('tx', '1')$$) AS rolled_back;
RESET ROLE;
SELECT subdispatch.grant_channel('tx', 'regress_sub_alice', 'publish');
BEGIN;
SAVEPOINT s;
SELECT subdispatch.revoke_channel('tx', 'regress_sub_alice', 'publish');
SET LOCAL ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.publish('tx', '1')$$) AS revoked;
ROLLBACK TO s;
SET LOCAL ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.publish('tx', '1')$$) AS rolled_back_to;
COMMIT;
SELECT subdispatch.revoke_channel('tx', 'regress_sub_alice', 'publish');

-- Revoking ends the subscriptions that are no longer allowed, at their next event, and these only.
SELECT denied_channel FROM subdispatch.stats \gset
SELECT subdispatch.grant_channel('r', 'regress_sub_alice', 'subscribe'), subdispatch.grant_channel('r.*', 'regress_sub_alice', 'subscribe'), subdispatch.grant_channel('r.1', 'regress_sub_alice', 'subscribe');
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('r', id => 'r'), subdispatch.subscribe('r', 'tst.echo', id => 'r resolved'), subdispatch.subscribe('r.1', id => 'r.1'), subdispatch.subscribe('chat', id => 'chat');
RESET ROLE;
SELECT subdispatch.publish('r', '1'), subdispatch.publish('r.1', '1');
SELECT tst.dispatched();
SELECT subdispatch.revoke_channel('r', 'regress_sub_alice', 'subscribe'), subdispatch.revoke_channel('r.1', 'regress_sub_alice', 'subscribe');
SELECT id, state FROM subdispatch.subscriptions ORDER BY id;
SELECT subdispatch.publish('r', '2'), subdispatch.publish('r.1', '2'), subdispatch.publish('chat', '2');
SELECT tst.dispatched();
SELECT id, state, end_reason FROM subdispatch.subscriptions ORDER BY id;
SET ROLE regress_sub_alice;
SELECT id, r->>'type' AS type, jsonb_typeof(r #> '{payload,data}') AS data, r #>> '{payload,0,extensions,code}' AS code, r #>> '{payload,0,message}' AS message
  FROM unnest('{r,r resolved,r.1,chat}'::text[]) WITH ORDINALITY x(id, n), tst.drain(id) WITH ORDINALITY d(r, m) ORDER BY n, m;
SELECT tst.sqlstate($$SELECT subdispatch.subscribe('r', id => 'again')$$);
SELECT tst.clean();
RESET ROLE;
SELECT denied_channel - :denied_channel >= 3 AS counted FROM subdispatch.stats;
-- An event that the revoking transaction publishes itself is too late already.
SELECT subdispatch.grant_channel('r', 'regress_sub_alice', 'subscribe');
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('r', id => 'r');
RESET ROLE;
BEGIN;
SELECT subdispatch.publish('r', '"hidden"');
SELECT subdispatch.revoke_channel('r', 'regress_sub_alice', 'subscribe');
COMMIT;
SET ROLE regress_sub_alice;
SELECT r->>'type' AS type, r #> '{payload,data}' AS data FROM tst.drain('r') r;
RESET ROLE;
-- So does leaving the role that has it.
GRANT regress_sub_group TO regress_sub_bob;
SET ROLE regress_sub_bob;
SELECT subdispatch.subscribe('orders', id => 'by membership');
RESET ROLE;
REVOKE regress_sub_group FROM regress_sub_bob;
SELECT subdispatch.publish('orders', '1');
SET ROLE regress_sub_bob;
SELECT r->>'type' AS type FROM tst.drain('by membership') r;
SELECT tst.clean();
RESET ROLE;
-- '*': taken back, it ends the subscription to '*' and not the one that another grant allows.
SELECT subdispatch.grant_channel('*', 'regress_sub_alice', 'subscribe');
SET ROLE regress_sub_alice;
SELECT subdispatch.subscribe('*', id => 'star'), subdispatch.subscribe('orders.eu', id => 'named');
RESET ROLE;
SELECT subdispatch.revoke_channel('*', 'regress_sub_alice', 'subscribe');
SELECT subdispatch.publish('orders.eu', '1');
SET ROLE regress_sub_alice;
SELECT id, r->>'type' AS type FROM unnest('{star,named}'::text[]) id, tst.drain(id) r;
SELECT tst.clean();
RESET ROLE;

-- required_context: keys that the security context must have; any one grant that is satisfied is enough.
SELECT subdispatch.grant_channel('ctx', 'regress_sub_alice', 'subscribe', '{tenant_id,user_id}'), subdispatch.grant_channel('ctx', 'regress_sub_alice', 'subscribe', '{user_id,tenant_id,user_id}'),
       subdispatch.grant_channel('ctx', '-', 'subscribe', '{federation_id}'), subdispatch.grant_channel('ctx.*', 'regress_sub_alice', 'subscribe', '{match,fields}'),
       subdispatch.grant_channel('ctx.free', 'regress_sub_alice', 'subscribe', '{}');
SELECT * FROM subdispatch.channel_grants WHERE channel LIKE 'ctx%' ORDER BY channel, grantee::text;
SET ROLE regress_sub_alice;
SELECT channel, context, tst.sqlstate(format('SELECT subdispatch.subscribe(%L, security_context => %L)', channel, context)) AS sqlstate
  FROM (VALUES ('ctx', '{}'), ('ctx', '{"user_id": 1}'), ('ctx', '{"user_id": 1, "tenant_id": 2}'), ('ctx', '{"user_id": 1, "tenant_id": 2, "fields": ["a"]}'), ('ctx', '{"federation_id": "eu"}'),
               ('ctx.a', '{}'), ('ctx.a', '{"match": {"a": 1}}'), ('ctx.a', '{"match": {"a": 1}, "fields": []}'), ('ctx.free', '{}'), ('ctx.free', '{"user_id": 1}')) v(channel, context);
SELECT tst.fails($$SELECT subdispatch.subscribe('ctx')$$, 'required_context');
SELECT tst.clean();
-- Revoking the one that is satisfied ends the subscription, whatever others there are.
SELECT subdispatch.subscribe('ctx', security_context => '{"user_id": 1, "tenant_id": 2}', id => 'user'), subdispatch.subscribe('ctx', security_context => '{"federation_id": "eu"}', id => 'eu');
RESET ROLE;
SELECT subdispatch.revoke_channel('ctx', 'regress_sub_alice', 'subscribe');
SELECT subdispatch.publish('ctx', '{"user_id": 1, "tenant_id": 2}', federation_id => 'eu');
SET ROLE regress_sub_alice;
SELECT id, r->>'type' AS type FROM unnest('{user,eu}'::text[]) id, tst.drain(id) r;
-- explain_delivery() tells of it.
SELECT step, passed FROM subdispatch.explain_delivery('eu', '{}', federation_id => 'eu') WHERE step = 'channel grant';
RESET ROLE;
SELECT subdispatch.revoke_channel('ctx', '-', 'subscribe');
SET ROLE regress_sub_alice;
SELECT step, passed FROM subdispatch.explain_delivery('eu', '{}', federation_id => 'eu') WHERE step = 'channel grant';
SELECT tst.clean();
RESET ROLE;

-- What is refused.
SELECT tst.sqlstate($$SELECT subdispatch.grant_channel(NULL, '-', 'publish')$$) AS channel, tst.sqlstate($$SELECT subdispatch.grant_channel('c', NULL, 'publish')$$) AS grantee, tst.sqlstate($$SELECT subdispatch.grant_channel('c', '-', NULL)$$) AS privilege,
       tst.sqlstate($$SELECT subdispatch.grant_channel('c', '-', 'subscribe', '{NULL}')$$) AS key, tst.sqlstate($$SELECT subdispatch.revoke_channel(NULL, '-', 'publish')$$) AS revoke;
SELECT tst.fails($$SELECT subdispatch.grant_channel('', '-', 'publish')$$, 'empty') AS empty, tst.fails($$SELECT subdispatch.grant_channel(repeat('c', 2000), '-', 'publish')$$, '1024') AS long,
       tst.fails($$SELECT subdispatch.grant_channel('c', '-', 'delete')$$, 'subscribe') AS privilege, tst.fails($$SELECT subdispatch.grant_channel('c', 'regress_sub_none', 'publish')$$, 'regress_sub_none') AS role,
       tst.fails($$SELECT subdispatch.grant_channel('c', 4000000000::oid::regrole, 'publish')$$, '4000000000') AS oid,
       tst.fails($$SELECT subdispatch.grant_channel('c', '-', 'subscribe', '{user}')$$, 'user_id') AS key, tst.fails($$SELECT subdispatch.grant_channel('c', '-', 'publish', '{user_id}')$$, 'required_context') AS publish;
SELECT channel, tst.fails(format('SELECT subdispatch.grant_channel(%L, ''-'', ''publish'')', channel), 'orders\.\*') FROM unnest('{orders*,*.orders,a.*.b,.*,**}'::text[]) channel;
SET client_min_messages = notice;
\set VERBOSITY terse
SELECT subdispatch.revoke_channel('never granted', 'regress_sub_alice', 'publish');
\set VERBOSITY default
SET client_min_messages = warning;
-- EXECUTE is the right to grant, for it works with the rights of the table's owner; nobody else writes or reads the table.
SET ROLE regress_sub_alice;
SELECT tst.sqlstate($$SELECT subdispatch.grant_channel('*', 'regress_sub_alice', 'subscribe')$$) AS "grant", tst.sqlstate($$SELECT subdispatch.revoke_channel('orders', 'regress_sub_alice', 'publish')$$) AS "revoke",
       tst.sqlstate('SELECT * FROM subdispatch.channel_grants') AS "select", tst.sqlstate($$INSERT INTO subdispatch.channel_grants VALUES ('*', '-', 'subscribe')$$) AS "insert",
       tst.sqlstate('UPDATE subdispatch.channel_grants SET channel = ''*''') AS "update", tst.sqlstate('DELETE FROM subdispatch.channel_grants') AS "delete", tst.sqlstate('TRUNCATE subdispatch.channel_grants') AS "truncate",
       tst.sqlstate('LOCK TABLE subdispatch.channel_grants') AS "lock";
SET ROLE regress_sub_monitor;
SELECT count(*) > 0 AS monitor_sees, tst.sqlstate('DELETE FROM subdispatch.channel_grants') AS "delete" FROM subdispatch.channel_grants;
RESET ROLE;
GRANT EXECUTE ON FUNCTION subdispatch.grant_channel, subdispatch.revoke_channel TO regress_sub_nobody;
SET ROLE regress_sub_nobody;
SELECT subdispatch.grant_channel('delegated', 'regress_sub_alice', 'publish');
SELECT current_user, tst.sqlstate('SELECT * FROM subdispatch.channel_grants') AS "select";
-- With a search_path and operators of his own he gets nowhere.
RESET ROLE;
CREATE SCHEMA hijack AUTHORIZATION regress_sub_nobody;
SET ROLE regress_sub_nobody;
CREATE FUNCTION hijack.no(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked as %', current_user; END $$;
CREATE OPERATOR hijack.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hijack.no);
CREATE TABLE hijack.channel_grants (channel text, grantee regrole, privilege text, required_context text[]);
SET search_path = hijack, pg_catalog;
SELECT subdispatch.grant_channel('delegated', 'regress_sub_bob', 'publish'), subdispatch.revoke_channel('delegated', 'regress_sub_alice', 'publish');
SELECT count(*) FROM hijack.channel_grants;
RESET search_path;
RESET ROLE;
DROP SCHEMA hijack CASCADE;
REVOKE EXECUTE ON FUNCTION subdispatch.grant_channel, subdispatch.revoke_channel FROM regress_sub_nobody;
SELECT * FROM subdispatch.channel_grants WHERE channel = 'delegated';
-- What a superuser writes to the table himself counts as well.
INSERT INTO subdispatch.channel_grants VALUES ('direct', 'regress_sub_bob', 'publish', NULL);
SET ROLE regress_sub_bob;
SELECT tst.sqlstate($$SELECT subdispatch.publish('direct', '1')$$);
RESET ROLE;
TRUNCATE subdispatch.channel_grants;
SET ROLE regress_sub_bob;
SELECT tst.sqlstate($$SELECT subdispatch.publish('direct', '1')$$);
RESET ROLE;
-- A dropped role's grants go with it; those of a role that takes its name are its own.
SELECT subdispatch.grant_channel('c', 'regress_sub_group', 'publish'), subdispatch.grant_channel('c', 'regress_sub_bob', 'publish');
DROP OWNED BY regress_sub_group, regress_sub_member, regress_sub_apart;
BEGIN;
DROP ROLE regress_sub_group;
ROLLBACK;
SELECT count(*) AS as_before FROM subdispatch.channel_grants;
DROP ROLE regress_sub_group, regress_sub_member, regress_sub_apart;
SELECT grantee FROM subdispatch.channel_grants;
SELECT subdispatch.revoke_channel('c', 'regress_sub_bob', 'publish');

-- NOTIFY on a channel with a grant reaches nobody unless listen_channels names it, from the grant on until it is revoked.
SELECT subdispatch.subscribe('granted.n', id => 'n'), subdispatch.subscribe('granted.none', id => 'none');
NOTIFY "granted.n", '1';
SELECT * FROM tst.results('n');
SELECT subdispatch.grant_channel('granted.n', 'regress_sub_bob', 'publish');
NOTIFY "granted.n", '2';
NOTIFY "granted.none", '2';
SELECT id, count(r) FROM unnest('{n,none}'::text[]) id LEFT JOIN LATERAL tst.results(id) r ON r = '2' GROUP BY id ORDER BY id;
SELECT channel, listening FROM subdispatch.channels ORDER BY 1;
SELECT subdispatch.subscribe('granted.n', id => 'n2');
NOTIFY "granted.n", '3';
SELECT r FROM tst.results('n2') r WHERE r = '3';
SELECT subdispatch.revoke_channel('granted.n', 'regress_sub_bob', 'publish');
SELECT subdispatch.subscribe('granted.n', id => 'n3');
NOTIFY "granted.n", '4';
SELECT r FROM tst.results('n3') r WHERE r = '4';
-- A prefix covers, too.
SELECT subdispatch.grant_channel('granted.*', 'regress_sub_bob', 'subscribe');
NOTIFY "granted.none", '5';
SELECT r FROM tst.results('none') r WHERE r = '5';
SELECT subdispatch.revoke_channel('granted.*', 'regress_sub_bob', 'subscribe');
-- publish() on the notify bus refuses such a channel.
SET subdispatch.event_bus = notify;
SELECT tst.fails($$SELECT subdispatch.publish('granted.n', '6')$$) AS not_granted;
SELECT subdispatch.grant_channel('granted.n', 'regress_sub_bob', 'subscribe');
SELECT tst.fails($$SELECT subdispatch.publish('granted.n', '7')$$, 'listen_channels');
SELECT subdispatch.revoke_channel('granted.n', 'regress_sub_bob', 'subscribe');
RESET subdispatch.event_bus;
SELECT tst.clean();
DROP FUNCTION tst.may;
DROP TABLE tst.tried;
SELECT count(*) FROM subdispatch.channel_grants;
