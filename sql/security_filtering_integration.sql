-- security_filtering_integration: the five modules of the security context, each failing closed; what leaves somebody's
-- sight; limits per user; explain_delivery().
SET client_min_messages = warning;

-- What subscribe() refuses.
SELECT tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"user": 1}')$$, 'user_id') AS unknown_key,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"user_id": null}')$$, 'user_id') AS null_user,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"tenant_id": [1]}')$$, 'tenant_id') AS array_tenant,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"match": {"a": null}}')$$, 'match') AS null_in_match,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"match": 1}')$$, 'match') AS scalar_match,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"fields": "id"}')$$, 'fields') AS scalar_fields,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"fields": [1]}')$$, 'fields') AS number_in_fields,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"federation_id": 1}')$$, 'federation_id') AS number_federation;

-- Scope: variables may not ask for another's.
SELECT tst.fails($$SELECT subdispatch.subscribe('c', variables => '{"user_id": 2}', security_context => '{"user_id": 1}')$$, 'user_id') AS user_id,
       tst.fails($$SELECT subdispatch.subscribe('c', variables => '{"user_id": "1"}', security_context => '{"user_id": 1}')$$, 'user_id') AS other_type,
       tst.fails($$SELECT subdispatch.subscribe('c', variables => '{"tenant_id": 2}', security_context => '{"tenant_id": 1}')$$, 'tenant_id') AS tenant,
       tst.fails($$SELECT subdispatch.subscribe('c', variables => '{"org": 2}', security_context => '{"match": {"org": 1}}')$$, 'org') AS match,
       subdispatch.subscribe('c', variables => '{"user_id": 1.0, "else": 2}', security_context => '{"user_id": 1}', id => 'scope') AS same_number;
SELECT subdispatch.unsubscribe('scope');

-- Which of a list of events each context sees.
CREATE TABLE tst.cases (n int, data jsonb, federation_id text);
INSERT INTO tst.cases (n, data, federation_id) VALUES
  (1, '{"n": 1, "user_id": 1}', NULL), (2, '{"n": 2, "user_id": 1.0}', NULL), (3, '{"n": 3, "user_id": "1"}', NULL),
  (4, '{"n": 4, "user_id": null}', NULL), (5, '{"n": 5}', NULL), (6, '[1]', NULL), (7, '1', NULL),
  (8, '{"n": 8, "tenant_id": "a"}', NULL), (9, '{"n": 9, "tenant_id": "b", "user_id": 1}', NULL),
  (10, '{"n": 10, "tenant_id": "a", "user_id": 1, "org": 7, "live": true}', 'eu'), (11, '{"n": 11, "org": 7, "live": false}', NULL),
  (12, '{"n": 12, "user_id": 18446744073709551617}', 'us'), (13, '{"n": 13, "user_id": 18446744073709551618}', 'EU'),
  (14, '{"n": 14, "data": {"user_id": 1}}', '');
CREATE TABLE tst.contexts (id text, context jsonb);
INSERT INTO tst.contexts VALUES
  ('none', '{}'), ('user 1', '{"user_id": 1}'), ('user "1"', '{"user_id": "1"}'), ('huge', '{"user_id": 18446744073709551617}'),
  ('tenant a', '{"tenant_id": "a"}'), ('both', '{"tenant_id": "a", "user_id": 1}'),
  ('match', '{"match": {"org": 7, "live": true}}'), ('no match', '{"match": {"org": 7, "gone": 1}}'),
  ('eu', '{"federation_id": "eu"}'), ('user 1 in eu', '{"federation_id": "eu", "user_id": 1}'),
  ('fields', '{"fields": ["n"]}'), ('no fields', '{"fields": []}');
SELECT count(subdispatch.subscribe('c', security_context => context, id => id)) FROM tst.contexts;
SELECT count(*) FROM (SELECT subdispatch.publish('c', data, federation_id => federation_id) FROM (SELECT * FROM tst.cases ORDER BY n) c) p;
SELECT tst.dispatched();
SELECT id, (SELECT string_agg(coalesce(d->>'n', d::text), ' ') FROM tst.results(id) d) AS sees FROM tst.contexts ORDER BY id COLLATE "C";
SELECT denied_row_filter > 0 AS row_filter, denied_tenant > 0 AS tenant, denied_federation > 0 AS federation, denied_rbac > 0 AS rbac, denied_scope > 0 AS scope
  FROM subdispatch.stats;
SELECT tst.clean();

-- RBAC: a removed field is gone for filter, resolver and response alike.
SELECT subdispatch.subscribe('c', security_context => '{"fields": ["id", "name"]}', id => 'data'),
       subdispatch.subscribe('c', filter => '{"secret": 1}', security_context => '{"fields": ["id", "name"]}', id => 'oracle'),
       subdispatch.subscribe('c', filter => '{"secret": {"exists": false}}', security_context => '{"fields": ["id", "name"]}', id => 'hidden'),
       subdispatch.subscribe('c', 'tst.echo', security_context => '{"fields": ["id", "name"]}', id => 'resolver');
SELECT subdispatch.publish('c', '{"id": 1, "name": "n", "secret": 1}');
SELECT tst.results('data'), tst.results('oracle') AS oracle, tst.results('hidden') AS hidden;
SELECT d->'data' AS resolver FROM tst.results('resolver') d;
SELECT tst.clean();

-- Row images: each image by itself; a row that leaves is told with its key, whatever the filter says; DELETE is checked, too;
-- a TRUNCATE passes.
CREATE TABLE tst.doc (id int PRIMARY KEY, tenant_id text, body text);
CREATE TRIGGER doc_row AFTER INSERT OR UPDATE OR DELETE ON tst.doc FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('docs');
CREATE TRIGGER doc_truncate AFTER TRUNCATE ON tst.doc FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('docs');
SELECT subdispatch.subscribe('docs', security_context => '{"tenant_id": "a"}', id => 'a'),
       subdispatch.subscribe('docs', filter => '{"row.id": 99}', security_context => '{"tenant_id": "a"}', id => 'a 99'),
       subdispatch.subscribe('docs', security_context => '{"tenant_id": "b", "fields": ["id", "tenant_id"]}', id => 'b');
INSERT INTO tst.doc VALUES (1, 'a', 'x'), (2, 'b', 'y');
UPDATE tst.doc SET tenant_id = 'b' WHERE id = 1;
UPDATE tst.doc SET body = 'z' WHERE id = 2;
DELETE FROM tst.doc;
TRUNCATE tst.doc;
SELECT d - '{schema,table}'::text[] AS a FROM tst.results('a') d;
SELECT d - '{schema,table}'::text[] AS a_99 FROM tst.results('a 99') d;
SELECT d - '{schema,table}'::text[] AS b FROM tst.results('b') d;
SELECT tst.clean();

-- Limits per user: owner, role and user_id together.
SET subdispatch.max_subscriptions_per_user = 2;
SELECT subdispatch.subscribe('c', security_context => '{"user_id": 1}', id => 'first'),
       subdispatch.subscribe('d', security_context => '{"user_id": 1.0, "tenant_id": 2}', id => 'second');
SELECT tst.fails($$SELECT subdispatch.subscribe('c', security_context => '{"user_id": 1}')$$, 'max_subscriptions_per_user') AS third,
       subdispatch.subscribe('c', security_context => '{"user_id": "1"}', id => 'another') AS other_user;
SELECT subdispatch.unsubscribe('first'), subdispatch.subscribe('c', security_context => '{"user_id": 1}', id => 'third') AS again;
RESET subdispatch.max_subscriptions_per_user;
SELECT tst.clean();

-- explain_delivery() goes through the steps and stops at the first that fails; it delivers nothing.
SELECT subdispatch.subscribe('c', 'tst.echo', filter => '{"n": {"gt": 1}}', security_context => '{"user_id": 1, "fields": ["n", "user_id"]}', id => 'explained');
SELECT step, passed, CASE WHEN step <> 'role' THEN detail END AS detail
  FROM subdispatch.explain_delivery('explained', '{"n": 2, "user_id": 1, "secret": 1}');
SELECT step, passed FROM subdispatch.explain_delivery('explained', '{"n": 2, "user_id": 2}') WHERE passed IS NOT TRUE;
SELECT step, passed FROM subdispatch.explain_delivery('explained', '{"n": 1, "user_id": 1}') WHERE passed IS NOT TRUE;
SELECT step, passed FROM subdispatch.explain_delivery('explained', '{"n": 2, "user_id": 1}', 'elsewhere') WHERE passed IS FALSE;
SELECT subdispatch.next_response('explained') AS nothing, tst.sqlstate($$SELECT subdispatch.explain_delivery('none such', '{}')$$) AS unknown;
SET ROLE regress_sub_bob;
SELECT tst.sqlstate($$SELECT subdispatch.explain_delivery('explained', '{}')$$) AS foreign;
RESET ROLE;
SELECT tst.clean();
DROP TABLE tst.doc, tst.cases, tst.contexts;
