/*-------------------------------------------------------------------------
 *
 * subdispatch.c
 *	  Where PostgreSQL comes in: the library is loaded.
 *
 * All of the extension lives in shared memory that is asked for at server
 * start and in background workers that the postmaster starts, so the library
 * must be preloaded.  In a session that loads it later nothing is set up but
 * the settings, and every SQL function raises sd_require_preload()'s error.
 *
 * Takes no locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"

#include "bus.h"
#include "dispatcher.h"
#include "grants.h"
#include "reader.h"
#include "shmem.h"
#include "subdispatch.h"
#include "subscription.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	guc_init();
	if (!process_shared_preload_libraries_in_progress)
		return;

	shmem_init();
	publish_init();
	grants_init();
	subscription_init();
	reader_init();
	lifecycle_init();
	launcher_register();
}

/*
 * The hint for who may not see where the configuration lies, and the one for
 * who may: it has the line as it would have to be.
 */
static int
preload_hint(void)
{
	const char *others = shared_preload_libraries_string;

	if (ConfigFileName == NULL ||
		!has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_SETTINGS))
		return errhint("Add the line \"shared_preload_libraries = 'subdispatch'\" to "
					   "postgresql.conf and restart the server.");

	return errhint("Add the line \"shared_preload_libraries = '%s%ssubdispatch'\" to \"%s\" "
				   "and restart the server.",
				   others ? others : "", others && others[0] != '\0' ? "," : "",
				   ConfigFileName);
}

/*
 * Raises 55000 unless the library was preloaded; sd_shared is there if and
 * only if it was.
 */
void
sd_require_preload(void)
{
	if (likely(sd_shared != NULL))
		return;

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subdispatch must be loaded via shared_preload_libraries"),
			 preload_hint()));
}
