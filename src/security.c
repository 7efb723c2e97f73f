/*-------------------------------------------------------------------------
 *
 * security.c
 *	  As whom user code runs in a dispatcher, and with which settings.
 *
 * A dispatcher is one session, connected as the bootstrap superuser, in which
 * the policies and resolvers of all identities run, one after the other.  What
 * a role could tell from its own session has to look here as it does there,
 * and nothing may pass from one identity to the next.  So, around each piece
 * of user code:
 *
 *	- session_user, current_user and is_superuser become the role's.  The
 *	  session user goes along with SetSessionAuthorization(), the C function:
 *	  the setting session_authorization stays untouched, and so cannot be RESET
 *	  to the superuser behind it.  Parallel workers inherit all three.
 *	- It is a security-restricted operation: SET ROLE and SET SESSION
 *	  AUTHORIZATION, temporary tables, PREPARE, LISTEN, DISCARD, cursors WITH
 *	  HOLD and the queueing of deferred triggers are refused by PostgreSQL.
 *	  There are thus no deferred triggers to fire when the code has returned.
 *	- It has a GUC nest level of its own, which is always rolled back: a plain
 *	  SET inside is gone afterwards too.
 *	- What else a session can keep is given up on leaving: open cursors, large
 *	  object descriptors, session-level advisory locks, currval() and
 *	  lastval(); temporary objects that the restricted operation did not stop
 *	  (functions, types) are an error.
 *
 * QUIET CODE.  Policies and casts may only look.  They run in a read-only
 * transaction; that cannot be undone by RESET transaction_read_only, which asks
 * nobody, since in a dispatcher it resets to "on".  What a read-only transaction
 * does not stop is found by the hooks of functions and utility commands: NOTIFY,
 * large objects, messages in the WAL.  A procedural language that keeps a
 * prepared expression for the rest of a transaction does not go through the
 * hooks again, so no quiet code runs after other code in one transaction.
 *
 * Advisory locks of the transaction's stay, as row locks do: released before
 * the commit they would no longer protect what was written under them.
 *
 * Not separated: what a procedural language keeps in the session by itself,
 * such as PL/Python's GD; custom settings, once known to the session, show as
 * '' and no longer as NULL when they are unset, as in any session.
 *
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/sequence.h"
#include "libpq/be-fsstubs.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "security.h"

#define SAFE_SEARCH_PATH	"pg_catalog, pg_temp"

/* User code's rights are in force. */
static bool entered = false;
static bool quiet = false;		/* and the code may only look */
static bool was_read_only;		/* XactReadOnly before it was entered */
static LocalTransactionId loud_in = InvalidLocalTransactionId;	/* transaction of the
																 * last other code */

/* ---- entering and leaving ---- */

/*
 * Makes one value that of the current GUC nest level, or checks only that it
 * could be if apply is false.  A NULL value means the default.  Raises an
 * error when the current user may not set it so.
 */
static void
set_setting(const char *name, const char *value, bool superuser, bool apply)
{
	(void) set_config_option(name, value,
							 superuser ? PGC_SUSET : PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, apply, 0, false);
}

/*
 * Puts a setting to its default.  Nothing is done, and no placeholder made,
 * for one that is unknown or is there already: that is the usual case in a
 * dispatcher, whose own session sets none, and it is cheap.
 */
static void
unset_setting(const char *name, bool superuser)
{
	const char *value = GetConfigOption(name, true, false);
	const char *reset;

	if (value == NULL)
		return;
	reset = GetConfigOptionResetString(name);
	if (reset != NULL && strcmp(value, reset) == 0)
		return;
	set_setting(name, NULL, superuser, true);
}

/*
 * The dispatcher's session has the safe values from its start, so that
 * entering finds them in place.  At this level they are the reset values too,
 * stronger than a configuration file's and a database's, reloads included.
 */
void
security_init_worker(void)
{
	SetConfigOption("search_path", SAFE_SEARCH_PATH, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "on", PGC_SUSET, PGC_S_OVERRIDE);
	/* No more than what RESET brings: each transaction starts with its default. */
	Assert(!IsTransactionState());
	SetConfigOption("transaction_read_only", "on", PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Becomes rights->role.  Needs a transaction, in which nothing is entered yet.
 *
 * Raises 42704 if there is no such role, and what setting a setting raises.
 * The caller then calls security_reset(), as for an error of the code's.
 */
void
security_enter(SdGuard *guard, const SdRights *rights)
{
	Oid			temp_toast;
	Oid			temp_schema;
	Oid			user;
	int			sec_context;
	bool		superuser;
	int			i;

	GetUserIdAndSecContext(&user, &sec_context);
	if (entered || sec_context != 0)
		elog(ERROR, "user code's rights are in force already");
	if (!security_role_exists(rights->role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", rights->role)));

	GetTempNamespaceState(&temp_schema, &temp_toast);
	guard->had_temp_schema = OidIsValid(temp_schema);
	guard->base_role = GetAuthenticatedUserId();

	entered = true;
	was_read_only = XactReadOnly;
	guard->guc_nest_level = NewGUCNestLevel();

	/*
	 * As the superuser that we are, lest the role lack a right that nobody
	 * can lack: these two are not the identity's choice.
	 */
	if (strcmp(namespace_search_path, SAFE_SEARCH_PATH) != 0)
		set_setting("search_path", SAFE_SEARCH_PATH, true, true);
	if (!row_security)
		set_setting("row_security", "on", true, true);

	superuser = superuser_arg(rights->role);
	SetSessionAuthorization(rights->role, superuser);
	SetUserIdAndSecContext(rights->role, SECURITY_RESTRICTED_OPERATION);

	for (i = 0; i < rights->nsettings; i++)
	{
		if (rights->values[i] != NULL)
			set_setting(rights->names[i], rights->values[i], superuser, true);
		else
			unset_setting(rights->names[i], superuser);
	}
}

/*
 * Gives up what the code left in the session, while still having its rights.
 * What it left in the transaction is the caller's to keep or to roll back.
 *
 * Raises an error for what can't be given up: the caller rolls it back.
 */
static void
discard_leftovers(const SdGuard *guard)
{
	Oid			temp_schema;
	Oid			temp_toast;

	GetTempNamespaceState(&temp_schema, &temp_toast);
	if (OidIsValid(temp_schema) && !guard->had_temp_schema)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary objects cannot be created in a resolver or policy")));

	/*
	 * A cursor that a language has pinned (plpy.cursor() kept in GD) raises an
	 * error here; its portal goes when the subtransaction is rolled back.
	 */
	PortalHashTableDeleteAll();
	AtEOXact_LargeObject(true);
	ResetSequenceCaches();
	LockReleaseSession(USER_LOCKMETHOD);
}

static void
code_is_over(void)
{
	/* quiet code was made so behind the back of the settings' nest level */
	XactReadOnly = was_read_only;
	if (!quiet)
		loud_in = MyProc->lxid;
	quiet = false;
	entered = false;
}

/*
 * The end of user code that returned.  An error may come before the rights
 * are given back; security_reset() then does so.
 */
void
security_leave(SdGuard *guard)
{
	Assert(entered);

	discard_leftovers(guard);

	/* "abort", for everything to be undone: a commit keeps a plain SET */
	AtEOXact_GUC(false, guard->guc_nest_level);
	SetUserIdAndSecContext(guard->base_role, 0);
	SetSessionAuthorization(guard->base_role, true);
	code_is_over();
}

/*
 * The session's own identity again, from any state.  Called after the
 * rollback of the (sub)transaction, which undid settings, cursors and large
 * object descriptors, or just before that of the whole transaction.
 */
void
security_reset(void)
{
	Oid			base_role = GetAuthenticatedUserId();

	if (!entered)
		return;

	ResetSequenceCaches();
	LockReleaseSession(USER_LOCKMETHOD);
	SetUserIdAndSecContext(base_role, 0);
	SetSessionAuthorization(base_role, true);
	code_is_over();
}

bool
security_entered(void)
{
	return entered;
}

/* ---- code that may only look ---- */

void
security_be_quiet(void)
{
	Assert(entered && !quiet);
	if (loud_in == MyProc->lxid)
		elog(ERROR, "policies must run before resolvers");
	quiet = true;
	XactReadOnly = true;
}

bool
security_is_quiet(void)
{
	return quiet;
}

static void
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("%s cannot be used in a policy or a cast of a row image", what)));
}

void
security_check_function(Oid function)
{
	if (likely(!quiet))
		return;
	switch (function)
	{
		case F_PG_NOTIFY:
			refuse("pg_notify()");
			break;
		case F_LO_CREAT:
		case F_LO_CREATE:
		case F_LO_FROM_BYTEA:
		case F_LO_IMPORT_TEXT:
		case F_LO_IMPORT_TEXT_OID:
		case F_LO_EXPORT:
		case F_LO_PUT:
		case F_LO_TRUNCATE:
		case F_LO_TRUNCATE64:
		case F_LO_UNLINK:
		case F_LOWRITE:
			refuse("writing to large objects");
			break;
		case F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_TEXT:
		case F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_BYTEA:
			refuse("pg_logical_emit_message()");
			break;
		default:
			break;
	}
}

void
security_check_utility(Node *stmt)
{
	if (quiet && IsA(stmt, NotifyStmt))
		refuse("NOTIFY");
}

/* ---- roles ---- */

bool
security_role_exists(Oid role)
{
	return SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
}

/* Could owner SET ROLE to role?  Superusers can. */
bool
security_may_become(Oid owner, Oid role)
{
	return security_role_exists(role) && is_member_of_role(owner, role);
}

/* ---- settings ---- */

/*
 * Would these settings be accepted from this role?  For subscribe(): raises
 * the error that would otherwise come with each event.
 */
void
security_try_settings(const SdRights *rights)
{
	bool		superuser = superuser_arg(rights->role);
	Oid			user;
	int			sec_context;

	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(rights->role, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	PG_TRY();
	{
		int			i;

		for (i = 0; i < rights->nsettings; i++)
		{
			if (rights->values[i] != NULL)
				set_setting(rights->names[i], rights->values[i], superuser, false);
		}
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(user, sec_context);
	}
	PG_END_TRY();
}
