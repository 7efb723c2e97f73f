-- subscribe(): arguments, limits, ids.
SET client_min_messages = warning;
-- The id: given, or a random UUID.
SELECT subdispatch.subscribe('c', id => 'mine');
SELECT subdispatch.subscribe('c') ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' AS random_uuid;
SELECT subdispatch.subscribe('c') <> subdispatch.subscribe('c') AS another_each_time;
-- An id that is in use is refused; once it is free again it can be had.
SELECT tst.fails($$SELECT subdispatch.subscribe('d', id => 'mine')$$, 'mine');
SELECT subdispatch.unsubscribe('mine'), subdispatch.unsubscribe('mine');
SELECT subdispatch.subscribe('c', id => 'mine');
-- One that ended, with responses still to be read, is replaced by a new one.
SELECT subdispatch.publish('c', '"old"');
SELECT tst.dispatched();
SELECT subdispatch.complete('mine');
SELECT subdispatch.subscribe('c', id => 'mine');
SELECT subdispatch.publish('c', '"new"');
SELECT * FROM tst.results('mine');
SELECT tst.clean();

-- All arguments by position.
CREATE FUNCTION tst.r(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_build_object(''e'', event->''data'', ''v'', variables)';
SELECT subdispatch.grant_channel('c', 'regress_sub_alice', 'subscribe');
SELECT subdispatch.subscribe('c', 'tst.r', '{"x": 1}', '{"k": 1}', '{}', 'regress_sub_alice', NULL, 'OnThing', '1', 'thing', 'all', 'ws-1', 'gateway', 1000, 1000, 10, 'error');
SELECT id, role::text, channel, resolver::text, variables, filter, security_context, operation_name, operation_id, connection_id, consumer
  FROM subdispatch.subscriptions;
SELECT subdispatch.revoke_channel('c', 'regress_sub_alice', 'subscribe');
SELECT tst.clean();
SELECT subdispatch.subscribe('c', 'tst.r', '{"x": 1}', '{"k": 1}', operation_name => 'OnThing', operation_id => '1', response_key => 'thing', id => 'all');
SELECT subdispatch.publish('c', '{"k": 1}'), subdispatch.publish('c', '{"k": 2}');
SELECT * FROM tst.drain('all');
SELECT tst.clean();

-- The response, byte by byte where its form is fixed. The operation's id defaults to the subscription's.
SELECT subdispatch.subscribe('c', id => 'bytes "1"');
SELECT subdispatch.subscribe('c', id => 'bytes2', operation_id => 'op\2', response_key => 'k"ey');
SELECT subdispatch.publish('c', '5');
SELECT subdispatch.next_response('bytes "1"', '20s');
SELECT replace(subdispatch.next_response('bytes2', '20s'), ': ', ':') AS response;
SELECT tst.clean();

-- What a resolver may look like.
CREATE FUNCTION tst.batched(event jsonb, variables jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT variables';
CREATE FUNCTION tst.one_argument(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION tst.three_arguments(jsonb, jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION tst.returns_text(jsonb, jsonb) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION tst.returns_json(jsonb, jsonb) RETURNS json LANGUAGE sql AS 'SELECT $1::json';
CREATE FUNCTION tst.returns_set(jsonb, jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION tst.takes_json(json, json) RETURNS jsonb LANGUAGE sql AS 'SELECT $1::jsonb';
CREATE FUNCTION tst.mixed(jsonb, jsonb[]) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION tst.mixed2(jsonb, jsonb) RETURNS jsonb[] LANGUAGE sql AS 'SELECT array[$1]';
CREATE FUNCTION tst.variadic(jsonb, VARIADIC jsonb[]) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE tst.proc(jsonb, jsonb) LANGUAGE sql AS '';
CREATE AGGREGATE tst.agg(jsonb, jsonb) (SFUNC = tst.three_arguments, STYPE = jsonb);
SELECT subdispatch.subscribe('c', 'tst.r', id => 'plain'), subdispatch.subscribe('c', 'tst.batched', id => 'batched');
-- The error says which forms are accepted.
SELECT f, tst.fails(format('SELECT subdispatch.subscribe(''c'', %L)', f), 'jsonb.*jsonb') FROM
  unnest('{tst.one_argument,tst.three_arguments,tst.returns_text,tst.returns_json,tst.returns_set,tst.takes_json,tst.mixed,tst.mixed2,tst.variadic,tst.proc,tst.agg}'::text[]) f;
SELECT tst.sqlstate($$SELECT subdispatch.subscribe('c', 'tst.no_such_function')$$) = '42883' AS undefined_function;
-- An overloaded name is ambiguous as regproc; regprocedure says which.
CREATE FUNCTION tst.over(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT ''"jsonb"''::jsonb';
CREATE FUNCTION tst.over(jsonb, text) RETURNS jsonb LANGUAGE sql AS 'SELECT ''"text"''::jsonb';
SELECT tst.fails($$SELECT subdispatch.subscribe('c', 'tst.over')$$);
SELECT subdispatch.subscribe('c', 'tst.over(jsonb,jsonb)'::regprocedure, id => 'over');
-- ... and where the form that the name leads to is the wrong one, the hint tells of regprocedure.
SELECT tst.fails($$SELECT subdispatch.subscribe('c', 'tst.over(jsonb,text)'::regprocedure)$$, 'regprocedure');
SELECT subdispatch.publish('c', '1');
SELECT * FROM tst.results('over');
-- Default arguments do not make another signature fit.
CREATE FUNCTION tst.defaulted(jsonb, jsonb, jsonb DEFAULT '1') RETURNS jsonb LANGUAGE sql AS 'SELECT $3';
SELECT tst.fails($$SELECT subdispatch.subscribe('c', 'tst.defaulted')$$, 'jsonb.*jsonb');
SELECT tst.clean();

-- NULL and empty.
SELECT tst.fails($$SELECT subdispatch.subscribe(NULL)$$) AS null_channel, tst.fails($$SELECT subdispatch.subscribe('')$$) AS empty_channel,
       tst.fails($$SELECT subdispatch.subscribe('c', variables => NULL)$$) AS null_variables, tst.fails($$SELECT subdispatch.subscribe('c', filter => NULL)$$) AS null_filter,
       tst.fails($$SELECT subdispatch.subscribe('c', security_context => NULL)$$) AS null_context, tst.fails($$SELECT subdispatch.subscribe('c', id => '')$$) AS empty_id,
       tst.fails($$SELECT subdispatch.subscribe('c', filter => '[]')$$) AS filter_array, tst.fails($$SELECT subdispatch.subscribe('c', security_context => '[]')$$) AS context_array,
       tst.fails($$SELECT subdispatch.subscribe('c', settings => '[]')$$) AS settings_array;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', id => repeat('i', 10000000))$$) AS id, tst.fails($$SELECT subdispatch.subscribe(repeat('c', 10000000))$$) AS channel,
       tst.fails($$SELECT subdispatch.subscribe('c', connection_id => repeat('c', 10000000))$$) AS connection_id, tst.fails($$SELECT subdispatch.subscribe('c', consumer => repeat('c', 10000000))$$) AS consumer,
       tst.fails($$SELECT subdispatch.subscribe('c', operation_id => repeat('c', 10000000))$$) AS operation_id, tst.fails($$SELECT subdispatch.subscribe('c', response_key => repeat('c', 10000000))$$) AS response_key;

-- Limits may only be stricter than the settings, and the error names the setting.
SELECT subdispatch.subscribe('c', max_pending => current_setting('subdispatch.max_pending')::int, id => 'as the setting'), subdispatch.subscribe('c', max_pending => 1, id => 'stricter');
SELECT tst.fails($$SELECT subdispatch.subscribe('c', max_pending => current_setting('subdispatch.max_pending')::int + 1)$$, 'subdispatch.max_pending') AS laxer;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', max_pending => 0)$$) AS zero, tst.fails($$SELECT subdispatch.subscribe('c', max_pending => -1)$$) AS negative;
SELECT subdispatch.subscribe('c', overflow => o, id => o) FROM unnest('{drop_oldest,drop_newest,error}'::text[]) o;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', overflow => 'drop_everything')$$, 'drop_oldest') AS overflow, tst.fails($$SELECT subdispatch.subscribe('c', overflow => '')$$, 'drop_newest') AS empty;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', rate_limit => -1)$$) AS rate_limit, tst.fails($$SELECT subdispatch.subscribe('c', rate_limit => 'NaN')$$) AS nan,
       tst.fails($$SELECT subdispatch.subscribe('c', rate_limit => 1, burst => -1)$$) AS burst;
SELECT tst.clean();
-- Filter, variables and context together: max_subscription_size.
SELECT tst.fails($$SELECT subdispatch.subscribe('c', variables => jsonb_build_object('x', repeat('x', 70000)))$$, 'subdispatch.max_subscription_size') AS variables;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', filter => jsonb_build_object('x', repeat('x', 70000)))$$, 'subdispatch.max_subscription_size') AS filter;
SELECT tst.fails($$SELECT subdispatch.subscribe('c', filter => jsonb_build_object('x', repeat('x', 40000)), variables => jsonb_build_object('x', repeat('x', 40000)))$$, 'subdispatch.max_subscription_size') AS together;
SELECT subdispatch.subscribe('c', filter => jsonb_build_object('x', repeat('x', 30000)), variables => jsonb_build_object('x', repeat('x', 30000)), id => 'fits');
-- Per connection.
SELECT count(subdispatch.subscribe('c', connection_id => 'ws')) = current_setting('subdispatch.max_subscriptions_per_connection')::int AS as_many_as_allowed
  FROM generate_series(1, current_setting('subdispatch.max_subscriptions_per_connection')::int);
SELECT tst.fails($$SELECT subdispatch.subscribe('c', connection_id => 'ws')$$, 'subdispatch.max_subscriptions_per_connection');
SELECT subdispatch.subscribe('c', connection_id => 'another', id => 'another');
-- What ended counts for no limit.
SELECT subdispatch.complete(id) FROM subdispatch.subscriptions WHERE connection_id = 'ws' LIMIT 1;
SELECT subdispatch.subscribe('c', connection_id => 'ws', id => 'room again');
SELECT tst.fails($$SELECT subdispatch.subscribe('c', connection_id => 'ws')$$, 'subdispatch.max_subscriptions_per_connection');
SELECT tst.clean();

-- Keys that settings may have come from context_settings, which is empty by default.
SELECT tst.fails($$SELECT subdispatch.subscribe('c', settings => '{"app.user_id": "7"}')$$, 'subdispatch.context_settings');

-- Unknown things.
SELECT subdispatch.unsubscribe('never was') AS unsubscribe, subdispatch.complete('never was') AS complete, subdispatch.disconnect('never was') AS disconnect,
       subdispatch.close_consumer('never was') AS close_consumer;
SELECT tst.fails('SELECT subdispatch.unsubscribe(NULL)') AS unsubscribe, tst.fails('SELECT subdispatch.complete(NULL)') AS complete,
       tst.fails('SELECT subdispatch.disconnect(NULL)') AS disconnect, tst.fails('SELECT subdispatch.close_consumer(NULL)') AS close_consumer,
       tst.fails('SELECT subdispatch.open_consumer(NULL)') AS open_consumer;

-- A dropped resolver ends its subscriptions at the next event: what is queued, then an error as the last message.
CREATE FUNCTION tst.short_lived(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1->''data''';
SELECT subdispatch.subscribe('c', 'tst.short_lived', id => 'dropped', operation_id => 'op 7');
SELECT subdispatch.publish('c', '1');
SELECT tst.dispatched();
CREATE OR REPLACE FUNCTION tst.short_lived(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(''replaced''::text)';
SELECT subdispatch.publish('c', '2');
SELECT tst.dispatched();
DROP FUNCTION tst.short_lived;
SELECT subdispatch.publish('c', '3');
SELECT r->'type' AS type, r->'id' AS id, r #> '{payload,data}' AS data, jsonb_typeof(r #> '{payload,0,message}') AS message, r #>> '{payload,0,extensions,code}' ~ '^[0-9A-Z]{5}$|^[A-Z_]+$' AS code
  FROM tst.drain('dropped') r;
SELECT tst.sqlstate($$SELECT subdispatch.next_response('dropped')$$) AS gone;
SELECT tst.clean();
DROP FUNCTION tst.r CASCADE;
DROP FUNCTION tst.three_arguments CASCADE;
DROP FUNCTION tst.batched, tst.one_argument, tst.returns_text, tst.returns_json, tst.returns_set, tst.takes_json, tst.mixed, tst.mixed2,
  tst.variadic, tst.over(jsonb, jsonb), tst.over(jsonb, text), tst.defaulted;
DROP PROCEDURE tst.proc;
