/*-------------------------------------------------------------------------
 *
 * audience.c
 *	  Which streams an event concerns.
 *
 * The streams of the event's channel and of '*' are visited in pieces, pinned,
 * with no lock held.  The pins of those whose resolver is to be called are kept until
 * audience_release(), so that what is put off can refer to them; they are
 * process-wide and also given back when the process ends.
 *
 * Locks: registry_lock shared, for a piece of a channel's streams at a time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#include "audience.h"
#include "dispatcher.h"
#include "growing.h"
#include "registry.h"
#include "respond.h"
#include "visible.h"

#define STREAMS_PER_LOCK	64
#define FETCH_AHEAD			4

static SdStream **pins = NULL;
static int	npins = 0;
static int	pins_size = 0;
static SdChannel *pinned_channel = NULL;
static uint64 last_shown = 0;	/* id of an event */

/* ---- pins ---- */

static void
unpin_channel(void)
{
	if (pinned_channel)
		channel_unref(pinned_channel);
	pinned_channel = NULL;
}

void
audience_release(void)
{
	stream_flush();
	unpin_channel();
	while (npins > 0)
		stream_unpin(pins[--npins]);
}

/* Makes room for n more pins, so that pinning cannot fail under a lock. */
static void
reserve_pins(int n)
{
	if (npins + n > pins_size)
		pins = growing_enlarge(pins, &pins_size, npins + n + STREAMS_PER_LOCK, sizeof(SdStream *),
							   TopMemoryContext);
}

/*
 * Only streams whose resolver is to be called are referred to later: the event's
 * work from "work" on, in the order of the visits.  A batch visits so many others
 * that their pins would fill the memory.
 */
static void
unpin_visited(const DispatchEvent *e, int first, int work)
{
	int			n = npins;

	npins = first;
	for (int i = first; i < n; i++)
		if (work < e->nwork && e->work[work] == pins[i])
		{
			pins[npins++] = pins[i];
			work++;
		}
		else
			stream_unpin(pins[i]);
	Assert(work == e->nwork);
}

/* ---- which streams an event concerns ---- */

/* One set of streams of a channel. */
typedef struct Place
{
	enum
	{
		PLACE_BUCKET, PLACE_PLAIN, PLACE_FILTERED
	}			kind;
	/* a bucket's */
	char	   *path;
	int			pathlen;
	uint64		value_hash;
} Place;

/*
 * Copies the channel's index paths into memory that was allocated for "room"
 * of them; returns how many there are, which may be more.  The channel is
 * pinned.
 */
static int
copy_paths(SdChannel *channel, Place *places, int room)
{
	int			n = 0;
	dlist_iter	iter;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	dlist_foreach(iter, &channel->paths)
	{
		SdIndexPath *p = dlist_container(SdIndexPath, node, iter.cur);

		if (n < room)
		{
			memcpy(places[n].path, p->path, p->pathlen);
			places[n].pathlen = p->pathlen;
		}
		n++;
	}
	LWLockRelease(&sd_shared->registry_lock);
	return n;
}

/* All index paths of the channel, and how many. */
static Place *
get_paths(SdChannel *channel, int *n)
{
	static Place *places = NULL;
	static int	room = 0;

	while ((*n = copy_paths(channel, places, room)) > room)
	{
		int			more = *n + 16;

		if (places == NULL)
			places = MemoryContextAlloc(TopMemoryContext, sizeof(Place) * more);
		else
			places = repalloc_huge(places, sizeof(Place) * more);
		while (room < more)
		{
			places[room].kind = PLACE_BUCKET;
			places[room].path = MemoryContextAlloc(TopMemoryContext, FILTER_INDEX_PATH_MAX);
			room++;
		}
	}
	return places;
}

/* Caller holds registry_lock, and lends *alone. */
static SdStreamVec *
place_streams(SdChannel *channel, const Place *place, SdStreamVec *alone)
{
	switch (place->kind)
	{
		case PLACE_PLAIN:
			return &channel->plain;
		case PLACE_FILTERED:
			return &channel->filtered;
		default:
			return index_find(channel, place->path, place->pathlen, place->value_hash, alone);
	}
}

/* Visits the streams of one place. */
static void
visit_place(DispatchEvent *e, SdChannel *channel, const Place *place, AudienceVisitor visit)
{
	uint32		at = PG_UINT32_MAX;

	do
	{
		int			first = npins;
		int			work = e->nwork;
		SdStreamVec alone;

		reserve_pins(STREAMS_PER_LOCK);
		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		npins += registry_pin_streams(place_streams(channel, place, &alone), &at,
									  pins + npins, STREAMS_PER_LOCK);
		LWLockRelease(&sd_shared->registry_lock);

		e->peers = pins + first;
		e->npeers = npins - first;
		for (int i = first; i < npins; i++)
		{
			if (i + FETCH_AHEAD < npins)
				stream_fetch_parts(pins[i + FETCH_AHEAD], e->ev->source == SD_SOURCE_CHANGE);
			visit(e, pins[i]);
		}
		e->npeers = 0;
		stream_flush();
		unpin_visited(e, first, work);
		CHECK_FOR_INTERRUPTS();
	} while (at > 0);
}

/*
 * A TRUNCATE has no row: filters have nothing to look at and let it pass.  The
 * same goes for an event of which nobody knows what is in it.
 */
bool
audience_ignores_filters(const DispatchEvent *e)
{
	if (e->given_up)
		return true;
	return e->ev->source == SD_SOURCE_CHANGE && e->ev->op == SD_OP_TRUNCATE;
}

/*
 * A row that leaves somebody's sight is told to him whatever his filter asks
 * for.  That can happen to those with a security context and, where the table
 * has row-level security, to all but superusers.  Counts are read without a
 * lock: a stream that comes meanwhile can wait for the next event.
 */
static bool
may_leave_somebody(DispatchEvent *e, SdChannel *channel)
{
	if (!visible_may_leave(e))
		return false;
	return channel->ncontext > 0 ||
		(channel->nordinary > 0 && visible_table_has_policies(e));
}

static void
visit_channel(DispatchEvent *e, const char *name, Size len, uint32 hash, AudienceVisitor visit)
{
	SdChannel  *channel;
	Place	   *places;
	Place		plain = {.kind = PLACE_PLAIN};
	Place		filtered = {.kind = PLACE_FILTERED};
	int			npaths;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	channel = channel_lookup(dispatch_db->dboid, name, len, hash);
	if (channel && channel->nstreams == 0)
		channel = NULL;			/* it lingers */
	if (channel)
		pg_atomic_fetch_add_u32(&channel->refs, 1);
	LWLockRelease(&sd_shared->registry_lock);
	if (channel == NULL)
		return;

	pinned_channel = channel;
	if (e->first_time)
		pg_atomic_fetch_add_u64(&channel->events, 1);
	dispatch_need_data(e);
	if (audience_ignores_filters(e) || may_leave_somebody(e, channel))
		visit_place(e, channel, &filtered, visit);
	else
	{
		places = get_paths(channel, &npaths);
		for (int i = 0; i < npaths; i++)
			if (filter_event_key(&e->data->root, places[i].path, places[i].pathlen,
								 &places[i].value_hash))
				visit_place(e, channel, &places[i], visit);
	}
	visit_place(e, channel, &plain, visit);
	unpin_channel();
}

uint64
audience_last_shown(void)
{
	return last_shown;
}

void
audience_visit(DispatchEvent *e, AudienceVisitor visit)
{
	uint32		star = channel_hash(SD_STAR, 1);

	/* Ids rise; a batch that is done again, or in parts, shows some again. */
	e->first_time = e->id > last_shown;
	last_shown = Max(last_shown, e->id);

	if (e->ev->own_channel)
		visit_channel(e, EVENT_CHANNEL(e->ev), e->ev->channel_len, e->ev->channel_hash, visit);
	if (channel_dispatcher(star) == dispatch_me && pg_atomic_read_u32(&dispatch_db->nstar) > 0)
		visit_channel(e, SD_STAR, 1, star, visit);
}
