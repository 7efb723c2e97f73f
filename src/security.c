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
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/numeric.h"
#include "utils/portal.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "security.h"

#define SAFE_SEARCH_PATH	"pg_catalog, pg_temp"

/* Settings that would undo what security_enter does. */
static const char *const refused_settings[] = {
	"role", "session_authorization", "search_path", "row_security"
};

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

/* ---- lists of settings ---- */

/*
 * The next name of a comma-separated list: sets *name and *len to it, without
 * the blanks around it (*len may be 0), and returns where to go on, or NULL
 * at the end of the list.
 */
static const char *
next_name(const char *list, const char **name, int *len)
{
	const char *end;

	if (list == NULL)
		return NULL;
	end = strchr(list, ',');
	if (end == NULL)
		end = list + strlen(list);

	*name = list;
	*len = end - list;
	while (*len > 0 && isspace((unsigned char) (*name)[*len - 1]))
		(*len)--;
	while (*len > 0 && isspace((unsigned char) **name))
	{
		(*name)++;
		(*len)--;
	}
	if (*end == '\0' && *len == 0)
		return NULL;
	return *end == ',' ? end + 1 : end;
}

/* Names of settings are compared as PostgreSQL does: without regard to case. */
static bool
name_equals(const char *a, int alen, const char *b, int blen)
{
	return alen == blen && pg_strncasecmp(a, b, alen) == 0;
}

/* How the list spells this name: sets *name and *len, or returns false. */
static bool
find_name(const char *list, const char *key, int keylen, const char **name, int *len)
{
	while ((list = next_name(list, name, len)) != NULL)
	{
		if (name_equals(*name, *len, key, keylen))
			return true;
	}
	return false;
}

bool
security_lists_setting(const char *key)
{
	const char *name;
	int			len;

	return find_name(subdispatch_context_settings, key, strlen(key), &name, &len);
}

/* Letters, digits, _ and $, in parts that are separated by single dots. */
static bool
name_is_valid(const char *name, int len)
{
	bool		start = true;
	int			i;

	for (i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) name[i];

		if (c == '.' && !start)
			start = true;
		else if (isalpha(c) || c == '_' || IS_HIGHBIT_SET(c) ||
				 (!start && (isdigit(c) || c == '$')))
			start = false;
		else
			return false;
	}
	return !start;
}

bool
security_check_context_settings(char **newval, void **extra, GucSource source)
{
	const char *list = *newval;
	const char *name;
	int			len;
	int			i;

	while ((list = next_name(list, &name, &len)) != NULL)
	{
		if (!name_is_valid(name, len))
		{
			GUC_check_errdetail("\"%.*s\" is not a valid name of a setting.", len, name);
			GUC_check_errhint("Separate the names by commas, as in \"app.user_id, app.tenant_id\".");
			return false;
		}
		for (i = 0; i < (int) lengthof(refused_settings); i++)
		{
			const char *refused = refused_settings[i];

			if (name_equals(name, len, refused, strlen(refused)))
			{
				GUC_check_errdetail("\"%s\" is what subdispatch itself sets for each identity.",
									refused);
				return false;
			}
		}
	}
	return true;
}

/* ---- settings as jsonb ---- */

static void
push_pair(JsonbParseState **state, const char *name, int namelen, const char *value, int valuelen)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, name);
	v.val.string.len = namelen;
	(void) pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = valuelen;
	(void) pushJsonbValue(state, WJB_VALUE, &v);
}

/*
 * The values that the current user's session has now.  A custom setting that
 * is empty counts as unset: PostgreSQL itself leaves '' behind where a SET
 * LOCAL has ended.  Raises 42501 for a setting that the user may not read.
 */
Jsonb *
security_capture_settings(const char *context_settings)
{
	JsonbParseState *state = NULL;
	const char *list = context_settings;
	const char *name;
	int			len;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	while ((list = next_name(list, &name, &len)) != NULL)
	{
		char	   *key = pnstrdup(name, len);
		const char *value = GetConfigOption(key, true, true);

		if (value == NULL)
			continue;
		if (*value == '\0' && (GetConfigOptionFlags(key, true) & GUC_CUSTOM_PLACEHOLDER))
			continue;
		/* GetConfigOption's result may lie in a buffer that it uses again */
		value = pstrdup(value);
		push_pair(&state, key, len, value, strlen(value));
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* The text of one value, allocated anew; raises 22023 unless it is a scalar. */
static char *
setting_text(const char *name, int namelen, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("value of \"%.*s\" in settings must be a string, a number or a boolean",
							namelen, name),
					 errhint("Leave a setting out to have it unset.")));
	}
	return NULL;				/* keep compiler quiet */
}

static void
report_unlisted(const char *key, int keylen, const char *context_settings)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("setting \"%.*s\" cannot be given to a subscription", keylen, key),
			 *context_settings == '\0' ?
			 errdetail("\"%s\" is empty.", "subdispatch.context_settings") :
			 errdetail("\"%s\" lists %s.", "subdispatch.context_settings", context_settings),
			 errhint("A superuser can add it to \"%s\".", "subdispatch.context_settings")));
}

Jsonb *
security_check_settings(Jsonb *settings, const char *context_settings)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	Jsonb	   *result;

	if (!JB_ROOT_IS_OBJECT(settings))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("settings must be a JSON object")));

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(&settings->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		const char *name;
		int			len;
		char	   *text;

		if (!find_name(context_settings, key.val.string.val, key.val.string.len, &name, &len))
			report_unlisted(key.val.string.val, key.val.string.len,
							context_settings ? context_settings : "");
		(void) JsonbIteratorNext(&it, &value, true);
		text = setting_text(name, len, &value);
		push_pair(&state, name, len, text, strlen(text));
	}
	result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));

	/* spellings that differ by case only have become one key */
	if (JB_ROOT_COUNT(result) != JB_ROOT_COUNT(settings))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a setting is given more than once in settings"),
				 errdetail("Names of settings that differ only in case are the same.")));
	return result;
}

/*
 * The list was another when these were accepted: the subscriber's session or
 * role may have one of its own.
 */
static void
add_unlisted(SdRights *rights, Jsonb *settings, const char *context_settings)
{
	JsonbIterator *it = JsonbIteratorInit(&settings->root);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		const char *name;
		int			len;

		(void) JsonbIteratorNext(&it, &value, true);
		if (find_name(context_settings, key.val.string.val, key.val.string.len, &name, &len))
			continue;
		rights->names[rights->nsettings] = pnstrdup(key.val.string.val, key.val.string.len);
		rights->values[rights->nsettings++] = setting_text(key.val.string.val,
														   key.val.string.len, &value);
	}
}

SdRights *
security_make_rights(Oid role, Jsonb *settings, const char *context_settings)
{
	SdRights   *rights = palloc0(sizeof(SdRights));
	const char *list;
	const char *name;
	int			len;

	rights->role = role;
	for (list = context_settings; (list = next_name(list, &name, &len)) != NULL;)
		rights->nsettings++;
	rights->nsettings += JB_ROOT_COUNT(settings);
	if (rights->nsettings == 0)
		return rights;

	rights->names = palloc0(rights->nsettings * sizeof(char *));
	rights->values = palloc0(rights->nsettings * sizeof(char *));
	rights->nsettings = 0;
	for (list = context_settings; (list = next_name(list, &name, &len)) != NULL;)
	{
		JsonbIterator *it = JsonbIteratorInit(&settings->root);
		JsonbValue	key;
		JsonbValue	value;
		int			n = rights->nsettings++;

		rights->names[n] = pnstrdup(name, len);
		(void) JsonbIteratorNext(&it, &key, true);
		while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
		{
			(void) JsonbIteratorNext(&it, &value, true);
			if (name_equals(name, len, key.val.string.val, key.val.string.len))
				rights->values[n] = setting_text(name, len, &value);
		}
	}
	add_unlisted(rights, settings, context_settings);
	return rights;
}

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
