-- Roles belong to the server: they are not left behind.
SELECT tst.clean();
RESET client_min_messages;
SET client_min_messages = warning;
DROP OWNED BY regress_sub_alice, regress_sub_bob, regress_sub_gateway, regress_sub_nobody, regress_sub_monitor CASCADE;
DROP ROLE regress_sub_alice, regress_sub_bob, regress_sub_gateway, regress_sub_nobody, regress_sub_monitor;
DROP SCHEMA tst CASCADE;
-- The extension goes, too, with dispatchers running and a subscription alive.
SELECT subdispatch.subscribe('gone', id => 'gone');
DROP EXTENSION subdispatch;
SELECT count(*) FROM pg_namespace WHERE nspname = 'subdispatch';
CREATE EXTENSION subdispatch;
SELECT count(*) FROM subdispatch.subscriptions;
DROP EXTENSION subdispatch;
