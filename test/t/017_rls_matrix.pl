# Row-level security on row images, against PostgreSQL itself: a generated table of cases (identity × operation × policy
# × column rights × kind of table). What is expected is what a plain SELECT by the same role with the same settings shows
# of the row while it has that image; no expectation is written by hand. Then: what changes rights takes effect with the
# next event, and a row is judged by the image of the change and not by what has become of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(time);

my $node = start_node('rls_matrix', subscription_idle_timeout => 0,
	context_settings => 'app.tenant', max_subscriptions => 20000, shared_memory_size => '256MB',
	listen_channels => '', resolver_timeout => '20s', event_queue_size => '16MB');

# ---- identities ----

# The roles' rights are given below; m_noinherit is a member that does not inherit.
my @roles = qw(m_plain m_member m_noinherit m_owner m_ownersub m_bypass m_super m_none m_columns m_nokey m_noschema);
# undef: the setting is not set.
my @claims = (1, 2, 3, undef);

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE m_group;
CREATE ROLE m_plain;
CREATE ROLE m_member IN ROLE m_group;
CREATE ROLE m_noinherit NOINHERIT IN ROLE m_group;
CREATE ROLE m_owner;
CREATE ROLE m_ownersub IN ROLE m_owner;
CREATE ROLE m_bypass BYPASSRLS;
CREATE ROLE m_super SUPERUSER;
CREATE ROLE m_none;
CREATE ROLE m_columns;
CREATE ROLE m_nokey;
CREATE ROLE m_noschema;
CREATE ROLE m_gateway IN ROLE m_plain, m_member, m_noinherit, m_owner, m_ownersub, m_bypass, m_super, m_none, m_columns, m_nokey, m_noschema;
CREATE SCHEMA m;
GRANT USAGE ON SCHEMA m TO m_group, m_plain, m_owner, m_bypass, m_none, m_columns, m_nokey;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch TO m_gateway, m_owner;
DO $$ BEGIN
  IF to_regprocedure('subdispatch.grant_channel(text,regrole,text,text[])') IS NOT NULL THEN
    EXECUTE $g$SELECT subdispatch.grant_channel('*', '-', 'subscribe')$g$;
    EXECUTE $g$SELECT subdispatch.grant_channel('*', 'm_owner', 'publish')$g$;
  END IF;
END $$;

-- What the policies use. Those without SELECT on it get an error from a sub-select.
CREATE TABLE m.members (tenant int, claim text);
INSERT INTO m.members VALUES (1, '1'), (2, '2'), (3, '2'), (4, '2');
ALTER TABLE m.members ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON m.members USING (claim = current_setting('app.tenant', true));
CREATE POLICY first ON m.members TO m_nokey USING (tenant = 1);
GRANT SELECT ON m.members TO m_group, m_plain, m_owner, m_nokey, m_bypass;
CREATE TABLE m.plain_members (tenant int, claim text);
INSERT INTO m.plain_members SELECT * FROM m.members;
CREATE VIEW m.my_members AS SELECT tenant FROM m.plain_members WHERE claim = current_setting('app.tenant', true);
GRANT SELECT ON m.plain_members, m.my_members TO m_group, m_plain, m_owner, m_nokey, m_bypass;
CREATE FUNCTION m.my_claim() RETURNS text STABLE LANGUAGE sql AS $$ SELECT nullif(current_setting('app.tenant', true), '') $$;
CREATE FUNCTION m.may_see(tenant int) RETURNS bool STABLE LANGUAGE plpgsql AS
  $$ BEGIN RETURN tenant::text = current_setting('app.tenant', true) OR current_user = 'm_nokey'; END $$;
CREATE FUNCTION m.inlined(tenant int) RETURNS bool STABLE LANGUAGE sql AS
  $$ SELECT tenant::text = current_setting('app.tenant', true) $$;
CREATE FUNCTION m.definer(wanted int) RETURNS bool STABLE SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN RETURN EXISTS (SELECT FROM m.members x WHERE x.tenant = wanted AND x.claim = current_setting('app.tenant', true)); END $$;
CREATE FUNCTION m.for_some(tenant int) RETURNS bool STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN tenant = 1; END $$;
REVOKE ALL ON FUNCTION m.for_some FROM PUBLIC;
GRANT EXECUTE ON FUNCTION m.for_some TO m_plain, m_nokey;
CREATE FUNCTION m.to_text(tenant int) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT tenant::text $$;
SQL

# ---- policies; "claims": they look at the setting, so every claim is tried ----

my $setting = "current_setting('app.tenant', true)";
my %policies = (
	off => [],
	empty => ['RLS'],
	permissive => ['USING (tenant = 1)'],
	two => ['USING (tenant = 2)', "USING (note = 'b')"],
	restrictive => ['USING (true)', 'AS RESTRICTIVE USING (tenant <> 2)', "AS RESTRICTIVE TO m_group USING (note <> 'a')"],
	restrictive_only => ['AS RESTRICTIVE USING (true)'],
	roles => ['TO m_group USING (tenant = 1)', 'TO m_columns, m_nokey USING (true)', 'TO CURRENT_USER USING (true)'],
	commands => ['FOR INSERT WITH CHECK (true)', 'FOR UPDATE USING (true)', 'FOR DELETE USING (true)', 'FOR SELECT USING (tenant = 2)'],
	current_user => ["USING (current_user IN ('m_plain', 'm_columns') AND tenant = 1)"],
	whole_row => ["USING (to_jsonb(TABLE)->>'tenant' = '1')"],
	hidden_column => ["USING (TABLE.id = 7 OR TABLE IS NULL)"],
	for_some => ['USING (m.for_some(tenant))'],
	row_error => ['USING (1 / (3 - tenant) = 1)'],
	setting => ["USING (tenant::text = $setting)"],
	setting_cast => ["USING (tenant = nullif($setting, '')::int)", "AS RESTRICTIVE USING (note <> 'c')"],
	subselect => ['USING (tenant IN (SELECT x.tenant FROM m.members x))'],
	correlated => ['USING (EXISTS (SELECT FROM m.members x WHERE x.tenant = TABLE.tenant AND x.claim = ' . $setting . '))'],
	function => ['USING (m.may_see(tenant))'],
	inlined => ['USING (m.inlined(tenant))'],
	definer => ['USING (m.definer(tenant))'],
	error => ["USING (CASE WHEN $setting = '3' THEN 1 / (tenant - tenant) = 1 ELSE tenant = 1 END)"],
	mixed => ["TO m_plain USING (m.to_text(tenant) = $setting)", 'TO m_group USING (tenant IN (SELECT x.tenant FROM m.members x))'],
);
# Those of which parts are computed once for all that share them, and those that must not be. (Errors are behind a CASE:
# otherwise the planner of a SELECT may meet them when it estimates, or ask the conditions in another order.)
my %parts = (
	parts_or => ["USING (note = 'b' OR tenant = nullif($setting, '')::int)"],
	parts_or_error => ["USING (CASE WHEN note = 'b' THEN true ELSE tenant = ${setting}::int END)"],
	parts_and => ["USING (tenant > 1 AND ${setting}::int > 1)"],
	parts_select => ["USING (tenant = (SELECT nullif($setting, '')::int))"],
	parts_select_nested => ["USING ((SELECT (SELECT TABLE.tenant)) = (SELECT (SELECT nullif($setting, '')::int)))"],
	parts_case => ["USING (CASE WHEN note = 'a' THEN tenant = 1 WHEN $setting = '2' THEN tenant > 1 ELSE tenant::text = $setting END)"],
	parts_case_of => ["USING (CASE $setting WHEN '1' THEN tenant WHEN note THEN 2 ELSE 3 END = tenant)"],
	parts_array => ["USING (tenant = ANY (string_to_array(nullif($setting, ''), ',')::int[]))"],
	parts_in => ["USING (nullif($setting, '')::int IN (tenant, id - 7))"],
	parts_nulls => ["USING (tenant IS DISTINCT FROM nullif($setting, '')::int)", "AS RESTRICTIVE USING ((tenant = nullif($setting, '')::int) IS NOT FALSE)"],
	parts_row_error => ["USING (CASE WHEN tenant::text = $setting THEN 1 / (3 - tenant) < 5 ELSE note = 'a' END)"],
	parts_identity_error => ["USING (CASE WHEN tenant = 1 THEN 6 / (nullif($setting, '')::int - 2) = 6 ELSE true END)"],
	parts_volatile => ["USING (tenant::text = $setting AND random() < 2)"],
	parts_time => ["USING (tenant::text = $setting AND now() > '2000-01-01')"],
	parts_bool => ["USING (($setting = '1') = (tenant = 1))"],
	parts_between => ["USING (tenant BETWEEN 1 AND nullif($setting, '')::int)"],
	parts_numeric => ["USING (tenant::numeric + 0.0 = nullif($setting, '')::numeric)"],
	parts_identity => ["USING ($setting = '2')", "USING (current_user = 'm_plain')"],
	parts_row => ['USING (tenant % 2 = 1)', "USING (lower(note) = 'b')"],
	parts_not => ["USING (NOT (tenant::text = $setting))"],
	parts_user => ["USING (current_user = 'm_plain' AND tenant = 1 OR current_user::text || tenant = 'm_columns2')"],
	parts_coalesce => ["USING (coalesce(tenant, nullif($setting, '')::int, 2) = 2)"],
	parts_other => ["USING (coalesce(current_setting('app.other', true), '') = '' AND tenant::text = $setting)"],
	parts_name => ["USING (tenant::text = current_setting('app.' || 'ten' || left(note, 0) || 'ant', true))"],
);
# Those with sub-selects that are asked for all identities of a role by one query, and those that must not be.
my $claim = "nullif($setting, '')::int";
my %many = (
	many_scalar => ["USING (tenant = (SELECT max(x.tenant) FROM m.plain_members x WHERE x.claim = $setting))"],
	many_in => ["USING (tenant IN (SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting))"],
	many_not_in => ["USING (tenant NOT IN (SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting))"],
	many_in_setting => ["USING ($setting IN (SELECT x.claim FROM m.plain_members x WHERE x.tenant = TABLE.tenant))"],
	many_any => ["USING (tenant = ANY (ARRAY(SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting)))"],
	many_all => ["USING (tenant >= ALL (SELECT x.tenant FROM m.plain_members x WHERE x.claim <= $setting))"],
	many_rows => ["USING ((tenant, $setting) IN (SELECT x.tenant, x.claim FROM m.plain_members x))"],
	many_none => ['USING (tenant IN (SELECT x.tenant FROM m.plain_members x WHERE x.tenant < 3))'],
	many_two => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.claim = $setting AND x.tenant = TABLE.tenant))",
		"USING (note = (SELECT min(chr(96 + x.tenant)) FROM m.plain_members x WHERE x.claim = $setting))"],
	many_restrictive => ['USING (true)', "AS RESTRICTIVE USING (EXISTS (SELECT FROM m.plain_members x WHERE x.claim = $setting AND x.tenant >= TABLE.tenant))"],
	many_nested => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND EXISTS (SELECT FROM m.plain_members y WHERE y.claim = $setting AND y.tenant = x.tenant)))"],
	many_lateral => ["USING (EXISTS (SELECT FROM m.plain_members x, LATERAL (SELECT y.claim FROM m.plain_members y WHERE y.tenant = x.tenant AND y.claim = $setting LIMIT 1) z WHERE x.tenant = TABLE.tenant))"],
	many_joins => ["USING (EXISTS (SELECT FROM m.plain_members x LEFT JOIN m.plain_members y ON y.claim = $setting AND y.tenant = x.tenant WHERE x.tenant = TABLE.tenant AND y.tenant IS NULL))"],
	many_using => ["USING (tenant IN (SELECT tenant FROM m.plain_members x JOIN m.plain_members y USING (tenant, claim) WHERE claim = $setting))"],
	many_union => ["USING (tenant IN (SELECT $claim UNION ALL SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting))"],
	many_grouped => ["USING (tenant IN (SELECT count(*)::int FROM m.plain_members x GROUP BY x.claim = $setting HAVING min(x.claim) <= $setting))"],
	many_ordered => ["USING (tenant = (SELECT x.tenant FROM m.plain_members x WHERE x.claim <= $setting ORDER BY x.claim = $setting DESC, x.tenant DESC LIMIT 1))"],
	many_aggregate => ["USING (tenant = (SELECT max($claim) FROM m.plain_members x))"],
	many_values => ["USING (tenant IN (SELECT v FROM (VALUES ($claim), (3)) s(v)))"],
	many_function_rte => ["USING (tenant IN (SELECT v::int FROM unnest(string_to_array($setting || ',3', ',')) v WHERE v <> ''))"],
	many_srf => ["USING (tenant IN (SELECT generate_series(2, $claim)))"],
	many_select => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND x.claim = (SELECT $setting)))"],
	many_case => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE CASE WHEN x.tenant = 1 THEN $setting = '1' ELSE x.claim = $setting END AND x.tenant = TABLE.tenant))"],
	many_case_of => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = CASE $setting WHEN '1' THEN TABLE.tenant WHEN TABLE.note THEN 2 ELSE 3 END))"],
	many_identity_error => ["USING (CASE WHEN tenant = 1 THEN 6 / ($claim - 2) = 6 ELSE EXISTS (SELECT FROM m.plain_members x WHERE x.claim = $setting) END)"],
	many_row_error => ["USING (CASE WHEN tenant::text = $setting THEN 1 / (3 - tenant) < 5 ELSE EXISTS (SELECT FROM m.plain_members x WHERE x.claim = $setting) END)"],
	many_too_many_rows => ["USING (tenant = (SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting))"],
	many_view => ["USING (EXISTS (SELECT FROM m.my_members x WHERE x.tenant = TABLE.tenant))"],
	many_own_policies => ["USING (EXISTS (SELECT FROM m.members x WHERE x.tenant = TABLE.tenant))"],
	many_inlined => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.claim = m.my_claim() AND x.tenant = TABLE.tenant))"],
	many_inlined_on_row => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE m.inlined(x.tenant) AND x.tenant >= TABLE.tenant))"],
	many_definer => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND m.definer(x.tenant)))"],
	many_stable => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND current_setting('app.' || 'tenant', true) = x.claim))"],
	many_volatile => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND x.claim = $setting AND random() < 2))"],
	many_time => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND x.claim = $setting AND now() > '2000-01-01'))"],
	many_user => ["USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = TABLE.tenant AND (x.claim = $setting OR current_user = 'm_plain')))"],
	many_with => ["USING (tenant IN (WITH c AS (SELECT x.tenant FROM m.plain_members x WHERE x.claim = $setting) SELECT c.tenant FROM c))"],
	many_window => ["USING (tenant IN (SELECT row_number() OVER (ORDER BY x.claim = $setting, x.tenant) FROM m.plain_members x WHERE x.claim = $setting))"],
);
%policies = (%policies, %parts, %many);
my %looks_at_claims = map { $_ => 1 } qw(setting setting_cast subselect correlated function inlined definer error mixed), keys %parts, keys %many;

# ---- kinds of tables ----

my %kinds = (
	plain => ['CREATE TABLE TABLE (id int PRIMARY KEY, tenant int, note text)'],
	forced => ['CREATE TABLE TABLE (id int PRIMARY KEY, tenant int, note text)', 'ALTER TABLE TABLE FORCE ROW LEVEL SECURITY'],
	# The partition's columns are in another order.
	partitioned => [
		'CREATE TABLE TABLE (id int PRIMARY KEY, tenant int, note text) PARTITION BY RANGE (id)',
		'CREATE TABLE TABLE_p (note text, gone int, tenant int, id int PRIMARY KEY)',
		'ALTER TABLE TABLE_p DROP gone',
		'ALTER TABLE TABLE ATTACH PARTITION TABLE_p FOR VALUES FROM (0) TO (1000)'
	],
	# An UPDATE that moves a row between partitions is a DELETE and an INSERT to triggers.
	by_tenant => [
		'CREATE TABLE TABLE (id int, tenant int, note text, PRIMARY KEY (id, tenant)) PARTITION BY LIST (tenant)',
		'CREATE TABLE TABLE_1 PARTITION OF TABLE FOR VALUES IN (1)',
		'CREATE TABLE TABLE_o PARTITION OF TABLE DEFAULT'
	],
	child => [
		'CREATE TABLE TABLE_base (id int, tenant int)',
		'CREATE TABLE TABLE (note text, PRIMARY KEY (id)) INHERITS (TABLE_base)',
		# Rows of a child that is asked for by its own name are under its own policies only.
		'ALTER TABLE TABLE_base ENABLE ROW LEVEL SECURITY'
	],
	generated => ["CREATE TABLE TABLE (id int PRIMARY KEY, tenant int, note text, twice int GENERATED ALWAYS AS (tenant * 2) STORED)"],
	dropped => [
		'CREATE TABLE TABLE (gone text, id int PRIMARY KEY, gone2 int, tenant int)',
		'ALTER TABLE TABLE DROP gone, DROP gone2', 'ALTER TABLE TABLE ADD note text'
	],
	# No primary key: LEAVE brings the replica identity.
	identity => [
		'CREATE TABLE TABLE (tenant int, note text, id int NOT NULL)', 'CREATE UNIQUE INDEX ON TABLE (id)',
		'ALTER TABLE TABLE REPLICA IDENTITY USING INDEX TABLENAME_id_idx'
	],
);
my %key = (by_tenant => '{id,tenant}');

# ---- the cases ----

$node->safe_psql('postgres', <<'SQL');
-- An identity is a role with a claim, and has one subscription to a table.
CREATE TABLE tables (name text PRIMARY KEY, kind text, policy text, key text[]);
CREATE TABLE identities (id text PRIMARY KEY, name text, role text, claim text);
CREATE TABLE steps (step int, part int, name text, op text, new int, old int);     -- new, old: which look is the image's
CREATE TABLE looks (look int, id text, image jsonb, failed text, PRIMARY KEY (look, id));
CREATE TABLE got (n bigserial, id text, data jsonb, response text);
GRANT INSERT ON got TO m_gateway;
GRANT USAGE ON SEQUENCE got_n_seq TO m_gateway;

-- What each identity can SELECT of the tables now: each has at most one row.
CREATE FUNCTION look(at int, wanted text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  i record;
  found jsonb;
  problem text;
BEGIN
  FOR i IN SELECT d.*, (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                        WHERE a.attrelid = ('m.' || d.name)::regclass AND a.attnum > 0 AND NOT a.attisdropped
                          AND has_column_privilege(d.role, a.attrelid, a.attnum, 'SELECT')) AS columns
           FROM identities d WHERE wanted IS NULL OR d.name = wanted ORDER BY d.role, d.claim
  LOOP
    found := NULL;
    problem := NULL;
    BEGIN
      PERFORM set_config('app.tenant', coalesce(i.claim, ''), true);
      EXECUTE 'SET LOCAL ROLE ' || i.role;
      EXECUTE format('SELECT to_jsonb(x) FROM (SELECT %s FROM m.%I) x', coalesce(i.columns, '*'), i.name) INTO found;
    EXCEPTION WHEN OTHERS THEN
      problem := SQLSTATE;
    END;
    RESET ROLE;
    INSERT INTO looks VALUES (at, i.id, found, problem);
  END LOOP;
END $$;

-- The rule.
CREATE FUNCTION expected(op text, name text, key text[], new jsonb, old jsonb, failed bool) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE
    WHEN failed THEN NULL
    WHEN op = 'INSERT' AND new IS NOT NULL THEN base || jsonb_build_object('row', new)
    WHEN op = 'DELETE' AND old IS NOT NULL THEN base || jsonb_build_object('row', old)
    WHEN op = 'UPDATE' AND new IS NOT NULL THEN
      base || jsonb_build_object('row', new) || CASE WHEN old IS NULL THEN '{}' ELSE jsonb_build_object('old', old) END
    WHEN op = 'UPDATE' AND old IS NOT NULL THEN
      base || jsonb_build_object('op', 'LEAVE', 'row',
        (SELECT coalesce(jsonb_object_agg(k, v), '{}') FROM jsonb_each(old) e(k, v) WHERE k = ANY (key)))
  END
  FROM (SELECT jsonb_build_object('op', op, 'schema', 'm', 'table', name) AS base) b
$$;

-- What was to be seen, a row each for what is seen.
CREATE VIEW expectations AS
  SELECT i.id, i.name, i.role, i.claim, s.step, s.part, s.op, new.image AS new, old.image AS old, new.failed AS new_failed,
    old.failed AS old_failed,
    CASE WHEN s.op = 'TRUNCATE'
      THEN CASE WHEN has_schema_privilege(i.role, 'm', 'USAGE') AND has_table_privilege(i.role, 'm.' || i.name, 'SELECT')
        THEN jsonb_build_object('op', 'TRUNCATE', 'schema', 'm', 'table', i.name) END
      ELSE expected(s.op, i.name, t.key, new.image, old.image, new.failed IS NOT NULL OR old.failed IS NOT NULL)
    END AS data
  FROM identities i JOIN tables t USING (name) JOIN steps s USING (name)
    LEFT JOIN looks new ON new.id = i.id AND new.look = s.new
    LEFT JOIN looks old ON old.id = i.id AND old.look = s.old;
SQL

# Adds a table with a policy, and subscriptions to its changes: its name.
sub add_table
{
	my ($kind, $policy, $statements, $claims) = @_;
	my $name = "${kind}_$policy";
	my $key = $key{$kind} // '{id}';
	my @sql = @{ $kinds{$kind} };
	push @sql, 'ALTER TABLE TABLE OWNER TO m_owner',
	  'GRANT SELECT ON TABLE TO m_group, m_plain, m_bypass, m_noschema',
	  'GRANT SELECT (id, note) ON TABLE TO m_columns',
	  'GRANT SELECT (tenant, note) ON TABLE TO m_nokey',
	  "CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON TABLE FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('$name')",
	  "CREATE TRIGGER emptied AFTER TRUNCATE ON TABLE EXECUTE FUNCTION subdispatch.publish_change('$name')";
	push @sql, 'ALTER TABLE TABLE ENABLE ROW LEVEL SECURITY' if @$statements;
	my $n = 0;
	push @sql, map { s/\bTABLE\b/$name/gr } map { "CREATE POLICY p" . $n++ . " ON m.$name $_" } grep { $_ ne 'RLS' } @$statements;
	s/\bTABLENAME(?=_)/$name/g, s/(?<!ALTER )(?<!CREATE )(?<!FOR EACH )\bTABLE(?=_|\b)/m.$name/g foreach @sql;
	# In "ALTER TABLE TABLE" the second is the name.
	s/\b(ALTER|CREATE) m\.\Q$name\E /$1 TABLE /g foreach @sql;
	push @sql, "INSERT INTO tables VALUES ('$name', '$kind', '$policy', '$key')";
	foreach my $role (@roles)
	{
		foreach my $claim (@$claims)
		{
			push @sql, "INSERT INTO identities VALUES ('$name/$role/" . ($claim // '-') . "', '$name', '$role', " . ($claim ? "'$claim'" : 'NULL') . ')';
		}
	}
	return ($name, join ";\n", @sql, '');
}

sub subscribe_all
{
	my ($where) = @_;
	$node->safe_psql('postgres', <<SQL);
SET client_min_messages = warning;
CREATE TEMP TABLE wanted AS SELECT * FROM identities WHERE $where;
GRANT SELECT ON wanted TO m_gateway;
SET ROLE m_gateway;
SELECT count(subdispatch.subscribe(name, id => id, consumer => 'm', run_as => role::regrole,
  settings => CASE WHEN claim IS NULL THEN '{}' ELSE jsonb_build_object('app.tenant', claim) END)) FROM wanted;
SQL
}

# Takes all that is queued for the subscriptions into "got".
sub collect
{
	dispatched($node);
	my $n;
	do
	{
		$n = $node->safe_psql('postgres', <<'SQL');
SET ROLE m_gateway;
WITH p AS (SELECT * FROM subdispatch.poll('m', 20000, max_bytes => 100000000) WITH ORDINALITY),
i AS (INSERT INTO got (id, data, response) SELECT subscription_id, response::jsonb #> '{payload,data}', response FROM p ORDER BY ordinality)
SELECT count(*) FROM p;
SQL
	} while ($n > 0);
}

# Finds what was to be seen since "got" was empty, and what differs from it.
sub compare
{
	$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
ANALYZE looks, steps, identities, tables, got;
DROP TABLE IF EXISTS expected, differing;
CREATE TABLE expected AS SELECT * FROM expectations;
CREATE TABLE differing AS
WITH seen AS (SELECT id, row_number() OVER (PARTITION BY id ORDER BY n) AS k, data, response FROM got),
wanted AS (SELECT *, row_number() OVER (PARTITION BY id ORDER BY step, part) AS k FROM expected WHERE data IS NOT NULL)
SELECT id, k, w.step, s.data AS saw, s.response, w.data AS wanted
FROM seen s FULL JOIN wanted w USING (id, k) WHERE s.data IS DISTINCT FROM w.data;
SQL
}

# The first of the differences: a line each.
sub differences
{
	my ($where) = @_;
	return $node->safe_psql('postgres', <<SQL);
SELECT format('%s #%s step %s: saw %s, expected %s', id, k, step, coalesce(saw::text, response, 'nothing'), coalesce(wanted::text, 'nothing'))
FROM differing d LEFT JOIN identities i USING (id) LEFT JOIN tables t USING (name) WHERE ($where) IS NOT FALSE
ORDER BY id, k LIMIT 20;
SQL
}

my $sql = "SET client_min_messages = warning;\n";
my @tables;
foreach my $kind (sort keys %kinds)
{
	foreach my $policy (sort keys %policies)
	{
		next if ($parts{$policy} || $many{$policy}) && $kind !~ /^(?:plain|dropped|partitioned)$/;
		my ($name, $make) = add_table($kind, $policy, $policies{$policy}, $looks_at_claims{$policy} ? \@claims : [undef]);
		push @tables, [ $name, $kind ];
		$sql .= $make;
	}
}
# tableoid is the one system column that images have; of a partitioned table it would be the partition's.
foreach my $kind (grep { $_ ne 'partitioned' && $_ ne 'by_tenant' } sort keys %kinds)
{
	my ($name, $make) = add_table($kind, 'tableoid', ["USING (tableoid = 'm.${kind}_tableoid'::regclass AND tenant = 1)"], [undef]);
	push @tables, [ $name, $kind ];
	$sql .= $make;
}
my $start = time;
$node->safe_psql('postgres', $sql);
subscribe_all('true');
note(sprintf '%d tables, %s identities, made in %.1f s', scalar @tables,
	$node->safe_psql('postgres', 'SELECT count(*) FROM identities'), time - $start);

# What happens to the only row of each table: operation, id, tenant, note.
my @steps = (
	[ 'INSERT', 7, 1, 'a' ], [ 'UPDATE', 7, 1, 'b' ], [ 'UPDATE', 8, 2, 'b' ], [ 'UPDATE', 8, 2, 'a' ], [ 'UPDATE', 8, 1, 'a' ],
	[ 'UPDATE', 8, undef, 'b' ], [ 'UPDATE', 7, 3, 'b' ], [ 'UPDATE', 7, 2, 'c' ], ['DELETE'],
	[ 'INSERT', 9, 2, 'c' ], [ 'UPDATE', 7, 1, 'c' ], ['DELETE'],
	[ 'INSERT', 7, 3, 'a' ], ['DELETE'], [ 'INSERT', 7, undef, 'b' ], ['TRUNCATE']);

$start = time;
my $before;
my $partition = '';
foreach my $step (1 .. @steps)
{
	my ($op, $id, $tenant, $note) = @{ $steps[ $step - 1 ] };
	$tenant //= 'NULL';
	my $sql = "BEGIN;\n";
	my $into = $tenant eq '1' ? '1' : 'o';
	foreach my $t (@tables)
	{
		my ($name, $kind) = @$t;
		# A part of that table's key is never null.
		my $value = $kind eq 'by_tenant' && $tenant eq 'NULL' ? 4 : $tenant;
		$sql .= $op eq 'INSERT' ? "INSERT INTO m.$name (id, tenant, note) VALUES ($id, $value, '$note');\n"
		  : $op eq 'UPDATE' ? "UPDATE m.$name SET id = $id, tenant = $value, note = '$note';\n"
		  : $op eq 'DELETE' ? "DELETE FROM m.$name;\n" : "TRUNCATE m.$name;\n";
		my @parts = $kind eq 'by_tenant' && $op eq 'UPDATE' && $into ne $partition ? ('DELETE', 'INSERT') : ($op);
		my ($new, $old) = ($step, $step - 1);
		$sql .= "INSERT INTO steps VALUES ($step, $_, '$name', '$parts[$_]', "
		  . ($parts[$_] eq 'DELETE' ? 'NULL' : $new) . ', ' . ($parts[$_] eq 'INSERT' ? 'NULL' : $old) . ");\n" foreach 0 .. $#parts;
	}
	$partition = $op eq 'DELETE' ? '' : $into;
	$node->safe_psql('postgres', $sql . "COMMIT;\nSELECT look($step);\n");
}
note(sprintf 'changed and looked at in %.1f s', time - $start);
$start = time;
collect();
note(sprintf 'dispatched and read in %.1f s', time - $start);
$start = time;
compare();
is(differences("t.kind = '$_'"), '', "table kind $_: as a SELECT shows it") foreach sort keys %kinds;
# Otherwise the table of cases would prove little.
my $counts = $node->safe_psql('postgres', <<'SQL');
SELECT string_agg(kind || ' ' || (n >= 100), ', ' ORDER BY kind COLLATE "C") FROM (
  SELECT CASE WHEN data IS NOT NULL THEN data->>'op' || CASE WHEN data ? 'old' THEN ' with old' ELSE '' END
    WHEN new_failed ~ '^42501' OR old_failed ~ '^42501' THEN 'no right'
    WHEN new_failed IS NOT NULL OR old_failed IS NOT NULL THEN 'error' ELSE 'hidden' END AS kind, count(*) AS n
  FROM expected GROUP BY 1) x
SQL
is($counts, 'DELETE true, INSERT true, LEAVE true, TRUNCATE true, UPDATE true, UPDATE with old true, error true, hidden true, no right true',
	'all sorts of cases are among them');
note($node->safe_psql('postgres', "SELECT count(*) || ' combinations, ' || count(data) || ' seen' FROM expected"));
note(sprintf 'compared in %.1f s', time - $start);


# ---- what changes rights takes effect with the next event ----

my ($live, $make) = add_table('plain', 'live', ['USING (tenant = 1)'], [ 1, 2 ]);
$node->safe_psql('postgres', "SET client_min_messages = warning;\n"
	. "DO \$\$ BEGIN PERFORM subdispatch.unsubscribe(id) FROM subdispatch.subscriptions; END \$\$;\n"
	. "DELETE FROM identities; DELETE FROM steps; DELETE FROM looks; DELETE FROM got; DELETE FROM tables;\n" . $make);
$node->safe_psql('postgres', "SET ROLE m_gateway; SELECT subdispatch.close_consumer('m')");
subscribe_all("name = '$live'");

my @alterations = (
	"SELECT 'nothing yet'",
	'ALTER POLICY p0 ON m.LIVE USING (tenant = 2)',
	'ALTER POLICY p0 ON m.LIVE TO m_group',
	"CREATE POLICY p1 ON m.LIVE TO m_plain, m_owner USING (m.may_see(tenant))",
	"CREATE OR REPLACE FUNCTION m.may_see(tenant int) RETURNS bool STABLE LANGUAGE plpgsql AS \$\$ BEGIN RETURN tenant::text <> $setting; END \$\$",
	'DROP POLICY p0 ON m.LIVE',
	'DROP POLICY p1 ON m.LIVE',
	'CREATE POLICY p2 ON m.LIVE USING (tenant IN (SELECT x.tenant FROM m.members x))',
	"INSERT INTO m.members VALUES (1, '2'), (2, '1')",
	'ALTER POLICY own ON m.members USING (true)',
	'REVOKE SELECT ON m.members FROM m_plain',
	'GRANT SELECT ON m.members TO PUBLIC',
	'ALTER POLICY p2 ON m.LIVE USING (tenant = 1)',
	'GRANT SELECT ON m.LIVE TO m_none',
	'REVOKE SELECT ON m.LIVE FROM m_plain',
	'GRANT SELECT (tenant) ON m.LIVE TO m_plain',
	'REVOKE SELECT (id) ON m.LIVE FROM m_columns',
	'GRANT m_group TO m_plain',
	'REVOKE m_group FROM m_member',
	'ALTER ROLE m_noinherit INHERIT',
	'GRANT USAGE ON SCHEMA m TO m_noschema',
	'REVOKE USAGE ON SCHEMA m FROM m_none',
	'ALTER ROLE m_plain BYPASSRLS',
	'ALTER ROLE m_plain NOBYPASSRLS',
	'ALTER ROLE m_bypass NOBYPASSRLS',
	'ALTER ROLE m_super NOSUPERUSER',
	'ALTER ROLE m_none SUPERUSER',
	'ALTER TABLE m.LIVE FORCE ROW LEVEL SECURITY',
	'ALTER TABLE m.LIVE NO FORCE ROW LEVEL SECURITY',
	'REVOKE m_owner FROM m_ownersub',
	'ALTER TABLE m.LIVE DISABLE ROW LEVEL SECURITY',
	'ALTER TABLE m.LIVE ENABLE ROW LEVEL SECURITY',
	'ALTER TABLE m.LIVE ADD extra int DEFAULT 5',
	'CREATE POLICY p3 ON m.LIVE AS RESTRICTIVE USING (extra = 5 AND tenant = 1)',
	'ALTER TABLE m.LIVE ALTER extra SET DEFAULT 6',
	'ALTER TABLE m.LIVE DROP extra CASCADE',
	'CREATE POLICY p4 ON m.LIVE AS RESTRICTIVE TO m_group USING (1 / (tenant - 1) > 0)');
my $step = 0;
foreach my $alteration (@alterations)
{
	$node->safe_psql('postgres', $alteration =~ s/LIVE/$live/gr);
	my @changes = ("INSERT INTO m.$live (id, tenant, note) VALUES (7, 1, 'a')",
		"UPDATE m.$live SET tenant = 2", "UPDATE m.$live SET tenant = 1, note = 'b'", "DELETE FROM m.$live");
	foreach my $change (@changes)
	{
		$step++;
		my ($op) = $change =~ /^(\w+)/;
		$node->safe_psql('postgres', "$change;\nINSERT INTO steps VALUES ($step, 0, '$live', '$op', "
			. ($op eq 'DELETE' ? 'NULL' : $step) . ', ' . ($op eq 'INSERT' ? 'NULL' : $step - 1) . ");\nSELECT look($step, '$live');\n");
	}
	# Before the next alteration: it's the rights at dispatch that count.
	dispatched($node);
}
collect();
compare();
is(differences('true'), '', 'ALTER, GRANT and REVOKE of all sorts take effect with the next event');
my $different = $node->safe_psql('postgres', <<'SQL');
SELECT count(DISTINCT seen) FROM (
  SELECT (step - 1) / 4, string_agg(id || coalesce(data::text, ''), ' ' ORDER BY step, id) AS seen FROM
    (SELECT step, id, data FROM expected) x GROUP BY 1) y
SQL
cmp_ok($different, '>=', @alterations * 0.8, 'and most of them make a difference');

# ---- the image of the change counts, not what has become of the row ----

# The dispatcher is held up with the channel's first event until the row has moved.
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE m.moved (id int PRIMARY KEY, tenant int);
ALTER TABLE m.moved OWNER TO m_owner;
ALTER TABLE m.moved ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON m.moved USING (tenant::text = current_setting('app.tenant', true));
GRANT SELECT ON m.moved TO m_group;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON m.moved FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('moved');
CREATE FUNCTION slow(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  WHILE event->'data' ? 'sleep' AND NOT EXISTS (SELECT FROM public.moved) LOOP
    PERFORM pg_sleep(0.02);
  END LOOP;
  RETURN NULL;
END $$;
CREATE TABLE moved ();
SELECT subdispatch.subscribe('moved', 'slow', id => 'slow');
GRANT m_group TO m_gateway, m_member;
SET ROLE m_gateway;
SELECT subdispatch.subscribe('moved', id => 'one', run_as => 'm_member', settings => '{"app.tenant": "1"}');
SELECT subdispatch.subscribe('moved', id => 'two', run_as => 'm_member', settings => '{"app.tenant": "2"}');
RESET ROLE;
SELECT subdispatch.publish('moved', '{"sleep": true}');
SQL
ok($node->poll_query_until('postgres', "SELECT pending = 1 FROM subdispatch.subscriptions WHERE id = 'two'"),
	'the first event is in hand, by itself');
$node->safe_psql('postgres', <<'SQL');
INSERT INTO m.moved VALUES (1, 1);
UPDATE m.moved SET tenant = 2;
INSERT INTO m.moved VALUES (2, 1);
DELETE FROM m.moved WHERE id = 2;
SQL
is($node->safe_psql('postgres', "SELECT pending <= 1 FROM subdispatch.subscriptions WHERE id = 'two'"), 't',
	'the row had moved before its INSERT was dispatched');
$node->safe_psql('postgres', 'INSERT INTO moved DEFAULT VALUES');
dispatched($node);
my $ops = <<'SQL';
SET ROLE m_gateway;
SELECT string_agg(((r::jsonb #> '{payload,data}') - 'schema' - 'table')::text, ' ' ORDER BY n)
FROM subdispatch.next_responses('WHO', 100) WITH ORDINALITY x(r, n);
SQL
is($node->safe_psql('postgres', $ops =~ s/WHO/one/r),
	'{"sleep": true} {"op": "INSERT", "row": {"id": 1, "tenant": 1}} {"op": "LEAVE", "row": {"id": 1}}'
	  . ' {"op": "INSERT", "row": {"id": 2, "tenant": 1}} {"op": "DELETE", "row": {"id": 2, "tenant": 1}}',
	'tenant 1 sees its INSERT, that the row left, and the INSERT and DELETE of a row that is no more');
is($node->safe_psql('postgres', $ops =~ s/WHO/two/r), '{"sleep": true} {"op": "UPDATE", "row": {"id": 1, "tenant": 2}}',
	'tenant 2 sees neither the INSERT that tenant 1 made nor the row as it was before it came');

# ---- many identities, one query ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE m.asked (id int PRIMARY KEY, tenant int);
ALTER TABLE m.asked ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON m.asked USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = asked.tenant AND x.claim = m.my_claim()));
GRANT SELECT ON m.asked TO m_group;
CREATE TRIGGER changed AFTER INSERT ON m.asked FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('asked');
SET ROLE m_gateway;
SELECT subdispatch.subscribe('asked', id => 'asked' || i, run_as => 'm_member', consumer => 'asked',
  settings => jsonb_build_object('app.tenant', i::text)) FROM generate_series(1, 200) i;
RESET ROLE;
ALTER SYSTEM SET log_min_messages = 'debug2';
SELECT pg_reload_conf();
SQL
sub asked
{
	my ($id) = @_;
	my $from = -s $node->logfile;
	$node->safe_psql('postgres', "INSERT INTO m.asked VALUES ($id, 2)");
	dispatched($node);
	my @asked = slurp_file($node->logfile, $from) =~ /policies of (\d+) identities were asked by one query/g;
	return \@asked;
}
asked(1);
is_deeply(asked(2), [ 64, 64, 64, 8 ], 'the policies of 200 identities are asked by four queries');
is($node->safe_psql('postgres', "SET ROLE m_gateway; SELECT string_agg(subscription_id, ' ') FROM subdispatch.poll('asked', 100)"),
	'asked2 asked2', 'who may see the rows gets them, and nobody else');
# One of them has an error: all are asked by themselves, and it alone has nothing.
$node->safe_psql('postgres', <<'SQL');
ALTER POLICY p ON m.asked USING (EXISTS (SELECT FROM m.plain_members x WHERE CASE WHEN x.tenant = asked.tenant THEN 1 / (m.my_claim()::int - x.tenant - 3) < 5 END));
SQL
asked($_) foreach 3 .. 4;
is($node->safe_psql('postgres', "SET ROLE m_gateway; SELECT count(*), count(DISTINCT subscription_id), bool_or(subscription_id = 'asked5') FROM subdispatch.poll('asked', 1000)"),
	'398|199|f', "an error costs only the identity whose policies raise it");
$node->safe_psql('postgres', "ALTER SYSTEM RESET log_min_messages; SELECT pg_reload_conf()");

# Two of a role, one of whom cannot be asked together with others: each has an answer of his own, whoever comes first.
foreach my $first ('2', 'none')
{
	my $second = $first eq '2' ? 'none' : '2';
	my $both = join ', ', map { "subdispatch.subscribe('two', id => '$_', run_as => 'm_member', consumer => 'two', settings => '{\"app.tenant\": \"$_\"}')" } $first, $second;
	$node->safe_psql('postgres', <<SQL);
SET client_min_messages = warning;
CREATE TABLE m.two (id int PRIMARY KEY, tenant int);
ALTER TABLE m.two ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON m.two USING (EXISTS (SELECT FROM m.plain_members x WHERE x.tenant = two.tenant AND x.claim = (current_setting('app.tenant')::int)::text));
GRANT SELECT ON m.two TO m_group;
CREATE TRIGGER changed AFTER INSERT ON m.two FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('two');
SET ROLE m_gateway;
SELECT $both;
SQL
	foreach my $id (1 .. 2)
	{
		$node->safe_psql('postgres', "INSERT INTO m.two VALUES ($id, 2)");
		dispatched($node);
	}
	is($node->safe_psql('postgres', "SET ROLE m_gateway; SELECT string_agg(subscription_id, ' ') FROM subdispatch.poll('two', 100)"),
		'2 2', "who may see it, beside one whose setting is none, who subscribed " . ($first eq '2' ? 'later' : 'before'));
	$node->safe_psql('postgres', "SET ROLE m_gateway; SELECT subdispatch.close_consumer('two')");
	$node->safe_psql('postgres', 'DROP TABLE m.two');
}

$node->stop;
done_testing();
