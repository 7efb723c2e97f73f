/*-------------------------------------------------------------------------
 *
 * visibility.c
 *	  Whether an identity may still subscribe.
 *
 * Rights are looked up anew for every event, in PostgreSQL's own caches, which
 * are invalidated when GRANT, REVOKE, ALTER ROLE and DROP ROLE commit.
 *
 * What it sees of an event is visible.c's.
 *
 * No locks are taken.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"

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
