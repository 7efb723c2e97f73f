/*-------------------------------------------------------------------------
 *
 * replay_drop.c
 *	  What recovery drops.
 *
 * On a replica no command is run that lifecycle.c could see.  DROP DATABASE
 * reaches our workers as any session: recovery tells them to end.  The launcher,
 * about to replace one, finds no such database, and frees what it had.  A
 * DROP EXTENSION tells nobody: dispatcher 0 looks for the extension whenever it
 * keeps house.
 *
 * Locks: those of what it calls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/rel.h"

#include "replay.h"
#include "shmem.h"
#include "subscription.h"

void
replay_check_extension(void)
{
	static Oid	known = InvalidOid;
	MemoryContext old = CurrentMemoryContext;
	Oid			now;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	now = get_extension_oid(SD_EXTENSION, true);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	if (OidIsValid(now) && (now == known || !OidIsValid(known)))
	{
		known = now;
		return;
	}
	/* gone, or another one by now */
	known = now;
	subscription_purge_database(MyDatabaseId);
	database_stop_dispatchers(MyDatabaseId);
}

/*
 * A scan, since a process without a database has only some of the catalog
 * caches.
 */
bool
replay_database_exists(Oid dboid)
{
	MemoryContext old = CurrentMemoryContext;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = ((Form_pg_database) GETSTRUCT(tuple))->oid == dboid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return found;
}
