-- The settings: each is there, described, with its unit and default, and takes no nonsense.
SET client_min_messages = warning;
CREATE TABLE tst.expected (name text, boot_val text);
INSERT INTO tst.expected VALUES ('event_bus', 'memory'), ('dispatchers', '2'), ('max_subscriptions', NULL), ('shared_memory_size', NULL), ('event_queue_size', NULL), ('max_event_size', '1MB'), ('publish_timeout', '1s'),
  ('on_queue_full', 'error'), ('listen_channels', '*'), ('max_listen_channels', '1000'), ('resolver_timeout', '1s'), ('resolver_max_timeouts', '3'), ('max_pending', '1000'), ('max_pending_bytes', '10MB'), ('overflow', 'drop_oldest'),
  ('max_subscriptions_per_connection', '50'), ('max_subscription_size', '64kB'), ('subscription_idle_timeout', '10min'), ('subscription_max_lifetime', '24h'), ('context_settings', ''), ('omit_null_errors', 'off'), ('include_event_id', 'off'), ('event_history_size', '4MB'), ('mask_errors', 'off');
-- Missing, undescribed, or with another default than the documented one. Sizes and times are compared in their unit.
CREATE FUNCTION tst.amount(value text, unit text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN trim_scale(CASE
    WHEN unit ~ 'B$' AND value ~ 'B$' THEN pg_size_bytes(value)
    WHEN unit = 'B' THEN value::numeric
    WHEN unit ~ 'B$' THEN value::numeric * pg_size_bytes(CASE WHEN unit ~ '^\d' THEN unit ELSE '1' || unit END)
    WHEN unit IS NOT NULL THEN extract(epoch FROM CASE WHEN value ~ '[a-z]' THEN value ELSE value || unit END::interval)
    ELSE value::numeric END)::text;
EXCEPTION WHEN invalid_text_representation THEN
  RETURN value;
END $$;
SELECT e.name, e.boot_val AS expected, s.boot_val, s.unit FROM tst.expected e LEFT JOIN pg_settings s ON s.name = 'subdispatch.' || e.name
 WHERE s.name IS NULL OR tst.amount(e.boot_val, s.unit) <> tst.amount(s.boot_val, s.unit) ORDER BY 1;
SELECT name FROM pg_settings WHERE name LIKE 'subdispatch.%' AND (coalesce(short_desc, '') = '' OR category !~ '[A-Z]' OR (vartype IN ('integer', 'real') AND (min_val IS NULL OR max_val IS NULL)) OR (vartype = 'enum' AND enumvals IS NULL)) ORDER BY 1;
SELECT name, vartype, unit IS NOT NULL AS has_unit, CASE WHEN name <> 'subdispatch.event_bus' THEN enumvals ELSE enumvals[1:2] END AS enumvals
  FROM pg_settings WHERE name IN (SELECT 'subdispatch.' || e.name FROM tst.expected e) ORDER BY name;
-- No setting by another name.
SELECT s.name FROM pg_settings s WHERE name LIKE 'subdispatch.%' AND substr(name, 13) NOT IN (SELECT name FROM tst.expected) AND substr(name, 13) NOT IN
  ('rate_limit', 'burst', 'user_rate_limit', 'user_burst', 'max_subscriptions_per_user', 'max_subscriptions_per_role', 'redis_url', 'bus_key', 'redis_key_prefix', 'redis_ca_file', 'redis_max_length', 'redis_timeout', 'redis_resume_timeout', 'replay_wait_timeout') AND substr(name, 13) NOT LIKE 'debug%' ORDER BY 1;
-- The prefix is reserved, and values are checked.
SELECT tst.fails('SET subdispatch.nonsense = 1', 'subdispatch.nonsense');
SELECT e.name, tst.fails(format('SET subdispatch.%s = %L', e.name, CASE s.vartype WHEN 'bool' THEN 'maybe' WHEN 'enum' THEN 'nonsense' ELSE '-2' END), e.name)
  FROM tst.expected e JOIN pg_settings s ON s.name = 'subdispatch.' || e.name WHERE s.vartype <> 'string' ORDER BY 1;
-- What decides over others' rights and memory is not everybody's to set.
GRANT SELECT ON tst.expected TO PUBLIC;
SET ROLE regress_sub_nobody;
SELECT e.name, tst.fails(format('SET subdispatch.%s = %L', e.name, s.setting), e.name) FROM tst.expected e JOIN pg_settings s ON s.name = 'subdispatch.' || e.name
 WHERE e.name IN ('event_bus', 'dispatchers', 'max_subscriptions', 'shared_memory_size', 'event_queue_size', 'max_event_size', 'resolver_timeout', 'max_pending', 'max_pending_bytes', 'context_settings', 'listen_channels', 'mask_errors') ORDER BY 1;
RESET ROLE;
-- What changes only at a start says so.
SELECT name, context FROM pg_settings WHERE name IN ('subdispatch.shared_memory_size', 'subdispatch.max_subscriptions') ORDER BY 1;
DROP TABLE tst.expected;
DROP FUNCTION tst.amount;
