/*-------------------------------------------------------------------------
 *
 * bus_listen.c
 *	  Which channels a dispatcher LISTENs on, and its markers.
 *
 * The channels are those of the registry that are this dispatcher's and that
 * subdispatch.listen_channels covers.  What others want is a number that rises
 * (listen_requests), also when grants change; what was done about it is
 * listen_done.
 *
 * When a dispatcher ends nobody LISTENs until the next one does, and what it
 * had received and not linked is gone.  Its successor therefore finds the
 * channels that are still marked as LISTENed on and tells their subscriptions
 * of a gap.  So it is when a replica was promoted: who NOTIFYs may be faster than
 * we LISTEN.  Channels that were made before that are marked (of_replica).
 *
 * wait_dispatched() needs to know that all earlier notifications are linked:
 * the dispatcher sends itself a marker, which comes back after them.
 *
 * Locks: registry_lock in shared mode, for short looks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "bus.h"
#include "bus_listen.h"
#include "grants.h"
#include "history.h"
#include "subscription.h"
#include "walk.h"

/* Channels looked up while registry_lock is held once. */
#define LOOKUPS_PER_LOCK	32

/* A channel by name, the key of the tables below. */
typedef struct Channel
{
	char		name[NAMEDATALEN];
	bool		lingers;		/* wanted only as long as there are places */
	bool		leaves;			/* to be UNLISTENed */
} Channel;

/* All of this is the process's own. */
static HTAB *listened = NULL;	/* of Channels: PostgreSQL delivers them */
static bool ever_synced = false;
static char *synced_setting = NULL; /* listen_channels as of the last sync */
static int	synced_limit = 0;
static bool refused_any = false;	/* for want of places, in the last sync */
static bool any_of_replica = false; /* channels, in the last sync */
static uint32 nfound = 0;		/* wanted and not listened to, in this sync */
static char marker_channel[NAMEDATALEN];
static bool marker_listened = false;
static uint32 marker_sent = 0;

/* ---- gaps ---- */

static bool
is_mine(const SdChannel *channel, int dispatcher)
{
	return channel->dboid == MyDatabaseId && channel->dispatcher == dispatcher && !channel->star;
}

/*
 * Something may be missing on the channel; dispatch_gaps() tells it.  Counts
 * and marks are atomics, so a shared lock is enough.
 */
static void
note_gap(SdChannel *channel)
{
	pg_atomic_fetch_or_u32(&channel->gaps, SD_GAP_ELSEWHERE);
	pg_atomic_fetch_add_u32(&channel->db->dispatchers[channel->dispatcher].gap_requests, 1);
}

/* The predecessor's LISTENs ended with it. */
static void
collect_orphan(SdWalk *walk, SdHashNode *node)
{
	SdChannel  *channel = (SdChannel *) node;

	if (is_mine(channel, *(int *) walk->arg) &&
		pg_atomic_exchange_u32(&channel->listening, 0) != 0)
		note_gap(channel);
}

static void
collect_loss(SdWalk *walk, SdHashNode *node)
{
	SdChannel  *channel = (SdChannel *) node;

	if (is_mine(channel, *(int *) walk->arg) &&
		pg_atomic_read_u32(&channel->listening) != 0)
		note_gap(channel);
}

/* Nobody LISTENed between the promotion and now; nor yet if it lingers. */
static void
collect_promoted(SdWalk *walk, SdHashNode *node)
{
	SdChannel  *channel = (SdChannel *) node;

	if (is_mine(channel, *(int *) walk->arg) && !channel_lingers(channel) &&
		pg_atomic_exchange_u32(&channel->of_replica, 0) != 0 &&
		pg_atomic_read_u32(&channel->listening) != 0)
		note_gap(channel);
}

static void
walk_channels(int dispatcher, void (*collect) (SdWalk *, SdHashNode *))
{
	SdWalk		walk = {0};

	walk.table = &sd_shared->channels;
	walk.row_size = sizeof(int);
	walk.collect = collect;
	walk.arg = &dispatcher;
	walk_run(&walk);
}

/* Something was lost, nobody knows on which channels. */
void
listen_lose_all(int dispatcher)
{
	walk_channels(dispatcher, collect_loss);
}

/* A notification of this channel was lost. */
void
listen_lose_one(const char *name)
{
	Size		len = strlen(name);
	SdChannel  *channel;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	channel = channel_lookup(MyDatabaseId, name, len, channel_hash(name, len));
	if (channel)
		note_gap(channel);
	LWLockRelease(&sd_shared->registry_lock);
}

/* ---- LISTEN and UNLISTEN ---- */

static HTAB *
make_channel_table(const char *name, MemoryContext context)
{
	HASHCTL		ctl = {.keysize = NAMEDATALEN, .entrysize = sizeof(Channel), .hcxt = context};

	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

typedef struct WantedWalk
{
	int			dispatcher;
	HTAB	   *wanted;
} WantedWalk;

static void
collect_wanted(SdWalk *walk, SdHashNode *node)
{
	SdChannel  *channel = (SdChannel *) node;
	WantedWalk *w = walk->arg;
	Channel    *row;

	if (!is_mine(channel, w->dispatcher) || channel->namelen >= NAMEDATALEN)
		return;
	row = walk_row(walk);
	if (row == NULL)
		return;
	memcpy(row->name, channel->name, channel->namelen + 1);
	row->lingers = channel_lingers(channel);
	any_of_replica |= pg_atomic_read_u32(&channel->of_replica) != 0;
}

/* No more than can be had are collected: there may be very many. */
static void
emit_wanted(SdWalk *walk, void *r)
{
	WantedWalk *w = walk->arg;
	Channel    *row = r;
	bool		is_new = hash_search(listened, row->name, HASH_FIND, NULL) == NULL;

	if ((is_new && row->lingers) || !notify_covers(row->name))
		return;
	if (is_new && nfound++ >= (uint32) subdispatch_max_listen_channels)
	{
		refused_any = true;
		return;
	}
	((Channel *) hash_search(w->wanted, row->name, HASH_ENTER, NULL))->lingers = row->lingers;
}

static HTAB *
find_wanted(int dispatcher)
{
	WantedWalk	w = {dispatcher, NULL};
	SdWalk		walk = {0};
	MemoryContext old = CurrentMemoryContext;

	/* Whether there are grants on a channel is in a table. */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(old);
	grants_refresh();
	w.wanted = make_channel_table("subdispatch channels wanted", CurrentMemoryContext);
	walk.table = &sd_shared->channels;
	walk.row_size = sizeof(Channel);
	walk.collect = collect_wanted;
	walk.emit = emit_wanted;
	walk.arg = &w;
	nfound = 0;
	if (subdispatch_listen_channels && subdispatch_listen_channels[0] != '\0')
		walk_run(&walk);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return w.wanted;
}

/* How many channels the database's dispatchers LISTEN on. */
static uint32
count_listening(SdDatabase *db)
{
	uint32		n = 0;

	for (int i = 0; i < subdispatch_dispatchers; i++)
		n += pg_atomic_read_u32(&db->dispatchers[i].nlistening);
	return n;
}

/*
 * Counts one more channel, unless that is more than max_listen_channels.  Two
 * dispatchers that do so at the same time may both be refused the last place,
 * never both get it.
 */
static bool
claim_place(SdDatabase *db, SdDispatcher *disp)
{
	pg_atomic_fetch_add_u32(&disp->nlistening, 1);
	if (count_listening(db) <= (uint32) subdispatch_max_listen_channels)
		return true;
	pg_atomic_fetch_sub_u32(&disp->nlistening, 1);
	return false;
}

/* How many channels with subscriptions are still to be LISTENed on. */
static uint32
count_asked(HTAB *wanted)
{
	HASH_SEQ_STATUS seq;
	Channel    *channel;
	uint32		n = 0;

	hash_seq_init(&seq, wanted);
	while ((channel = hash_seq_search(&seq)) != NULL)
		n += !channel->lingers && !hash_search(listened, channel->name, HASH_FIND, NULL);
	return n;
}

/*
 * Queues an UNLISTEN for each channel not wanted, for lingering ones as far as
 * others need their places, and for any beyond a lowered limit.
 */
static List *
plan_unlisten(SdDatabase *db, SdDispatcher *disp, HTAB *wanted)
{
	uint32		limit = (uint32) subdispatch_max_listen_channels;
	uint32		n = count_listening(db);
	uint32		asked = count_asked(wanted);
	List	   *names = NIL;
	HASH_SEQ_STATUS seq;
	Channel    *channel;

	for (int pass = 0; pass < 3; pass++)
	{
		hash_seq_init(&seq, listened);
		while ((channel = hash_seq_search(&seq)) != NULL)
		{
			Channel    *want = hash_search(wanted, channel->name, HASH_FIND, NULL);

			if (pass == 0)
				channel->leaves = false;
			if (channel->leaves ||
				!(pass == 0 ? want == NULL :
				  pass == 1 ? want->lingers && n + asked > limit : n > limit))
				continue;
			refused_any |= pass == 2;
			channel->leaves = true;
			n--;
			pg_atomic_fetch_sub_u32(&disp->nlistening, 1);
			names = lappend(names, pstrdup(channel->name));
		}
	}
	return names;
}

static List *
plan_listen(SdDatabase *db, SdDispatcher *disp, HTAB *wanted)
{
	List	   *names = NIL;
	HASH_SEQ_STATUS seq;
	Channel    *channel;

	hash_seq_init(&seq, wanted);
	while ((channel = hash_seq_search(&seq)) != NULL)
	{
		if (channel->lingers || hash_search(listened, channel->name, HASH_FIND, NULL))
			continue;
		if (claim_place(db, disp))
			names = lappend(names, pstrdup(channel->name));
		else
			refused_any = true;
	}
	return names;
}

/*
 * Carries the plan out.  PostgreSQL's list of channels changes when this
 * commits, and ours after it; an error before leaves both as they were.
 */
static void
change_channels(List *unlisten, List *listen, bool unlisten_marker)
{
	MemoryContext old = CurrentMemoryContext;
	ListCell   *lc;

	if (unlisten == NIL && listen == NIL && !unlisten_marker)
		return;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	foreach(lc, unlisten)
		Async_Unlisten(lfirst(lc));
	foreach(lc, listen)
		Async_Listen(lfirst(lc));
	if (unlisten_marker)
		Async_Unlisten(marker_channel);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);

	foreach(lc, unlisten)
		(void) hash_search(listened, lfirst(lc), HASH_REMOVE, NULL);
	foreach(lc, listen)
		(void) hash_search(listened, lfirst(lc), HASH_ENTER, NULL);
	if (unlisten_marker)
		marker_listened = false;
}

/* Tells in the registry whether each of these channels is LISTENed on. */
static void
mark_channels(List *names)
{
	for (int i = 0; i < list_length(names); i += LOOKUPS_PER_LOCK)
	{
		int			end = Min(i + LOOKUPS_PER_LOCK, list_length(names));

		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		for (int j = i; j < end; j++)
		{
			const char *name = list_nth(names, j);
			Size		len = strlen(name);
			SdChannel  *channel = channel_lookup(MyDatabaseId, name, len, channel_hash(name, len));

			if (channel)
				pg_atomic_write_u32(&channel->listening,
									hash_search(listened, name, HASH_FIND, NULL) ? 1 : 0);
		}
		LWLockRelease(&sd_shared->registry_lock);
	}
}

static List *
names_in(HTAB *table)
{
	List	   *names = NIL;
	HASH_SEQ_STATUS seq;
	Channel    *channel;

	hash_seq_init(&seq, table);
	while ((channel = hash_seq_search(&seq)) != NULL)
		names = lappend(names, channel->name);
	return names;
}

/* Places have become free, which others may have been refused: they look. */
static void
wake_others(SdDatabase *db, int dispatcher)
{
	for (int i = 0; i < subdispatch_dispatchers; i++)
		if (i != dispatcher)
			database_wake(db, i);
}

static void
sync_channels(SdDatabase *db, int dispatcher, uint32 request)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];
	HTAB	   *wanted;
	List	   *unlisten;
	List	   *listen;
	uint32		vacated = pg_atomic_read_u32(&disp->listen_vacated);

	any_of_replica = false;
	refused_any = false;
	pg_atomic_write_u32(&disp->listen_full, vacated);
	pg_memory_barrier();		/* whoever still saw it has changed the registry before */
	wanted = find_wanted(dispatcher);
	/* an earlier try may have ended by an error, with places claimed */
	pg_atomic_write_u32(&disp->nlistening, (uint32) hash_get_num_entries(listened));
	unlisten = plan_unlisten(db, disp, wanted);
	listen = plan_listen(db, disp, wanted);
	change_channels(unlisten, listen,
					marker_listened && pg_atomic_read_u32(&disp->nlistening) == 0);

	mark_channels(unlisten);
	mark_channels(names_in(wanted));
	if (any_of_replica)
		walk_channels(dispatcher, collect_promoted);
	if (list_length(unlisten) > list_length(listen))
		wake_others(db, dispatcher);
	pg_atomic_write_u32(&disp->listen_done, request);
	if (refused_any && count_listening(db) >= (uint32) subdispatch_max_listen_channels)
		pg_atomic_write_u32(&disp->listen_full, vacated + 1);
	ConditionVariableBroadcast(&db->changed);
	hash_destroy(wanted);
}

/* ---- markers ---- */

/*
 * Sends itself the number last asked for.  If there is nothing to LISTEN to,
 * nothing is under way, and the number is done at once.
 */
static void
answer_marker(SdDatabase *db, SdDispatcher *disp)
{
	uint32		number = pg_atomic_read_u32(&disp->marker_requests);
	MemoryContext old = CurrentMemoryContext;
	char		payload[16];

	if (number == pg_atomic_read_u32(&disp->marker_done))
		return;
	if (hash_get_num_entries(listened) == 0)
	{
		pg_atomic_write_u32(&disp->marker_done, number);
		ConditionVariableBroadcast(&db->changed);
		return;
	}
	if (number == marker_sent)
		return;					/* under way */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!marker_listened)
		Async_Listen(marker_channel);
	snprintf(payload, sizeof(payload), "%u", number);
	Async_Notify(marker_channel, payload);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	marker_listened = true;
	marker_sent = number;
	SetLatch(MyLatch);			/* it is there already */
}

/*
 * Is the notification a marker?  Then all that came before it is linked, and
 * the number in it is done.
 */
bool
listen_take_marker(SdDatabase *db, int dispatcher, int32 pid, const char *channel,
				   const char *payload)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];
	uint32		number;

	if (strcmp(channel, marker_channel) != 0)
		return false;
	if (pid != MyProcPid)
		return true;			/* anybody could send one */
	number = (uint32) strtoul(payload, NULL, 10);
	/* nor may a resolver of ours run ahead of what was asked for */
	if ((int32) (number - marker_sent) <= 0 &&
		(int32) (number - pg_atomic_read_u32(&disp->marker_done)) > 0)
		pg_atomic_write_u32(&disp->marker_done, number);
	ConditionVariableBroadcast(&db->changed);
	return true;
}

/* ---- the dispatcher's interface ---- */

/* There is nothing to wait for. */
static void
sync_nothing(SdDatabase *db, SdDispatcher *disp, uint32 request)
{
	uint32		number = pg_atomic_read_u32(&disp->marker_requests);

	if (request == pg_atomic_read_u32(&disp->listen_done) &&
		number == pg_atomic_read_u32(&disp->marker_done))
		return;
	pg_atomic_write_u32(&disp->listen_done, request);
	pg_atomic_write_u32(&disp->marker_done, number);
	ConditionVariableBroadcast(&db->changed);
}

/* Outside of a transaction.  May raise errors; then it is to be called again. */
void
notify_sync(SdDatabase *db, int dispatcher)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];
	uint32		request = pg_atomic_read_u32(&disp->listen_requests);
	char	   *setting = subdispatch_listen_channels ? subdispatch_listen_channels : "";

	/*
	 * Read before the registry is: what is asked for later comes again.  Nobody
	 * can NOTIFY on a replica; when it is promoted, the first sync is made.
	 */
	pg_read_barrier();
	if (RecoveryInProgress())
	{
		sync_nothing(db, disp, request);
		return;
	}
	if (!ever_synced || request != pg_atomic_read_u32(&disp->listen_done) ||
		(refused_any && count_listening(db) < (uint32) subdispatch_max_listen_channels) ||
		synced_limit != subdispatch_max_listen_channels ||
		strcmp(synced_setting, setting) != 0)
	{
		sync_channels(db, dispatcher, request);
		if (synced_setting)
			pfree(synced_setting);
		synced_setting = MemoryContextStrdup(TopMemoryContext, setting);
		synced_limit = subdispatch_max_listen_channels;
		ever_synced = true;
	}
	answer_marker(db, disp);
}

/*
 * Once, when the process has connected.  Whoever was here before is gone, and
 * its LISTENs with it.
 */
void
notify_init(SdDatabase *db, int dispatcher)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];

	receive_init();
	snprintf(marker_channel, sizeof(marker_channel), "subdispatch.marker.%u.%d",
			 MyDatabaseId, dispatcher);
	listened = make_channel_table("subdispatch channels listened on", TopMemoryContext);
	pg_atomic_write_u32(&disp->nlistening, 0);
	marker_sent = pg_atomic_read_u32(&disp->marker_done);
	walk_channels(dispatcher, collect_orphan);
}
