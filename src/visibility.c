/*-------------------------------------------------------------------------
 *
 * visibility.c
 *	  Whether an identity may see an event.
 *
 * Rights are looked up anew for every event, in PostgreSQL's own caches, which
 * are invalidated when GRANT, REVOKE, ALTER ROLE and DROP ROLE commit.
 *
 * Row images are shown only to whom PostgreSQL would show every row of the
 * table: a role with SELECT on the whole table and USAGE on its schema, to
 * which no row-level security applies.  Whoever has less sees nothing of them.
 *
 * No locks are taken.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

#include "dispatch.h"
#include "security.h"

/* The answer for one identity and event, kept for the event's other streams. */
typedef struct Known
{
	uint64		identity;
	uint64		event_id;
	SdEnd		end;
} Known;

#define KNOWN_SIZE	256

SdEnd
dispatch_identity_end(SdIdentity *identity, uint64 event_id)
{
	static Known known[KNOWN_SIZE];
	Known	   *k = &known[identity->serial % KNOWN_SIZE];

	if (k->identity != identity->serial || k->event_id != event_id)
	{
		k->identity = identity->serial;
		k->event_id = event_id;
		if (!security_role_exists(identity->role) || !security_role_exists(identity->owner))
			k->end = SD_END_ROLE_GONE;
		else if (!security_may_become(identity->owner, identity->role))
			k->end = SD_END_RUN_AS_REVOKED;
		else
			k->end = SD_END_NONE;
	}
	return k->end;
}

static bool
sees_whole_table(Oid role, Oid relid)
{
	Oid			namespace = get_rel_namespace(relid);

	if (superuser_arg(role))
		return true;
	return OidIsValid(namespace) &&
		pg_namespace_aclcheck(namespace, role, ACL_USAGE) == ACLCHECK_OK &&
		pg_class_aclcheck(relid, role, ACL_SELECT) == ACLCHECK_OK &&
		check_enable_rls(relid, role, true) != RLS_ENABLED;
}

bool
dispatch_may_see(SdIdentity *identity, const SdEvent *ev)
{
	return ev->source != SD_SOURCE_CHANGE || sees_whole_table(identity->role, ev->relid);
}
