/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  Commands on databases and on the extension itself: nobody is kept from
 *	  them by our workers, and nothing of ours outlives what they drop.
 *
 * DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, and CREATE DATABASE
 * for its template need a database that nobody is connected to.  So they pause
 * its dispatchers: db->paused is raised, idle dispatchers end at once, busy
 * ones are terminated after a moment (what they had in hand stays in hand),
 * and the launcher starts none until the pause is over.
 *
 *	  - DROP DATABASE tells us by its object-access hook, after it has checked
 *		the permission and locked the database.  The pause lasts until the
 *		transaction ends; if it commits, all that the database had in shared
 *		memory goes.
 *	  - The others have no hook in time, so we stand in ProcessUtility's, and
 *		check the permission ourselves: a role that may not do it shall stop
 *		nothing.  Then core checks again, and raises the error.  The pause lasts
 *		for the command.
 *
 * A backend holds at most one pause, and remembers it in this file.  Whatever
 * ends it (the command's end, an error, the transaction's end, the process's)
 * gives it back.  Should the process be killed the server starts anew, with
 * nobody paused.
 *
 * DROP EXTENSION, also by DROP OWNED or CASCADE, is seen by the object-access
 * hook; whether the extension is really gone, or a savepoint was rolled back,
 * is looked up before the commit, and the commit callback ends the database's
 * subscriptions.  Subscriptions that are being made hold a lock on the
 * extension (database.c), so none is made after that.
 *
 * Locks: database_lock for pauses.  No lock is held while it waits but those
 * that the command has; none of these can be what a dispatcher waits for
 * longer than until it is terminated.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/tablespace.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "elsewhere.h"
#include "grants.h"
#include "security.h"
#include "shmem.h"
#include "subscription.h"

#define GRACE				(SD_SECOND / 2) /* for a batch that is under way */
#define PAUSE_TIMEOUT		(10 * SD_SECOND)
#define LOOK_AGAIN			100 /* ms; a wakeup may be for something else */
#define SENT_POLL			5	/* ms; nobody tells when all is sent */

/* The pause that this backend holds. */
typedef struct Pause
{
	SdDatabase *db;				/* NULL: none */
	uint32		generation;
	bool		until_end;		/* of the transaction: DROP DATABASE */
} Pause;

static Pause held = {NULL, 0, false};

/* What this transaction drops. */
static Oid	dropped_database = InvalidOid;
static Oid	dropped_extension = InvalidOid;
static bool extension_gone = false; /* known before the commit record */

static object_access_hook_type prev_object_access_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* ---- pauses ---- */

/* Ends the pause, if there is one.  Takes database_lock; cannot fail. */
static void
resume(void)
{
	SdDatabase *db = held.db;

	if (db == NULL)
		return;
	held.db = NULL;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	if (db->generation == held.generation)
		pg_atomic_fetch_sub_u32(&db->paused, 1);
	LWLockRelease(&sd_shared->database_lock);
	launcher_wake();
}

static void
resume_at_exit(int code, Datum arg)
{
	resume();
}

/*
 * Raises paused if the database has a slot; otherwise it has no dispatchers,
 * and gets none before somebody connects to it.
 */
static void
begin_pause(Oid dboid, bool until_end)
{
	static bool registered = false;

	Assert(held.db == NULL);
	if (!registered)
	{
		before_shmem_exit(resume_at_exit, 0);
		registered = true;
	}

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	for (int i = 0; i < SD_MAX_DATABASES; i++)
	{
		SdDatabase *db = &sd_shared->databases[i];

		if (db->dboid != dboid)
			continue;
		pg_atomic_fetch_add_u32(&db->paused, 1);
		held.db = db;
		held.generation = db->generation;
		held.until_end = until_end;
		break;
	}
	LWLockRelease(&sd_shared->database_lock);
}

/*
 * A process that has not connected yet may be waiting for the lock on the
 * database that our command has, so it cannot end by itself.
 */
static void
terminate_dispatchers(SdDatabase *db, bool also_busy)
{
	for (int i = 0; i < SD_PLACES; i++)
	{
		SdDispatcher *disp = &db->dispatchers[i];
		int			pid = database_dispatcher_pid(disp);

		if (pid != 0 &&
			(also_busy || pg_atomic_read_u32(&disp->state) == SD_WORKER_STARTING))
			kill(pid, SIGTERM);
	}
}

static bool
any_dispatcher(SdDatabase *db)
{
	for (int i = 0; i < SD_PLACES; i++)
		if (database_dispatcher_pid(&db->dispatchers[i]) != 0)
			return true;
	return false;
}

/*
 * Waits until no dispatcher is connected to the paused database.  If one does
 * not end, core says who is in the way.  Can be cancelled.
 */
static void
wait_until_gone(SdDatabase *db)
{
	TimestampTz begin = GetCurrentTimestamp();

	database_wake_all(db);
	ConditionVariablePrepareToSleep(&db->changed);
	while (any_dispatcher(db))
	{
		TimestampTz waited = GetCurrentTimestamp() - begin;

		if (waited > PAUSE_TIMEOUT)
			break;
		terminate_dispatchers(db, waited > GRACE);
		ConditionVariableTimedSleep(&db->changed, LOOK_AGAIN, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

static void
pause_database(Oid dboid, bool until_end)
{
	begin_pause(dboid, until_end);
	if (held.db != NULL)
		wait_until_gone(held.db);
}

/* ---- DROP ---- */

static uint64
unsent_events(SdDatabase *db)
{
	return pg_atomic_read_u64(&db->dispatchers[SD_BUS_PLACE].queue_events);
}

/* What the bus worker is about to send gets a moment to be sent. */
static void
wait_until_sent(SdDatabase *db)
{
	TimestampTz end = GetCurrentTimestamp() + GRACE;

	ConditionVariablePrepareToSleep(&db->changed);
	while (unsent_events(db) > 0 && pg_atomic_read_u32(&db->bus.state) == SD_BUS_CONNECTED &&
		   GetCurrentTimestamp() < end)
		ConditionVariableTimedSleep(&db->changed, SENT_POLL, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
}

/* Before the commit: who has dropped the extension can still roll back. */
static void
warn_of_unsent(uint64 n, const char *what)
{
	if (n > 0)
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
				 errmsg("%llu committed events have not been sent to Redis and will be lost with the %s",
						(unsigned long long) n, what)));
}

static void
drop_database(Oid dboid)
{
	SdDatabase *db = database_find(dboid);

	if (db != NULL)
		wait_until_sent(db);
	pause_database(dboid, true);
	if (held.db != NULL)
		warn_of_unsent(unsent_events(held.db), "database");
}

static void
drop_extension(void)
{
	SdDatabase *db = database_get(false, true);

	/* else they are still sent after the commit */
	if (db != NULL && pg_atomic_read_u32(&db->bus.state) == SD_BUS_WAITING)
		warn_of_unsent(unsent_events(db), "extension");
}

/*
 * Attaches to shared memory now, as that could fail after the commit.  A role's
 * grants on channels are dropped with it, those in this database.
 */
static void
object_dropped(Oid class, Oid object)
{
	if (class == DatabaseRelationId)
	{
		/* One's own database cannot be dropped; core says so next. */
		if (object == MyDatabaseId)
			return;
		shmem_attach();
		dropped_database = object;
		drop_database(object);
	}
	else if (class == ExtensionRelationId &&
			 object == get_extension_oid(SD_EXTENSION, true))
	{
		shmem_attach();
		dropped_extension = object;
		drop_extension();
	}
	else if (class == AuthIdRelationId)
		grants_role_dropped(object);
}

static void
on_object_access(ObjectAccessType access, Oid class, Oid object, int subid, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, class, object, subid, arg);
	if (access == OAT_FUNCTION_EXECUTE)
		security_check_function(object);
	else if (access == OAT_DROP && subid == 0 && IsUnderPostmaster)
		object_dropped(class, object);
}

/* ---- the end of the transaction ---- */

/*
 * While the transaction can still fail: find out what the commit will do.
 * Another extension of that name that was created since does not count.
 */
static void
before_commit(bool prepare)
{
	if (!OidIsValid(dropped_extension))
		return;
	extension_gone = get_extension_oid(SD_EXTENSION, true) != dropped_extension;
	if (extension_gone && prepare)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has dropped extension \"%s\"",
						SD_EXTENSION)));
}

/* After the commit record; nothing in here can fail. */
static void
after_commit(void)
{
	if (extension_gone)
	{
		/*
		 * Events that are queued now are left to the dispatchers: they find
		 * nobody to give them to, and end when the queues are empty.
		 */
		subscription_purge_database(MyDatabaseId);
		database_stop_dispatchers(MyDatabaseId);
	}
	if (OidIsValid(dropped_database))
	{
		SdDatabase *db = database_find(dropped_database);

		subscription_purge_database(dropped_database);
		if (db != NULL)
			bus_clear(db, true);
		database_release(dropped_database);
		elsewhere_forget(dropped_database);
	}
}

static void
forget_transaction(void)
{
	dropped_database = InvalidOid;
	dropped_extension = InvalidOid;
	extension_gone = false;
	/* SET TABLESPACE commits in its midst, and stays paused. */
	if (held.until_end)
		resume();
}

static void
on_transaction(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			before_commit(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			before_commit(true);
			break;
		case XACT_EVENT_COMMIT:
			after_commit();
			forget_transaction();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_transaction();
			break;
		default:
			break;
	}
}

/* ---- commands without a hook of their own ---- */

/* As core has it; superusers have every privilege. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
is_template(Oid dboid)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* The last option of that name that has a value, or NULL. */
static const char *
option_value(List *options, const char *name)
{
	const char *value = NULL;
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			value = defGetString(option);
	}
	return value;
}

/*
 * Each of the following returns the database that the command needs free of
 * sessions, or InvalidOid if there is none, or if core will refuse.
 */
static Oid
renamed_database(RenameStmt *stmt)
{
	Oid			dboid;

	if (stmt->renameType != OBJECT_DATABASE)
		return InvalidOid;
	dboid = get_database_oid(stmt->subname, true);
	if (!OidIsValid(dboid) || dboid == MyDatabaseId ||
		!pg_database_ownercheck(dboid, GetUserId()) || !may_create_databases() ||
		OidIsValid(get_database_oid(stmt->newname, true)))
		return InvalidOid;
	return dboid;
}

static Oid
moved_database(AlterDatabaseStmt *stmt, bool top_level)
{
	const char *tablespace = option_value(stmt->options, "tablespace");
	Oid			dboid;
	Oid			spcoid;

	if (tablespace == NULL || IsInTransactionBlock(top_level))
		return InvalidOid;
	dboid = get_database_oid(stmt->dbname, true);
	spcoid = get_tablespace_oid(tablespace, true);
	if (!OidIsValid(dboid) || !OidIsValid(spcoid) || dboid == MyDatabaseId ||
		!pg_database_ownercheck(dboid, GetUserId()) ||
		pg_tablespace_aclcheck(spcoid, GetUserId(), ACL_CREATE) != ACLCHECK_OK)
		return InvalidOid;
	return dboid;
}

static Oid
copied_database(CreatedbStmt *stmt, bool top_level)
{
	const char *template = option_value(stmt->options, "template");
	const char *owner = option_value(stmt->options, "owner");
	Oid			dboid;

	if (IsInTransactionBlock(top_level) || !may_create_databases())
		return InvalidOid;
	if (owner != NULL)
	{
		Oid			role = get_role_oid(owner, true);

		if (!OidIsValid(role) || !is_member_of_role(GetUserId(), role))
			return InvalidOid;
	}
	dboid = get_database_oid(template ? template : "template1", true);
	if (!OidIsValid(dboid) ||
		(!is_template(dboid) && !pg_database_ownercheck(dboid, GetUserId())) ||
		OidIsValid(get_database_oid(stmt->dbname, true)))
		return InvalidOid;
	return dboid;
}

static Oid
needed_free(Node *stmt, bool top_level)
{
	if (!IsUnderPostmaster || held.db != NULL)
		return InvalidOid;
	switch (nodeTag(stmt))
	{
		case T_RenameStmt:
			return renamed_database((RenameStmt *) stmt);
		case T_AlterDatabaseStmt:
			return moved_database((AlterDatabaseStmt *) stmt, top_level);
		case T_CreatedbStmt:
			return copied_database((CreatedbStmt *) stmt, top_level);
		default:
			return InvalidOid;
	}
}

static void
call_next(PlannedStmt *pstmt, const char *query, bool readonly_tree,
		  ProcessUtilityContext context, ParamListInfo params,
		  QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, query, readonly_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, readonly_tree, context, params, env, dest, qc);
}

/* Not inlined, for the compiler would suspect setjmp of clobbering dboid. */
static pg_noinline void
call_next_paused(Oid dboid,
				 PlannedStmt *pstmt, const char *query, bool readonly_tree,
				 ProcessUtilityContext context, ParamListInfo params,
				 QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	PG_TRY();
	{
		pause_database(dboid, false);
		call_next(pstmt, query, readonly_tree, context, params, env, dest, qc);
	}
	PG_CATCH();
	{
		resume();
		PG_RE_THROW();
	}
	PG_END_TRY();
	resume();
}

static void
on_utility(PlannedStmt *pstmt, const char *query, bool readonly_tree,
		   ProcessUtilityContext context, ParamListInfo params,
		   QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	Oid			dboid = needed_free(pstmt->utilityStmt, context == PROCESS_UTILITY_TOPLEVEL);

	security_check_utility(pstmt->utilityStmt);
	if (OidIsValid(dboid))
		call_next_paused(dboid, pstmt, query, readonly_tree, context, params, env, dest, qc);
	else
		call_next(pstmt, query, readonly_tree, context, params, env, dest, qc);
}

void
lifecycle_init(void)
{
	prev_object_access_hook = object_access_hook;
	object_access_hook = on_object_access;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = on_utility;
	RegisterXactCallback(on_transaction, NULL);
}
