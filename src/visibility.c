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
 * The answer for one identity, event and channel, kept for the event's other
 * streams.  An event is shown to streams of its own channel and of '*'.
 */
typedef struct Known
{
	uint64		identity;
	uint64		event_id;
	bool		star;
	SdEnd		end;
} Known;

#define KNOWN_SIZE	256

static SdEnd
look_up(SdStream *stream)
{
	SdIdentity *identity = stream->identity;

	if (!security_role_exists(identity->role) || !security_role_exists(identity->owner))
		return SD_END_ROLE_GONE;
	if (!security_may_become(identity->owner, identity->role))
		return SD_END_RUN_AS_REVOKED;
	if (!grants_allow(identity->role, stream->channel->name, GRANT_SUBSCRIBE, identity->context))
		return SD_END_CHANNEL_REVOKED;
	return SD_END_NONE;
}

SdEnd
dispatch_stream_end(SdStream *stream, uint64 event_id)
{
	static Known known[KNOWN_SIZE];
	bool		star = stream->channel->star;
	uint64		identity = stream->identity->serial;
	Known	   *k = &known[(identity * 2 + star) % KNOWN_SIZE];

	if (k->identity != identity || k->event_id != event_id || k->star != star)
	{
		k->end = look_up(stream);
		k->identity = identity;
		k->event_id = event_id;
		k->star = star;
	}
	return k->end;
}
