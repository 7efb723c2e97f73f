-- Policies with sub-selects, which are asked for many identities at once: each gets the answer of its own question, however
-- many of its role, and of others, are asked beside it. (t/017_rls_matrix.pl has more policies, in a build with assertions.)
SET client_min_messages = warning;
-- the dispatchers, which are started by the first subscription or anew, take the database's settings
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET subdispatch.context_settings = ''app.tenant''', current_database()); END $$;
SET subdispatch.context_settings = 'app.tenant';
SELECT count(pg_terminate_backend(pid, 60000)) >= 0 AS anew FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'subdispatch dispatcher';
CREATE TABLE tst.members (tenant text, paper text, may boolean);
CREATE TABLE tst.paper (id int PRIMARY KEY, tenant text);
ALTER TABLE tst.paper ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_members ON tst.paper USING (EXISTS (
  SELECT FROM tst.members m WHERE m.tenant = current_setting('app.tenant', true) AND (m.may OR m.paper = paper.tenant)));
GRANT SELECT ON tst.members, tst.paper TO regress_sub_alice, regress_sub_bob;
SELECT subdispatch.grant_channel('papers', 'regress_sub_alice', 'subscribe'), subdispatch.grant_channel('papers', 'regress_sub_bob', 'subscribe');
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON tst.paper FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('papers');
-- all of Alice's tenants may see every paper, of Bob's each only its own
INSERT INTO tst.members SELECT 'regress_sub_alice' || n, 't' || n, true FROM generate_series(1, 9) n;
INSERT INTO tst.members SELECT 'regress_sub_bob' || n, 't' || n, false FROM generate_series(1, 9) n;

-- What the subscriptions of a case have got, and what their identities' SELECT shows, where these differ.
CREATE PROCEDURE tst.compare(alices int, bobs int, alice_first boolean) LANGUAGE plpgsql AS $$
DECLARE
  s record; seen text; shown text; n int := 0;
BEGIN
  CREATE TEMPORARY TABLE s AS
    SELECT r.login || '-' || k AS id, r.login, r.login || k AS tenant
      FROM (VALUES ('regress_sub_alice'::name, alices), ('regress_sub_bob', bobs)) r(login, many), generate_series(1, many) k
     ORDER BY (r.login = 'regress_sub_alice') = alice_first DESC, k;
  PERFORM subdispatch.subscribe('papers', id => id, run_as => login::regrole, settings => jsonb_build_object('app.tenant', tenant)) FROM s;
  COMMIT;
  INSERT INTO tst.paper VALUES (1, 't2'), (2, 't1'), (3, 't9'), (4, NULL);
  COMMIT;
  PERFORM tst.dispatched();
  FOR s IN SELECT * FROM pg_temp.s LOOP
    SELECT string_agg(d->'row'->>'id', ' ' ORDER BY d->'row'->>'id') INTO seen FROM tst.results(s.id) d;
    PERFORM set_config('app.tenant', s.tenant, true), set_config('role', s.login, true);
    SELECT string_agg(id::text, ' ' ORDER BY id) INTO shown FROM tst.paper;
    PERFORM set_config('role', 'none', true);
    n := n + 1;
    IF seen IS DISTINCT FROM shown THEN
      RAISE EXCEPTION '% Alices and % Bobs: % has got %, and is shown %', alices, bobs, s.id, seen, shown;
    END IF;
  END LOOP;
  IF n <> alices + bobs THEN RAISE EXCEPTION 'only % were compared', n; END IF;
  PERFORM subdispatch.unsubscribe(id) FROM pg_temp.s;
  DROP TABLE pg_temp.s;
  DELETE FROM tst.paper;
  COMMIT;
  PERFORM tst.dispatched();
END $$;
DO $$
BEGIN
  FOR alices IN 0..5 LOOP
    FOR bobs IN 0..5 LOOP
      CALL tst.compare(alices, bobs, true);
      CALL tst.compare(alices, bobs, false);
    END LOOP;
  END LOOP;
END $$;
-- one identity's question raises an error, the others' do not
CREATE FUNCTION tst.checked(tenant text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF tenant ~ '3$' THEN RAISE EXCEPTION 'not this one'; END IF;
  RETURN tenant;
END $$;
ALTER POLICY of_members ON tst.paper USING (EXISTS (
  SELECT FROM tst.members m WHERE m.tenant = tst.checked(current_setting('app.tenant', true)) AND m.paper = paper.tenant));
SELECT subdispatch.subscribe('papers', id => login || '-' || k, run_as => login::regrole, settings => jsonb_build_object('app.tenant', login || k))
  FROM unnest('{regress_sub_alice,regress_sub_bob}'::text[]) login, generate_series(1, 4) k ORDER BY 1;
INSERT INTO tst.paper SELECT k, 't' || k FROM generate_series(1, 4) k;
SELECT tst.dispatched();
SELECT id, d->'row'->'id' AS sees FROM (SELECT login || '-' || k AS id FROM unnest('{regress_sub_alice,regress_sub_bob}'::text[]) login, generate_series(1, 4) k) s
  CROSS JOIN LATERAL tst.results(id) d ORDER BY 1, 2;
SELECT tst.clean();
SELECT subdispatch.revoke_channel('papers', 'regress_sub_alice', 'subscribe'), subdispatch.revoke_channel('papers', 'regress_sub_bob', 'subscribe');
DROP TABLE tst.paper, tst.members;
DROP PROCEDURE tst.compare;
DROP FUNCTION tst.checked;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET subdispatch.context_settings', current_database()); END $$;
