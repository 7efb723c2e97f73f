/*-------------------------------------------------------------------------
 *
 * views.c
 *	  The functions behind the views subscriptions, consumers and channels.
 *
 * Each shows the current database's rows, those that the current role owns;
 * members of pg_monitor see all of them.
 *
 * Locks: see walk.c; streams' and consumers' reading locks in shared mode
 * inside of these.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/hsearch.h"

#include "ack.h"
#include "resume.h"
#include "sqlfuncs.h"
#include "subscription.h"
#include "views.h"
#include "walk.h"

PG_FUNCTION_INFO_V1(subdispatch_list_subscriptions);
PG_FUNCTION_INFO_V1(subdispatch_subscription);
PG_FUNCTION_INFO_V1(subdispatch_list_consumers);
PG_FUNCTION_INFO_V1(subdispatch_list_channels);

/* Begins a walk whose rows go to the function's result. */
static void
begin_walk(SdWalk *walk, const SdHash *table, Size row_size)
{
	memset(walk, 0, sizeof(SdWalk));
	walk->table = table;
	walk->row_size = row_size;
	walk->all = views_is_monitor();
	walk->user = GetUserId();
}

/* ---- subscriptions ---- */

typedef struct Subscriptions
{
	ReturnSetInfo *rsinfo;
	const char *id;				/* NULL: all */
	Datum		empty;			/* {} */
} Subscriptions;

typedef struct SubscriptionRow
{
	Oid			owner;
	Oid			role;
	Oid			resolver;
	SdCopied	id;
	SdCopied	channel;
	SdCopied	variables;
	SdCopied	filter;
	SdCopied	context;
	SdCopied	settings;
	SdCopied	operation_name;
	SdCopied	operation_id;
	SdCopied	connection_id;
	SdCopied	consumer;
	SdCopied	response_key;
	SdEnd		end;
	bool		resuming;
	bool		paused;
	uint64		pending;
	uint64		delivered;
	uint64		dropped;
	uint64		rate_limited;
	uint64		errors;
	TimestampTz created_at;
	TimestampTz last_polled_at;
	TimestampTz ended_at;
	double		rate_limit;
	int			burst;
	uint32		max_pending;
	SdOverflow	overflow;
} SubscriptionRow;

static const char *const overflow_names[] =
{
	[SD_DROP_OLDEST] = "drop_oldest",
	[SD_DROP_NEWEST] = "drop_newest",
	[SD_OVERFLOW_ERROR] = "error",
};

/* Polling the consumer counts as polling each of its subscriptions. */
static TimestampTz
last_polled(SdSubscription *sub)
{
	TimestampTz t = (TimestampTz) pg_atomic_read_u64(&sub->last_polled);

	if (sub_consumer(sub))
		t = Max(t, (TimestampTz) pg_atomic_read_u64(&sub_consumer(sub)->last_polled));
	return t;
}

/* What the stream's lock guards.  Takes it. */
static void
collect_progress(SubscriptionRow *row, SdSubscription *sub)
{
	SdStream   *stream = sub_stream(sub);

	LWLockAcquire(&stream->lock, LW_SHARED);
	row->end = sub->end;
	row->resuming = resume_running(sub);
	row->paused = sub->paused;
	row->ended_at = sub->end == SD_END_NONE ? 0 : sub->ended_at;
	row->pending = stream_pending(stream, sub);
	row->dropped = stream_dropped(stream, sub);
	row->delivered = sub->delivered;
	row->rate_limited = stream_rate_limited(sub_stream(sub), sub);
	row->errors = sub->errors;
	LWLockRelease(&stream->lock);
}

/* What subscribe() was given; the locks of the walk are enough. */
static void
collect_definition(SdWalk *walk, SubscriptionRow *row, SdSubscription *sub)
{
	SdStream   *stream = sub_stream(sub);
	SdIdentity *identity = stream_identity(stream);

	row->owner = subscription_owner(sub);
	row->role = identity->role;
	row->resolver = stream_resolver(stream);
	row->id = walk_copy_string(walk, sub_id(sub));
	row->channel = walk_copy(walk, stream_channel(stream)->name, stream_channel(stream)->namelen + 1);
	row->variables = walk_copy_jsonb(walk, stream_variables(stream));
	if (sub->variables != 0)
		row->variables = walk_copy_jsonb(walk, sub->strings + sub->variables);
	row->filter = walk_copy_jsonb(walk, stream_filter_json(stream));
	row->context = walk_copy_jsonb(walk, identity->context);
	row->settings = walk_copy_jsonb(walk, identity->settings);
	row->operation_id = walk_copy_text(walk, sub->strings + sub->operation_id,
									   sub->operation_id_len);
	if (sub->operation_name != 0)
		row->operation_name = walk_copy_string(walk, sub->strings + sub->operation_name);
	if (sub_connection(sub))
		row->connection_id = walk_copy(walk, sub_connection(sub)->name, sub_connection(sub)->namelen + 1);
	if (sub_consumer(sub))
		row->consumer = walk_copy(walk, sub_consumer(sub)->name, sub_consumer(sub)->namelen + 1);
	row->response_key = walk_copy_string(walk, stream_response_key(stream));
	row->created_at = sub->created_at;
	row->last_polled_at = last_polled(sub);
	row->rate_limit = stream_rate(stream) ? stream_rate(stream)->rate : 0;
	row->burst = stream_rate(stream) ? stream_rate(stream)->burst : 0;
	row->max_pending = sub->max_pending;
	row->overflow = sub->overflow;
}

static void
collect_subscription(SdWalk *walk, SdHashNode *node)
{
	SdSubscription *sub = (SdSubscription *) node;
	const char *id = ((Subscriptions *) walk->arg)->id;
	SubscriptionRow *row;

	if (!walk_visible(walk, sub->dboid, subscription_owner(sub), MyDatabaseId) ||
		(id && strcmp(sub->strings, id) != 0))
		return;
	row = walk_row(walk);
	if (row == NULL)
		return;
	collect_definition(walk, row, sub);
	collect_progress(row, sub);
}

static const char *
state_name(SdEnd end, bool paused, bool resuming)
{
	switch (end)
	{
		case SD_END_NONE:
			return paused ? "paused" : resuming ? "resuming" : "active";
		case SD_END_COMPLETE:
			return "complete";
		default:
			return "error";
	}
}

/* A jsonb column that is {} where nothing was given. */
static void
put_object(SdRow *row, Jsonb *jb, Datum empty)
{
	row_put(row, jb ? JsonbPGetDatum(jb) : empty, false);
}

static void
emit_subscription(SdWalk *walk, void *r)
{
	SubscriptionRow *s = r;
	Subscriptions *subscriptions = walk->arg;
	Datum		empty = subscriptions->empty;
	SdRow		row;

	row.n = 0;
	row_put_string(&row, walk_copied(walk, s->id));
	row_put_oid(&row, s->owner);
	row_put_oid(&row, s->role);
	row_put_string(&row, walk_copied(walk, s->channel));
	row_put_oid(&row, s->resolver);
	put_object(&row, walk_copied(walk, s->variables), empty);
	put_object(&row, walk_copied(walk, s->filter), empty);
	put_object(&row, walk_copied(walk, s->context), empty);
	row_put_string(&row, walk_copied(walk, s->operation_name));
	row_put_string(&row, walk_copied(walk, s->operation_id));
	row_put_string(&row, walk_copied(walk, s->connection_id));
	row_put_string(&row, walk_copied(walk, s->consumer));
	row_put_string(&row, state_name(s->end, s->paused, s->resuming));
	row_put_int8(&row, s->pending);
	row_put_int8(&row, s->delivered);
	row_put_int8(&row, s->dropped);
	row_put_int8(&row, s->rate_limited);
	row_put_int8(&row, s->errors);
	row_put_time(&row, s->created_at);
	row_put_time(&row, s->last_polled_at);
	put_object(&row, walk_copied(walk, s->settings), empty);
	row_put_string(&row, walk_copied(walk, s->response_key));
	row_put(&row, Float8GetDatum(s->rate_limit), s->rate_limit == 0);
	row_put(&row, Int32GetDatum(s->burst), s->rate_limit == 0);
	row_put(&row, Int32GetDatum((int32) s->max_pending), false);
	row_put_string(&row, overflow_names[s->overflow]);
	row_put_time(&row, s->ended_at);
	row_put_string(&row, s->end > SD_END_COMPLETE ? stream_end_message(s->end) : NULL);
	row_store(subscriptions->rsinfo, &row);
}

static void
begin_subscriptions(FunctionCallInfo fcinfo, SdWalk *walk, Subscriptions *subscriptions)
{
	InitMaterializedSRF(fcinfo, 0);
	subscriptions->rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	subscriptions->empty = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	begin_walk(walk, &sd_shared->subscriptions, sizeof(SubscriptionRow));
	walk->fetch = offsetof(SdSubscription, stream);
	walk->collect = collect_subscription;
	walk->emit = emit_subscription;
	walk->arg = subscriptions;
}

Datum
subdispatch_list_subscriptions(PG_FUNCTION_ARGS)
{
	SdWalk		walk;
	Subscriptions subscriptions = {0};

	sd_require_preload();
	begin_subscriptions(fcinfo, &walk, &subscriptions);
	walk_run(&walk);
	return (Datum) 0;
}

/* One of the caller's own, found by its id. */
Datum
subdispatch_subscription(PG_FUNCTION_ARGS)
{
	SdWalk		walk;
	Subscriptions subscriptions = {0};

	sd_require_preload();
	subscriptions.id = arg_key(fcinfo, 0, "id");
	begin_subscriptions(fcinfo, &walk, &subscriptions);
	walk.all = false;
	walk_look_up(&walk, subscription_hash(GetUserId(), subscriptions.id));
	return (Datum) 0;
}

/* ---- consumers ---- */

typedef struct ConsumerRow
{
	SdConsumer *consumer;		/* the key; only ever compared */
	char	   *name;			/* palloc'd */
	SdCopied	copied_name;
	Oid			owner;
	uint32		nsubscriptions;
	uint64		pending;
	TimestampTz pending_since;
	TimestampTz last_polled_at;
	int			waiting_pid;
	uint64		batch;			/* outstanding; 0: none */
	uint64		outstanding;	/* responses in it */
} ConsumerRow;

typedef struct Consumers
{
	HTAB	   *table;			/* of ConsumerRows */
	MemoryContext context;		/* of their names */
} Consumers;

static void
collect_consumer(SdWalk *walk, SdHashNode *node)
{
	SdConsumer *consumer = (SdConsumer *) node;
	ConsumerRow *row;

	if (!walk_visible(walk, consumer->dboid, consumer->owner, MyDatabaseId))
		return;
	row = walk_row(walk);
	if (row == NULL)
		return;
	row->consumer = consumer;
	row->copied_name = walk_copy(walk, consumer->name, consumer->namelen + 1);
	row->owner = consumer->owner;
	row->nsubscriptions = consumer->nsubscriptions;
	row->pending_since = (TimestampTz) pg_atomic_read_u64(&consumer->pending_since);
	row->last_polled_at = (TimestampTz) pg_atomic_read_u64(&consumer->last_polled);
	ack_show(consumer, &row->batch, &row->outstanding);
}

static void
emit_consumer(SdWalk *walk, void *r)
{
	ConsumerRow *row = r;
	Consumers  *consumers = walk->arg;
	ConsumerRow *entry = hash_search(consumers->table, &row->consumer, HASH_ENTER, NULL);

	*entry = *row;
	entry->name = MemoryContextStrdup(consumers->context, walk_copied(walk, row->copied_name));
}

/* Adds a subscription's pending to its consumer's; finding allocates nothing. */
static void
collect_pending(SdWalk *walk, SdHashNode *node)
{
	SdSubscription *sub = (SdSubscription *) node;
	Consumers  *consumers = walk->arg;
	ConsumerRow *entry;
	SdConsumer *consumer = sub_consumer(sub);

	if (consumer == NULL ||
		!walk_visible(walk, sub->dboid, subscription_owner(sub), MyDatabaseId))
		return;
	entry = hash_search(consumers->table, &consumer, HASH_FIND, NULL);
	if (entry == NULL)
		return;
	LWLockAcquire(&sub_stream(sub)->lock, LW_SHARED);
	entry->pending += stream_pending(sub_stream(sub), sub);
	LWLockRelease(&sub_stream(sub)->lock);
}

/* Who waits for which consumer: read without a lock, as of any moment. */
static void
find_waiting(Consumers *consumers)
{
	int			n = Min(sd_shared->nslots, (int) ProcGlobal->allProcCount);

	for (int i = 0; i < n; i++)
	{
		void	   *waiting_on = sd_shared->slots[i].waiting_on;
		ConsumerRow *entry;

		if (waiting_on == NULL)
			continue;
		entry = hash_search(consumers->table, &waiting_on, HASH_FIND, NULL);
		if (entry && entry->waiting_pid == 0)
			entry->waiting_pid = ProcGlobal->allProcs[i].pid;
	}
}

static void
store_consumer(ReturnSetInfo *rsinfo, ConsumerRow *c)
{
	SdRow			row = {0};

	row_put_string(&row, c->name);
	row_put_oid(&row, c->owner);
	row_put_int8(&row, c->nsubscriptions);
	row_put_int8(&row, c->pending);
	row_put_time(&row, c->pending > 0 ? c->pending_since : 0);
	row_put_time(&row, c->last_polled_at);
	row_put(&row, Int32GetDatum(c->waiting_pid), c->waiting_pid == 0);
	row_put(&row, Int64GetDatum((int64) c->batch), c->batch == 0);
	row_put_int8(&row, c->outstanding);
	row_store(rsinfo, &row);
}

Datum
subdispatch_list_consumers(PG_FUNCTION_ARGS)
{
	HASHCTL		ctl = {.keysize = sizeof(SdConsumer *), .entrysize = sizeof(ConsumerRow)};
	Consumers	consumers;
	SdWalk		walk;
	HASH_SEQ_STATUS seq;
	ConsumerRow *row;

	sd_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	ctl.hcxt = CurrentMemoryContext;
	consumers.context = CurrentMemoryContext;
	consumers.table = hash_create("subdispatch consumers", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	begin_walk(&walk, &sd_shared->consumers, sizeof(ConsumerRow));
	walk.collect = collect_consumer;
	walk.emit = emit_consumer;
	walk.arg = &consumers;
	walk_run(&walk);

	if (hash_get_num_entries(consumers.table) > 0)
	{
		begin_walk(&walk, &sd_shared->subscriptions, sizeof(int));
		walk.fetch = offsetof(SdSubscription, stream);
		walk.collect = collect_pending;
		walk.arg = &consumers;
		walk_run(&walk);
		find_waiting(&consumers);
	}

	hash_seq_init(&seq, consumers.table);
	while ((row = hash_seq_search(&seq)) != NULL)
		store_consumer((ReturnSetInfo *) fcinfo->resultinfo, row);
	return (Datum) 0;
}

/* ---- channels ---- */

/* What a role has on a channel. */
typedef struct OwnChannel
{
	SdChannel  *channel;		/* the key; only ever compared */
	uint64		subscriptions;
	uint64		streams;
} OwnChannel;

typedef struct ChannelRow
{
	SdChannel  *channel;
	SdCopied	name;
	uint64		subscriptions;
	uint64		streams;
	uint64		events;
	bool		listening;
	int			dispatcher;
} ChannelRow;

typedef struct Channels
{
	HTAB	   *own;			/* of OwnChannels; NULL: all channels are shown */
	ReturnSetInfo *rsinfo;
} Channels;

static void
collect_own_stream(SdWalk *walk, SdHashNode *node)
{
	SdStream   *stream = (SdStream *) node;
	OwnChannel *row;

	if (!walk_visible(walk, stream_identity(stream)->dboid, stream_identity(stream)->owner, MyDatabaseId))
		return;
	row = walk_row(walk);
	if (row == NULL)
		return;
	row->channel = stream_channel(stream);
	row->subscriptions = stream->nsubscriptions;
}

static void
emit_own_stream(SdWalk *walk, void *r)
{
	OwnChannel *row = r;
	Channels   *channels = walk->arg;
	bool		found;
	OwnChannel *entry = hash_search(channels->own, &row->channel, HASH_ENTER, &found);

	if (!found)
		entry->subscriptions = entry->streams = 0;
	entry->subscriptions += row->subscriptions;
	entry->streams++;
}

static void
collect_channel(SdWalk *walk, SdHashNode *node)
{
	SdChannel  *channel = (SdChannel *) node;
	ChannelRow *row;

	if (channel->dboid != MyDatabaseId || channel->nsubscriptions == 0)
		return;
	row = walk_row(walk);
	if (row == NULL)
		return;
	row->channel = channel;
	row->name = walk_copy(walk, channel->name, channel->namelen + 1);
	row->subscriptions = channel->nsubscriptions;
	row->streams = channel->nstreams;
	row->events = pg_atomic_read_u64(&channel->events);
	row->listening = pg_atomic_read_u32(&channel->listening) != 0;
	row->dispatcher = channel->dispatcher;
}

/*
 * Others than pg_monitor get their own numbers; not that of events, which
 * would tell them of events that they may not see.
 */
static void
emit_channel(SdWalk *walk, void *r)
{
	ChannelRow *c = r;
	Channels   *channels = walk->arg;
	SdRow			row = {0};

	if (channels->own)
	{
		OwnChannel *own = hash_search(channels->own, &c->channel, HASH_FIND, NULL);

		if (own == NULL)
			return;
		c->subscriptions = own->subscriptions;
		c->streams = own->streams;
	}
	row_put_string(&row, walk_copied(walk, c->name));
	row_put_int8(&row, c->subscriptions);
	row_put_int8(&row, c->streams);
	row_put(&row, Int64GetDatum((int64) c->events), channels->own != NULL);
	row_put(&row, BoolGetDatum(c->listening), false);
	row_put(&row, Int32GetDatum(c->dispatcher), false);
	row_store(channels->rsinfo, &row);
}

Datum
subdispatch_list_channels(PG_FUNCTION_ARGS)
{
	HASHCTL		ctl = {.keysize = sizeof(SdChannel *), .entrysize = sizeof(OwnChannel)};
	Channels	channels = {NULL, (ReturnSetInfo *) fcinfo->resultinfo};
	SdWalk		walk;

	sd_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	begin_walk(&walk, &sd_shared->streams, sizeof(OwnChannel));
	if (!walk.all)
	{
		ctl.hcxt = CurrentMemoryContext;
		channels.own = hash_create("subdispatch channels", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		walk.collect = collect_own_stream;
		walk.emit = emit_own_stream;
		walk.arg = &channels;
		walk_run(&walk);
	}
	begin_walk(&walk, &sd_shared->channels, sizeof(ChannelRow));
	walk.collect = collect_channel;
	walk.emit = emit_channel;
	walk.arg = &channels;
	walk_run(&walk);
	return (Datum) 0;
}
