/*-------------------------------------------------------------------------
 *
 * visibility.c
 *	  Whether an identity may still subscribe to a channel.
 *
 * Rights are looked up anew for every event, in PostgreSQL's own caches, which
 * are invalidated when GRANT, REVOKE, ALTER ROLE and DROP ROLE commit, and in
 * that of grants.c.
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
#include "grants.h"
#include "security.h"

/*
 * What is known of a role for one event and channel, kept for the event's other
 * streams.  An event is shown to streams of its own channel and of '*'.
 */
typedef struct Known
{
	Oid			owner;
	Oid			role;
	uint64		event_id;
	bool		star;
	bool		ask_context;	/* it depends on the identity's context */
	SdEnd		end;
} Known;

#define KNOWN_SIZE	256

/*
 * A grant that is satisfied without a context is satisfied with any, so most
 * often one answer holds for all identities of a role.
 */
static void
look_up(SdStream *stream, Known *k)
{
	k->end = SD_END_NONE;
	k->ask_context = false;
	if (!security_role_exists(stream->role) || !security_role_exists(stream->owner))
		k->end = SD_END_ROLE_GONE;
	else if (!security_may_become(stream->owner, stream->role))
		k->end = SD_END_RUN_AS_REVOKED;
	else
		k->ask_context = !grants_allow(stream->role, stream_channel(stream)->name, GRANT_SUBSCRIBE, NULL);
}

SdEnd
dispatch_stream_end(SdStream *stream, uint64 event_id)
{
	static Known known[KNOWN_SIZE];
	bool		star = stream_channel(stream)->star;
	Known	   *k = &known[(stream->role * 2 + star) % KNOWN_SIZE];

	if (k->event_id != event_id || k->role != stream->role || k->owner != stream->owner ||
		k->star != star)
	{
		look_up(stream, k);
		k->event_id = event_id;
		k->owner = stream->owner;
		k->role = stream->role;
		k->star = star;
	}
	if (k->ask_context &&
		!grants_allow(stream->role, stream_channel(stream)->name, GRANT_SUBSCRIBE,
					  stream_identity(stream)->context))
		return SD_END_CHANNEL_REVOKED;
	return k->end;
}
