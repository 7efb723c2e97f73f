/* subdispatch 0.1.0: everything lives in schema subdispatch, whatever the search_path is. */
\echo Use "CREATE EXTENSION subdispatch" to load this file. \quit

CREATE SCHEMA subdispatch;
COMMENT ON SCHEMA subdispatch IS
  'Committed events become ready-to-send GraphQL subscription responses';

-- ---- publishing ----

CREATE FUNCTION subdispatch.publish(
  channel pg_catalog.text,
  data pg_catalog.jsonb,
  event_type pg_catalog.text DEFAULT NULL,
  correlation_id pg_catalog.text DEFAULT NULL,
  federation_id pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_publish';
COMMENT ON FUNCTION subdispatch.publish(pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.text, pg_catalog.text) IS
  'Publishes an event on a channel when the transaction commits. Needs EXECUTE, which a superuser grants, and the privilege "publish" on the channel';

CREATE FUNCTION subdispatch.publish_change()
RETURNS pg_catalog.trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_publish_change';
COMMENT ON FUNCTION subdispatch.publish_change() IS
  'Trigger function (AFTER ... FOR EACH ROW, AFTER TRUNCATE ... FOR EACH STATEMENT) that publishes the change; arguments: channel [, event_type]. Creating the trigger needs EXECUTE; the table''s owner needs the privilege "publish" on the channel';

-- ---- subscribing ----

CREATE FUNCTION subdispatch.subscribe(
  channel pg_catalog.text,
  resolver pg_catalog.regproc DEFAULT NULL,
  variables pg_catalog.jsonb DEFAULT '{}',
  filter pg_catalog.jsonb DEFAULT '{}',
  security_context pg_catalog.jsonb DEFAULT '{}',
  run_as pg_catalog.regrole DEFAULT NULL,
  settings pg_catalog.jsonb DEFAULT NULL,
  operation_name pg_catalog.text DEFAULT NULL,
  operation_id pg_catalog.text DEFAULT NULL,
  response_key pg_catalog.text DEFAULT NULL,
  id pg_catalog.text DEFAULT NULL,
  connection_id pg_catalog.text DEFAULT NULL,
  consumer pg_catalog.text DEFAULT NULL,
  rate_limit pg_catalog.float8 DEFAULT NULL,
  burst pg_catalog.int4 DEFAULT NULL,
  max_pending pg_catalog.int4 DEFAULT NULL,
  overflow pg_catalog.text DEFAULT NULL,
  after_event pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_subscribe';
COMMENT ON FUNCTION subdispatch.subscribe(pg_catalog.text, pg_catalog.regproc, pg_catalog.jsonb, pg_catalog.jsonb, pg_catalog.jsonb,
    pg_catalog.regrole, pg_catalog.jsonb, pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.text,
    pg_catalog.text, pg_catalog.float8, pg_catalog.int4, pg_catalog.int4, pg_catalog.text, pg_catalog.int8) IS
  'Subscribes to a channel, from now on or from the event after after_event on, and returns the subscription''s id. Needs EXECUTE, which a superuser grants, the right to SET ROLE to run_as, and for run_as the privilege "subscribe" on the channel';

CREATE FUNCTION subdispatch.unsubscribe(id pg_catalog.text)
RETURNS pg_catalog.bool
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_unsubscribe';
COMMENT ON FUNCTION subdispatch.unsubscribe(pg_catalog.text) IS
  'Ends one of the caller''s subscriptions and what it has queued; false if there is none of that id';

CREATE FUNCTION subdispatch.complete(id pg_catalog.text)
RETURNS pg_catalog.bool
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_complete';
COMMENT ON FUNCTION subdispatch.complete(pg_catalog.text) IS
  'Ends one of the caller''s subscriptions from the server''s side: its queue ends with a "complete" message; false if there is none of that id';

CREATE FUNCTION subdispatch.disconnect(connection_id pg_catalog.text, consumer pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_disconnect';
COMMENT ON FUNCTION subdispatch.disconnect(pg_catalog.text, pg_catalog.text) IS
  'Ends the caller''s subscriptions of a connection (of that consumer only, if one is given) and returns how many';

CREATE FUNCTION subdispatch.pause(connection_id pg_catalog.text, consumer pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_pause';
COMMENT ON FUNCTION subdispatch.pause(pg_catalog.text, pg_catalog.text) IS
  'Leaves the responses of a connection''s subscriptions (of that consumer only, if one is given) in their queues, where polling does not see them, and returns how many subscriptions those are';

CREATE FUNCTION subdispatch.resume(connection_id pg_catalog.text, consumer pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_resume';
COMMENT ON FUNCTION subdispatch.resume(pg_catalog.text, pg_catalog.text) IS
  'Ends what pause() began and returns how many subscriptions the connection (of that consumer, if one is given) has';

CREATE FUNCTION subdispatch.open_consumer(consumer pg_catalog.text)
RETURNS pg_catalog.int8
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_open_consumer';
COMMENT ON FUNCTION subdispatch.open_consumer(pg_catalog.text) IS
  'A gateway''s start: makes the consumer, ends the subscriptions that an earlier run of that name left, and returns how many';

CREATE FUNCTION subdispatch.close_consumer(consumer pg_catalog.text)
RETURNS pg_catalog.int8
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_close_consumer';
COMMENT ON FUNCTION subdispatch.close_consumer(pg_catalog.text) IS
  'Ends one of the caller''s consumers with its subscriptions and returns how many those were';

-- ---- reading ----

CREATE FUNCTION subdispatch.next_response(id pg_catalog.text, timeout pg_catalog.interval DEFAULT '0')
RETURNS pg_catalog.text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_next_response';
COMMENT ON FUNCTION subdispatch.next_response(pg_catalog.text, pg_catalog.interval) IS
  'Takes the oldest message of one of the caller''s subscriptions; NULL if none has come within the timeout';

CREATE FUNCTION subdispatch.next_responses(
  id pg_catalog.text,
  max_responses pg_catalog.int4 DEFAULT 100,
  timeout pg_catalog.interval DEFAULT '0')
RETURNS SETOF pg_catalog.text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_next_responses';
COMMENT ON FUNCTION subdispatch.next_responses(pg_catalog.text, pg_catalog.int4, pg_catalog.interval) IS
  'Takes the oldest messages of one of the caller''s subscriptions; no row if none has come within the timeout';

CREATE FUNCTION subdispatch.poll(
  consumer pg_catalog.text,
  max_responses pg_catalog.int4 DEFAULT 1000,
  timeout pg_catalog.interval DEFAULT '0',
  max_bytes pg_catalog.int4 DEFAULT 4194304,
  ack pg_catalog.int8 DEFAULT NULL)
RETURNS TABLE (
  subscription_id pg_catalog.text,
  connection_id pg_catalog.text,
  operation_id pg_catalog.text,
  event_id pg_catalog.int8,
  dropped pg_catalog.int8,
  response pg_catalog.text,
  batch pg_catalog.int8)
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_poll';
COMMENT ON FUNCTION subdispatch.poll(pg_catalog.text, pg_catalog.int4, pg_catalog.interval, pg_catalog.int4, pg_catalog.int8) IS
  'Takes messages of all subscriptions of one of the caller''s consumers, a row each; no row if none has come within the timeout. With ack (0 at first, then the batch read last) a batch is returned again until it is acknowledged';

CREATE FUNCTION subdispatch.poll_shared(
  consumer pg_catalog.text,
  max_responses pg_catalog.int4 DEFAULT 1000,
  timeout pg_catalog.interval DEFAULT '0',
  max_bytes pg_catalog.int4 DEFAULT 4194304,
  ack pg_catalog.int8 DEFAULT NULL)
RETURNS TABLE (
  subscription_ids pg_catalog.text[],
  type pg_catalog.text,
  event_id pg_catalog.int8,
  payload pg_catalog.text,
  batch pg_catalog.int8)
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_poll_shared';
COMMENT ON FUNCTION subdispatch.poll_shared(pg_catalog.text, pg_catalog.int4, pg_catalog.interval, pg_catalog.int4, pg_catalog.int8) IS
  'Like poll, with one row for each response, however many of the consumer''s subscriptions share it';

CREATE PROCEDURE subdispatch.await_response(id pg_catalog.text, timeout pg_catalog.interval DEFAULT '30s')
LANGUAGE c
AS 'MODULE_PATHNAME', 'subdispatch_await_response';
COMMENT ON PROCEDURE subdispatch.await_response(pg_catalog.text, pg_catalog.interval) IS
  'Waits, without holding a snapshot, until one of the caller''s subscriptions has something to read';

CREATE PROCEDURE subdispatch.await_responses(consumer pg_catalog.text, timeout pg_catalog.interval DEFAULT '30s')
LANGUAGE c
AS 'MODULE_PATHNAME', 'subdispatch_await_responses';
COMMENT ON PROCEDURE subdispatch.await_responses(pg_catalog.text, pg_catalog.interval) IS
  'Waits, without holding a snapshot, until one of the caller''s consumers has something to read';

CREATE FUNCTION subdispatch.explain_delivery(
  id pg_catalog.text,
  data pg_catalog.jsonb,
  channel pg_catalog.text DEFAULT NULL,
  federation_id pg_catalog.text DEFAULT NULL)
RETURNS TABLE (step pg_catalog.text, passed pg_catalog.bool, detail pg_catalog.text)
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_explain_delivery';
COMMENT ON FUNCTION subdispatch.explain_delivery(pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.text) IS
  'How a published event with that data would fare with one of the caller''s subscriptions, step by step; delivers nothing';

CREATE FUNCTION subdispatch.wait_dispatched(timeout pg_catalog.interval DEFAULT '10s')
RETURNS pg_catalog.bool
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_wait_dispatched';
COMMENT ON FUNCTION subdispatch.wait_dispatched(pg_catalog.interval) IS
  'Waits until all that was committed before the call is dispatched; false if that took longer than the timeout';

-- ---- seeing ----

CREATE FUNCTION subdispatch.list_subscriptions()
RETURNS TABLE (
  id pg_catalog.text,
  owner pg_catalog.regrole,
  role pg_catalog.regrole,
  channel pg_catalog.text,
  resolver pg_catalog.regprocedure,
  variables pg_catalog.jsonb,
  filter pg_catalog.jsonb,
  security_context pg_catalog.jsonb,
  operation_name pg_catalog.text,
  operation_id pg_catalog.text,
  connection_id pg_catalog.text,
  consumer pg_catalog.text,
  state pg_catalog.text,
  pending pg_catalog.int8,
  delivered pg_catalog.int8,
  dropped pg_catalog.int8,
  rate_limited pg_catalog.int8,
  errors pg_catalog.int8,
  created_at pg_catalog.timestamptz,
  last_polled_at pg_catalog.timestamptz,
  settings pg_catalog.jsonb,
  response_key pg_catalog.text,
  rate_limit pg_catalog.float8,
  burst pg_catalog.int4,
  max_pending pg_catalog.int4,
  overflow pg_catalog.text,
  ended_at pg_catalog.timestamptz,
  end_reason pg_catalog.text)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_list_subscriptions';
COMMENT ON FUNCTION subdispatch.list_subscriptions() IS
  'Behind the view subscriptions';

CREATE FUNCTION subdispatch.list_consumers()
RETURNS TABLE (
  consumer pg_catalog.text,
  owner pg_catalog.regrole,
  subscriptions pg_catalog.int8,
  pending pg_catalog.int8,
  oldest_pending_at pg_catalog.timestamptz,
  last_polled_at pg_catalog.timestamptz,
  waiting_pid pg_catalog.int4,
  batch pg_catalog.int8,
  outstanding pg_catalog.int8)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_list_consumers';
COMMENT ON FUNCTION subdispatch.list_consumers() IS
  'Behind the view consumers';

CREATE FUNCTION subdispatch.list_channels()
RETURNS TABLE (
  channel pg_catalog.text,
  subscriptions pg_catalog.int8,
  response_streams pg_catalog.int8,
  events pg_catalog.int8,
  listening pg_catalog.bool,
  dispatcher pg_catalog.int4)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_list_channels';
COMMENT ON FUNCTION subdispatch.list_channels() IS
  'Behind the view channels';

CREATE FUNCTION subdispatch.show_stats()
RETURNS TABLE (
  events_published pg_catalog.int8,
  events_dispatched pg_catalog.int8,
  events_gapped pg_catalog.int8,
  events_retried pg_catalog.int8,
  notifications_received pg_catalog.int8,
  bad_envelopes pg_catalog.int8,
  bus_sent pg_catalog.int8,
  bus_received pg_catalog.int8,
  bus_repeated pg_catalog.int8,
  bus_reread pg_catalog.int8,
  bus_gaps pg_catalog.int8,
  bus_connections pg_catalog.int8,
  replay_waits pg_catalog.int8,
  replay_timeouts pg_catalog.int8,
  resolver_calls pg_catalog.int8,
  resolver_errors pg_catalog.int8,
  resolver_timeouts pg_catalog.int8,
  resolver_time_us pg_catalog.int8,
  responses_queued pg_catalog.int8,
  responses_delivered pg_catalog.int8,
  responses_dropped pg_catalog.int8,
  responses_replayed pg_catalog.int8,
  rate_limited pg_catalog.int8,
  subscriptions_created pg_catalog.int8,
  subscriptions_ended pg_catalog.int8,
  subscriptions_expired pg_catalog.int8,
  dispatch_errors pg_catalog.int8,
  policy_errors pg_catalog.int8,
  denied_channel pg_catalog.int8,
  denied_rls pg_catalog.int8,
  denied_row_filter pg_catalog.int8,
  denied_tenant pg_catalog.int8,
  denied_federation pg_catalog.int8,
  denied_scope pg_catalog.int8,
  denied_rbac pg_catalog.int8,
  denied_image pg_catalog.int8,
  dispatch_time_us pg_catalog.int8,
  dispatch_time_p50_us pg_catalog.int8,
  dispatch_time_p99_us pg_catalog.int8,
  dispatch_time_max_us pg_catalog.int8,
  shared_memory_used pg_catalog.int8,
  shared_memory_size pg_catalog.int8,
  shared_memory_failures pg_catalog.int8,
  stats_reset pg_catalog.timestamptz)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_show_stats';
COMMENT ON FUNCTION subdispatch.show_stats() IS
  'Behind the view stats';

CREATE FUNCTION subdispatch.list_workers()
RETURNS TABLE (
  database pg_catalog.name,
  pid pg_catalog.int4,
  kind pg_catalog.text,
  state pg_catalog.text,
  bus pg_catalog.text,
  backlog pg_catalog.int8,
  dispatcher pg_catalog.int4,
  backlog_bytes pg_catalog.int8,
  listening pg_catalog.int4,
  busy pg_catalog.bool)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_list_workers';
COMMENT ON FUNCTION subdispatch.list_workers() IS
  'Behind the view workers. Members of pg_monitor only';

-- In a target list, so that rows come as they are asked for; in FROM all would be collected before the first.
CREATE VIEW subdispatch.subscriptions AS
  SELECT (listed.subscription).* FROM (SELECT subdispatch.list_subscriptions() AS subscription) AS listed;
COMMENT ON VIEW subdispatch.subscriptions IS
  'This database''s subscriptions: one''s own, all of them for members of pg_monitor';
CREATE FUNCTION subdispatch.subscription(id pg_catalog.text)
RETURNS SETOF subdispatch.subscriptions
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1
AS 'MODULE_PATHNAME', 'subdispatch_subscription';
COMMENT ON FUNCTION subdispatch.subscription(pg_catalog.text) IS
  'The view''s row of one of the caller''s own subscriptions, without looking through all of them';
CREATE VIEW subdispatch.consumers AS SELECT * FROM subdispatch.list_consumers();
COMMENT ON VIEW subdispatch.consumers IS
  'This database''s consumers: one''s own, all of them for members of pg_monitor';
CREATE VIEW subdispatch.channels AS SELECT * FROM subdispatch.list_channels();
COMMENT ON VIEW subdispatch.channels IS
  'This database''s channels that have subscriptions: one''s own, all of them for members of pg_monitor, who alone see the number of events';
CREATE VIEW subdispatch.stats AS SELECT * FROM subdispatch.show_stats();
COMMENT ON VIEW subdispatch.stats IS
  'This database''s counters and times since stats_reset, shared memory of the server. For members of pg_monitor: others see NULLs';
CREATE VIEW subdispatch.workers AS SELECT * FROM subdispatch.list_workers();
COMMENT ON VIEW subdispatch.workers IS
  'The launcher and the dispatchers of all databases. For members of pg_monitor';

CREATE FUNCTION subdispatch.reset_stats()
RETURNS pg_catalog.void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_reset_stats';
COMMENT ON FUNCTION subdispatch.reset_stats() IS
  'Sets this database''s counters and times to zero. For members of pg_monitor';

CREATE FUNCTION subdispatch.metrics()
RETURNS pg_catalog.text
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_metrics';
COMMENT ON FUNCTION subdispatch.metrics() IS
  'This database''s counters and gauges in Prometheus text exposition format 0.0.4. For members of pg_monitor';

CREATE FUNCTION subdispatch.health()
RETURNS pg_catalog.jsonb
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'subdispatch_health';
COMMENT ON FUNCTION subdispatch.health() IS
  'What a health check asks for: "status" is ok, degraded or down, "problems" says why. For members of pg_monitor';

-- ---- grants on channels ----

CREATE TABLE subdispatch.channel_grants (
  channel pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
  grantee pg_catalog.regrole NOT NULL,
  privilege pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
  required_context pg_catalog.text[] COLLATE pg_catalog."C",
  CONSTRAINT channel_grants_key UNIQUE NULLS NOT DISTINCT (channel, grantee, privilege, required_context),
  CONSTRAINT channel_grants_privilege
    CHECK (privilege OPERATOR(pg_catalog.=) 'publish' OR privilege OPERATOR(pg_catalog.=) 'subscribe'));
COMMENT ON TABLE subdispatch.channel_grants IS
  'Who may publish on and subscribe to which channels; written by grant_channel() and revoke_channel(). Grantee "-" is PUBLIC. For members of pg_monitor';
COMMENT ON COLUMN subdispatch.channel_grants.channel IS 'A channel, a prefix such as "orders.*", or "*"';
COMMENT ON COLUMN subdispatch.channel_grants.grantee IS 'The role; its members have the privilege, too';
COMMENT ON COLUMN subdispatch.channel_grants.privilege IS 'publish or subscribe';
COMMENT ON COLUMN subdispatch.channel_grants.required_context IS
  'Keys that a subscriber''s security context must have; NULL: none';

-- The row of a role that was dropped from another database could not be restored, or be somebody else's then.
SELECT pg_catalog.pg_extension_config_dump('subdispatch.channel_grants',
  'WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0 OR EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) grantee::pg_catalog.oid)');

CREATE FUNCTION subdispatch.channel_grants_changed()
RETURNS pg_catalog.trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_channel_grants_changed';
COMMENT ON FUNCTION subdispatch.channel_grants_changed() IS
  'Trigger function of channel_grants: what is written there takes effect with the next event';

CREATE TRIGGER channel_grants_changed
  AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON subdispatch.channel_grants
  FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.channel_grants_changed();
ALTER TABLE subdispatch.channel_grants ENABLE ALWAYS TRIGGER channel_grants_changed;

CREATE FUNCTION subdispatch.grant_channel(
  channel pg_catalog.text,
  grantee pg_catalog.regrole,
  privilege pg_catalog.text,
  required_context pg_catalog.text[] DEFAULT NULL)
RETURNS pg_catalog.void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_grant_channel';
COMMENT ON FUNCTION subdispatch.grant_channel(pg_catalog.text, pg_catalog.regrole, pg_catalog.text, pg_catalog.text[]) IS
  'Grants a role (PUBLIC: ''-'') the privilege publish or subscribe on a channel, a prefix such as ''orders.*'', or ''*''. EXECUTE is the right to grant';

CREATE FUNCTION subdispatch.revoke_channel(
  channel pg_catalog.text,
  grantee pg_catalog.regrole,
  privilege pg_catalog.text)
RETURNS pg_catalog.void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'subdispatch_revoke_channel';
COMMENT ON FUNCTION subdispatch.revoke_channel(pg_catalog.text, pg_catalog.regrole, pg_catalog.text) IS
  'Takes back what was granted with the same channel, role and privilege, whatever context it required; ends the subscriptions that are no longer allowed';

-- ---- privileges ----

REVOKE ALL ON ALL ROUTINES IN SCHEMA subdispatch FROM PUBLIC;

-- A function in a view is called with the rights of whoever queries the view; these show each role what is its own.
GRANT USAGE ON SCHEMA subdispatch TO PUBLIC;
GRANT EXECUTE ON FUNCTION
  subdispatch.list_subscriptions(), subdispatch.list_consumers(), subdispatch.list_channels(), subdispatch.show_stats()
  TO PUBLIC;
GRANT SELECT ON subdispatch.subscriptions, subdispatch.consumers, subdispatch.channels, subdispatch.stats TO PUBLIC;

GRANT EXECUTE ON FUNCTION
  subdispatch.list_workers(), subdispatch.metrics(), subdispatch.health(), subdispatch.reset_stats()
  TO pg_monitor;
GRANT SELECT ON subdispatch.workers, subdispatch.channel_grants TO pg_monitor;
