/*-------------------------------------------------------------------------
 *
 * views.c
 *	  The functions behind the views subscriptions, consumers and channels.
 *
 * Each shows the current database's rows, those that the current role owns;
 * members of pg_monitor see all of them.
 *
 * There may be a million subscriptions.  So they are given row by row, as they
 * are asked for: the view calls its function in a target list, where PostgreSQL
 * does not collect all rows before it looks at the first, as it does in FROM.
 * A row is an expanded record, out of which a column is taken at once; out of a
 * tuple, it would take a look at all those before it.
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
#include "utils/datum.h"
#include "utils/expandedrecord.h"
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

/* Makes a walk of what the current role may see; it is to be given a collect. */
static void
init_walk(SdWalk *walk, const SdHash *table, Size row_size)
{
	memset(walk, 0, sizeof(SdWalk));
	walk->table = table;
	walk->row_size = row_size;
	walk->all = views_is_monitor();
	walk->user = GetUserId();
}

/* ---- subscriptions ---- */

/* What lasts from the first row to the last. */
typedef struct Subscriptions
{
	SdWalk		walk;
	ExpandedRecordHeader *record;	/* the row; what it refers to is the walk's */
	const char *id;				/* NULL: all */
	uint64		last_serial;	/* none that was made later */
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
	row->id = walk_copy_text(walk, sub_id(sub), sub->id_len);
	row->channel = walk_copy_text(walk, stream_channel(stream)->name, stream_channel(stream)->namelen);
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
		row->connection_id = walk_copy_text(walk, sub_connection(sub)->name, sub_connection(sub)->namelen);
	if (sub_consumer(sub))
		row->consumer = walk_copy_text(walk, sub_consumer(sub)->name, sub_consumer(sub)->namelen);
	row->response_key = walk_copy_string(walk, stream_response_key(stream));
	row->created_at = sub->created_at;
	row->last_polled_at = last_polled(sub);
	row->rate_limit = stream_rate(stream) ? stream_rate(stream)->rate : 0;
	row->burst = stream_rate(stream) ? stream_rate(stream)->burst : 0;
	row->max_pending = sub->max_pending;
	row->overflow = sub->overflow;
}

/*
 * A statement may subscribe for each row that it sees here; those it makes are
 * left out, or it might not come to an end.
 */
static void
collect_subscription(SdWalk *walk, SdHashNode *node)
{
	SdSubscription *sub = (SdSubscription *) node;
	Subscriptions *subscriptions = walk->arg;
	SubscriptionRow *row;

	if (!walk_visible(walk, sub->dboid, subscription_owner(sub), MyDatabaseId) ||
		sub->serial > subscriptions->last_serial ||
		(subscriptions->id && strcmp(sub_id(sub), subscriptions->id) != 0))
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

static void
put_copied(SdRow *row, SdWalk *walk, SdCopied at)
{
	row_put(row, PointerGetDatum(walk_copied(walk, at)), at == 0);
}

/* A jsonb column that is {} where nothing was given. */
static void
put_object(SdRow *row, Subscriptions *s, SdCopied at)
{
	row_put(row, at == 0 ? s->empty : PointerGetDatum(walk_copied(&s->walk, at)), false);
}

static void
put_subscription(SdRow *row, Subscriptions *s, SubscriptionRow *r)
{
	SdWalk	   *walk = &s->walk;

	row->n = 0;
	put_copied(row, walk, r->id);
	row_put_oid(row, r->owner);
	row_put_oid(row, r->role);
	put_copied(row, walk, r->channel);
	row_put_oid(row, r->resolver);
	put_object(row, s, r->variables);
	put_object(row, s, r->filter);
	put_object(row, s, r->context);
	put_copied(row, walk, r->operation_name);
	put_copied(row, walk, r->operation_id);
	put_copied(row, walk, r->connection_id);
	put_copied(row, walk, r->consumer);
	row_put_string(row, state_name(r->end, r->paused, r->resuming));
	row_put_int8(row, r->pending);
	row_put_int8(row, r->delivered);
	row_put_int8(row, r->dropped);
	row_put_int8(row, r->rate_limited);
	row_put_int8(row, r->errors);
	row_put_time(row, r->created_at);
	row_put_time(row, r->last_polled_at);
	put_object(row, s, r->settings);
	put_copied(row, walk, r->response_key);
	row_put(row, Float8GetDatum(r->rate_limit), r->rate_limit == 0);
	row_put(row, Int32GetDatum(r->burst), r->rate_limit == 0);
	row_put(row, Int32GetDatum((int32) r->max_pending), false);
	row_put_string(row, overflow_names[r->overflow]);
	row_put_time(row, r->ended_at);
	row_put_string(row, r->end > SD_END_COMPLETE ? stream_end_message(r->end) : NULL);
}

/* In the memory of all calls.  The caller begins the walk. */
static Subscriptions *
make_subscriptions(FunctionCallInfo fcinfo)
{
	Subscriptions *s = palloc0(sizeof(Subscriptions));
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	s->record = make_expanded_record_from_tupdesc(BlessTupleDesc(desc), CurrentMemoryContext);
	s->last_serial = pg_atomic_read_u64(&sd_shared->serials);
	s->empty = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	init_walk(&s->walk, &sd_shared->subscriptions, sizeof(SubscriptionRow));
	s->walk.fetch = offsetof(SdSubscription, stream);
	s->walk.collect = collect_subscription;
	s->walk.arg = s;
	return s;
}

/* Valid until the next one, as all that is made for a row. */
static Datum
make_record(Subscriptions *s, const SdRow *row)
{
	ExpandedRecordHeader *record = s->record;

	Assert(row->n == record->nfields);
	memcpy(record->dvalues, row->values, row->n * sizeof(Datum));
	memcpy(record->dnulls, row->nulls, row->n * sizeof(bool));
	record->flags |= ER_FLAG_DVALUES_VALID;
	record->flat_size = 0;		/* not known of this one */
	return ExpandedRecordGetRODatum(record);
}

static Datum
next_subscription(FunctionCallInfo fcinfo)
{
	FuncCallContext *funcctx = SRF_PERCALL_SETUP();
	Subscriptions *s = funcctx->user_fctx;
	SubscriptionRow *r = walk_next(&s->walk);
	SdRow		row;

	if (r == NULL)
		SRF_RETURN_DONE(funcctx);
	put_subscription(&row, s, r);
	SRF_RETURN_NEXT(funcctx, make_record(s, &row));
}

/* All that the caller may see, or the one of his own whose id is the argument. */
static Datum
give_subscriptions(FunctionCallInfo fcinfo, bool one)
{
	if (SRF_IS_FIRSTCALL())
	{
		FuncCallContext *funcctx;
		MemoryContext old;
		Subscriptions *s;

		sd_require_preload();
		funcctx = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		funcctx->user_fctx = s = make_subscriptions(fcinfo);
		if (one)
		{
			s->walk.all = false;
			s->id = arg_key(fcinfo, 0, "id");
			walk_begin_look_up(&s->walk, subscription_hash(s->walk.user, s->id));
		}
		else
			walk_begin(&s->walk);
		MemoryContextSwitchTo(old);
	}
	return next_subscription(fcinfo);
}

Datum
subdispatch_list_subscriptions(PG_FUNCTION_ARGS)
{
	return give_subscriptions(fcinfo, false);
}

Datum
subdispatch_subscription(PG_FUNCTION_ARGS)
{
	return give_subscriptions(fcinfo, true);
}

/* ---- consumers ---- */

typedef struct ConsumerRow
{
	SdConsumer *consumer;		/* the key; only ever compared */
	Datum		name;
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
	row->copied_name = walk_copy_text(walk, consumer->name, consumer->namelen);
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
	MemoryContext old = MemoryContextSwitchTo(consumers->context);

	*entry = *row;
	entry->name = datumCopy(PointerGetDatum(walk_copied(walk, row->copied_name)), false, -1);
	MemoryContextSwitchTo(old);
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

	row_put(&row, c->name, false);
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

	init_walk(&walk, &sd_shared->consumers, sizeof(ConsumerRow));
	walk.collect = collect_consumer;
	walk.emit = emit_consumer;
	walk.arg = &consumers;
	walk_run(&walk);

	if (hash_get_num_entries(consumers.table) > 0)
	{
		init_walk(&walk, &sd_shared->subscriptions, sizeof(int));
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
	row->name = walk_copy_text(walk, channel->name, channel->namelen);
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
	put_copied(&row, walk, c->name);
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
	init_walk(&walk, &sd_shared->streams, sizeof(OwnChannel));
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
	init_walk(&walk, &sd_shared->channels, sizeof(ChannelRow));
	walk.collect = collect_channel;
	walk.emit = emit_channel;
	walk.arg = &channels;
	walk_run(&walk);
	return (Datum) 0;
}
