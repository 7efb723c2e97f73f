/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  The registry: who subscribed to what, and the ends of subscriptions.
 *
 * Channels, streams, identities, consumers, connections and quotas are found
 * in hash tables under registry_lock; subscriptions by (database, owner, id)
 * under one of the id locks, which alone keeps a reader's subscription from
 * going away.  Whatever makes or removes a subscription holds registry_lock in
 * exclusive mode, then the id lock, then the stream's lock.
 *
 * An object is "live" while live subscriptions need it, which is when it
 * stands in its hash table; its memory stays until the last reference is gone
 * (ended subscriptions and a dispatcher's pins hold streams).
 *
 * A subscription ends in two steps.  stream_end_locked() makes the stream do
 * without it and decides its last message; structural_end() takes it out of
 * everything that counts.  It is then kept by its id, and in its consumer's
 * list of ended ones, until the last message is read or nobody comes for it.
 *
 * No function here raises an error while it holds a lock; allocations under
 * locks are sd_alloc()'s, which returns NULL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "registry.h"
#include "response.h"

/* ---- finding ---- */

typedef struct IdKey
{
	Oid			dboid;
	Oid			owner;
	const char *id;
} IdKey;

static uint32
id_hash(const IdKey *key)
{
	return sd_hash_bytes(key->id, strlen(key->id), key->dboid ^ (key->owner * 31));
}

static bool
id_match(const SdHashNode *node, const void *k)
{
	const SdSubscription *sub = (const SdSubscription *) node;
	const IdKey *key = k;

	return sub->dboid == key->dboid && sub->owner == key->owner &&
		strcmp(sub->strings, key->id) == 0;
}

static LWLock *
id_lock(uint32 hash)
{
	return &sd_shared->id_locks[hash % SD_ID_PARTITIONS];
}

SdSubscription *
subscription_lookup(Oid owner, const char *id, LWLock **lock)
{
	IdKey		key = {MyDatabaseId, owner, id};
	uint32		hash = id_hash(&key);
	SdSubscription *sub;

	*lock = id_lock(hash);
	LWLockAcquire(*lock, LW_SHARED);
	sub = (SdSubscription *) sd_hash_find(&sd_shared->subscriptions, hash, id_match, &key);
	if (sub == NULL)
	{
		LWLockRelease(*lock);
		*lock = NULL;
	}
	return sub;
}

/*
 * The same for callers that hold registry_lock exclusive, so that the
 * subscription stays when the id lock is gone.
 */
static SdSubscription *
find_exclusive(Oid dboid, Oid owner, const char *id)
{
	IdKey		key = {dboid, owner, id};

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	return (SdSubscription *) sd_hash_find(&sd_shared->subscriptions, id_hash(&key),
										   id_match, &key);
}

/* ---- the end of a subscription ---- */

static void
remove_link(SdLink *link)
{
	SdConsumer *consumer = link->consumer;

	dlist_delete(&link->stream_node);
	if (consumer)
	{
		dlist_delete(&link->consumer_node);
		SpinLockAcquire(&consumer->mutex);
		if (link->ready)
			dlist_delete(&link->ready_node);
		SpinLockRelease(&consumer->mutex);
	}
	sd_free(link);
}

/*
 * Takes it out of everything that counts live subscriptions.  Caller holds
 * registry_lock exclusive.
 */
static void
structural_end(SdSubscription *sub)
{
	SdStream   *stream = sub->stream;
	SdLink	   *link = sub->link;
	SdDatabase *db = stream->db;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(!sub->structurally_ended);

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (sub->end != SD_END_NONE)
		dlist_delete(&sub->strict_node);	/* from stream->ending */
	else
		stream_leave(stream, sub);
	dlist_delete(&sub->node);
	sub->link = NULL;
	sub->structurally_ended = true;
	if (--link->nsubscriptions == 0)
		remove_link(link);
	LWLockRelease(&stream->lock);

	pg_atomic_fetch_sub_u32(&sd_shared->nsubscriptions, 1);
	pg_atomic_fetch_sub_u32(&db->nsubscriptions, 1);
	pg_atomic_write_u64(&db->last_needed, GetCurrentTimestamp());
	registry_drop_quota(sub->user_quota);
	registry_drop_quota(sub->role_quota);
	sub->user_quota = sub->role_quota = NULL;
	if (sub->connection)
		sub->connection->nlive--;
	if (sub->consumer)
		sub->consumer->nsubscriptions--;
	registry_leave_stream(stream);
}

/* Its last message is to be read: tells its consumer, and whoever waits. */
static void
announce_end(SdSubscription *sub)
{
	SdConsumer *consumer = sub->consumer;

	stats_add(&sub->stream->db->stats, SD_STAT_SUBSCRIPTIONS_ENDED, 1);
	if (sub->end == SD_END_IDLE || sub->end == SD_END_LIFETIME)
		stats_add(&sub->stream->db->stats, SD_STAT_SUBSCRIPTIONS_EXPIRED, 1);
	if (consumer)
	{
		dlist_push_tail(&consumer->ended, &sub->node);
		pg_atomic_fetch_add_u32(&consumer->nended, 1);
		pg_atomic_fetch_add_u64(&consumer->version, 1);
		sd_wake(consumer);
	}
	sd_wake(sub->stream);
}

/* Ends it with a last message.  Caller holds registry_lock exclusive. */
static void
end_with_message(SdSubscription *sub, SdEnd end)
{
	SdStream   *stream = sub->stream;

	if (sub->structurally_ended)
		return;
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	stream_end_locked(stream, sub, end);
	LWLockRelease(&stream->lock);
	structural_end(sub);
	announce_end(sub);
}

/* Removes it for good.  Caller holds registry_lock exclusive. */
static void
destroy(SdSubscription *sub)
{
	SdStream   *stream = sub->stream;
	LWLock	   *lock = id_lock(sub->hnode.hash);

	if (!sub->structurally_ended)
		structural_end(sub);
	else if (sub->consumer)
	{
		dlist_delete(&sub->node);
		pg_atomic_fetch_sub_u32(&sub->consumer->nended, 1);
	}
	if (sub->connection)
	{
		dlist_delete(&sub->connection_node);
		registry_drop_connection(sub->connection);
	}
	LWLockAcquire(lock, LW_EXCLUSIVE);
	sd_hash_remove(&sd_shared->subscriptions, &sub->hnode);
	LWLockRelease(lock);

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	stream_leave(stream, sub);
	pg_atomic_fetch_add_u64(&stream->version, 1);
	LWLockRelease(&stream->lock);
	sd_wake(stream);
	if (sub->consumer)
	{
		pg_atomic_fetch_add_u64(&sub->consumer->version, 1);
		sd_wake(sub->consumer);
	}
	stream_unpin(stream);
	sd_free(sub->variables);
	sd_free(sub);
}

static void
lock_registry(void)
{
	shmem_attach();
	LWLockAcquire(&sd_shared->registry_lock, LW_EXCLUSIVE);
}

static void
unlock_registry(void)
{
	LWLockRelease(&sd_shared->registry_lock);
}

void
subscription_finish_ends(SdStream *stream)
{
	lock_registry();
	for (;;)
	{
		SdSubscription *sub = NULL;

		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
		if (!dlist_is_empty(&stream->ending))
			sub = dlist_head_element(SdSubscription, strict_node, &stream->ending);
		LWLockRelease(&stream->lock);
		if (sub == NULL)
			break;
		structural_end(sub);
		announce_end(sub);
	}
	unlock_registry();
}

/* One live subscription of the stream, or NULL.  Registry held exclusive. */
static SdSubscription *
any_of_stream(SdStream *stream)
{
	dlist_iter	iter;
	SdSubscription *sub = NULL;

	LWLockAcquire(&stream->lock, LW_SHARED);
	dlist_foreach(iter, &stream->links)
	{
		SdLink	   *link = dlist_container(SdLink, stream_node, iter.cur);

		if (!dlist_is_empty(&link->behind))
			sub = dlist_head_element(SdSubscription, node, &link->behind);
		else if (!dlist_is_empty(&link->current))
			sub = dlist_head_element(SdSubscription, node, &link->current);
		if (sub)
			break;
	}
	LWLockRelease(&stream->lock);
	return sub;
}

#define ENDS_PER_LOCK	32		/* keeps the lock's hold time short */

void
subscription_end_stream(SdStream *stream, SdEnd end)
{
	SdSubscription *sub;

	do
	{
		lock_registry();
		for (int i = 0; i < ENDS_PER_LOCK && (sub = any_of_stream(stream)) != NULL; i++)
			end_with_message(sub, end);
		unlock_registry();
	} while (sub != NULL);
}

/* ---- making one ---- */

/* Strings that every subscription carries: offsets into sub->strings. */
typedef struct Strings
{
	StringInfoData buf;
	int			operation_id;
	int			operation_json;
	int			operation_json_len;
	int			operation_name;
} Strings;

static void *
grow_palloc(void *old, size_t size)
{
	return old ? repalloc(old, size) : palloc(size);
}

static void
make_strings(const SdSubscribe *what, Strings *s)
{
	RespBuf		json = {.grow = grow_palloc};

	initStringInfo(&s->buf);
	appendBinaryStringInfo(&s->buf, what->id, strlen(what->id) + 1);
	s->operation_id = s->buf.len;
	appendBinaryStringInfo(&s->buf, what->operation_id, strlen(what->operation_id) + 1);
	if (!response_escape(&json, what->operation_id))
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	s->operation_json = s->buf.len;
	s->operation_json_len = json.len;
	appendBinaryStringInfo(&s->buf, json.data, json.len);
	s->operation_name = 0;
	if (what->operation_name)
	{
		s->operation_name = s->buf.len;
		appendBinaryStringInfo(&s->buf, what->operation_name, strlen(what->operation_name) + 1);
	}
}

static SdSubscription *
make_subscription(const SdSubscribe *what, const Strings *s)
{
	SdSubscription *sub = sd_alloc(SD_MEM_SUBSCRIPTION,
								   offsetof(SdSubscription, strings) + s->buf.len);
	TimestampTz now = GetCurrentTimestamp();

	if (sub == NULL)
		return NULL;
	sub->dboid = MyDatabaseId;
	sub->owner = what->owner;
	sub->overflow = what->overflow;
	sub->max_pending = what->max_pending;
	sub->max_pending_bytes = what->max_pending_bytes;
	sub->created_at = now;
	sub->serial = pg_atomic_add_fetch_u64(&sd_shared->serials, 1);
	pg_atomic_init_u64(&sub->last_polled, now);
	pg_atomic_init_u64(&sub->seen_version, 0);
	sub->id_len = strlen(what->id);
	sub->operation_id = s->operation_id;
	sub->operation_json = s->operation_json;
	sub->operation_json_len = s->operation_json_len;
	sub->operation_name = s->operation_name;
	memcpy(sub->strings, s->buf.data, s->buf.len);
	return sub;
}

/* The stream's link for the consumer; makes one.  NULL: no memory. */
static SdLink *
get_link(SdStream *stream, SdConsumer *consumer)
{
	SdLink	   *link;
	dlist_iter	iter;

	dlist_foreach(iter, &stream->links)
	{
		link = dlist_container(SdLink, stream_node, iter.cur);
		if (link->consumer == consumer)
			return link;
	}
	link = sd_alloc(SD_MEM_SUBSCRIPTION, sizeof(SdLink));
	if (link == NULL)
		return NULL;
	link->stream = stream;
	link->consumer = consumer;
	dlist_init(&link->behind);
	dlist_init(&link->current);
	dlist_push_tail(&stream->links, &link->stream_node);
	if (consumer)
		dlist_push_tail(&consumer->links, &link->consumer_node);
	return link;
}

/*
 * Puts a new subscription into its stream.  False when there is no memory for
 * the link.
 */
static bool
enter_stream(SdStream *stream, SdSubscription *sub, SdConsumer *consumer)
{
	SdLink	   *link;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	link = get_link(stream, consumer);
	if (link)
	{
		link->nsubscriptions++;
		sub->link = link;
		stream_attach(stream, sub);
		dlist_push_tail(&link->current, &sub->node);
		pg_atomic_write_u64(&sub->seen_version, pg_atomic_read_u64(&stream->version));
	}
	LWLockRelease(&stream->lock);
	return link != NULL;
}

typedef enum CreateResult
{
	CREATED,
	NO_MEMORY,
	ID_IN_USE,
	TOO_MANY,					/* max_subscriptions */
	TOO_MANY_CONNECTION,
	TOO_MANY_USER,
	TOO_MANY_ROLE
} CreateResult;

/*
 * Everything that must be there before the subscription is; each is made if
 * there is none.  On failure what was made stays for registry_undo().
 */
typedef struct Parts
{
	SdStream   *stream;
	SdConsumer *consumer;
	bool		consumer_is_new;
	SdConnection *connection;
	SdQuota    *user_quota;
	SdQuota    *role_quota;
} Parts;

static CreateResult
get_parts(const SdSubscribe *what, SdDatabase *db, Parts *p)
{
	p->stream = registry_get_stream(what, db);
	if (p->stream == NULL)
		return NO_MEMORY;
	if (what->consumer)
	{
		p->consumer = registry_get_consumer(what->owner, what->consumer, &p->consumer_is_new);
		if (p->consumer == NULL)
			return NO_MEMORY;
	}
	if (what->connection_id)
	{
		p->connection = registry_get_connection(what->owner, what->connection_id);
		if (p->connection == NULL)
			return NO_MEMORY;
		if (p->connection->nlive >= subdispatch_max_subscriptions_per_connection)
			return TOO_MANY_CONNECTION;
	}
	if (!registry_get_quotas(what, &p->user_quota, &p->role_quota))
		return NO_MEMORY;
	if (p->user_quota && p->user_quota->n > subdispatch_max_subscriptions_per_user)
		return TOO_MANY_USER;
	if (p->role_quota && subdispatch_max_subscriptions_per_role > 0 &&
		p->role_quota->n > subdispatch_max_subscriptions_per_role)
		return TOO_MANY_ROLE;
	return CREATED;
}

static void
undo_parts(Parts *p)
{
	registry_drop_quota(p->user_quota);
	registry_drop_quota(p->role_quota);
	if (p->connection)
		registry_drop_connection(p->connection);
	if (p->consumer && p->consumer_is_new)
		registry_drop_consumer(p->consumer);
	if (p->stream)
		registry_leave_stream(p->stream);
}

/* Caller holds registry_lock exclusive; sub is not yet anywhere. */
static CreateResult
create_locked(const SdSubscribe *what, SdDatabase *db, SdSubscription *sub)
{
	Parts		parts = {0};
	IdKey		key = {MyDatabaseId, what->owner, what->id};
	uint32		hash = id_hash(&key);
	SdSubscription *old = find_exclusive(key.dboid, key.owner, key.id);
	CreateResult result;

	if (old && !old->structurally_ended)
		return ID_IN_USE;
	if (pg_atomic_read_u32(&sd_shared->nsubscriptions) >= (uint32) subdispatch_max_subscriptions)
		return TOO_MANY;
	result = get_parts(what, db, &parts);
	sub->stream = parts.stream; /* the dispatcher may look at it from here on */
	if (result == CREATED && !enter_stream(parts.stream, sub, parts.consumer))
		result = NO_MEMORY;
	if (result != CREATED)
	{
		undo_parts(&parts);
		return result;
	}

	if (old)
		destroy(old);
	stream_pin(parts.stream);
	sub->consumer = parts.consumer;
	sub->connection = parts.connection;
	sub->user_quota = parts.user_quota;
	sub->role_quota = parts.role_quota;
	if (sub->consumer)
		sub->consumer->nsubscriptions++;
	if (sub->connection)
	{
		sub->connection->nlive++;
		dlist_push_tail(&sub->connection->subscriptions, &sub->connection_node);
	}
	pg_atomic_fetch_add_u32(&sd_shared->nsubscriptions, 1);
	pg_atomic_fetch_add_u32(&db->nsubscriptions, 1);

	LWLockAcquire(id_lock(hash), LW_EXCLUSIVE);
	sd_hash_insert(&sd_shared->subscriptions, &sub->hnode, hash);
	LWLockRelease(id_lock(hash));
	return CREATED;
}

static void
report(CreateResult result, const SdSubscribe *what)
{
	switch (result)
	{
		case CREATED:
			return;
		case NO_MEMORY:
			sd_out_of_shared_memory();
			break;
		case ID_IN_USE:
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("subscription \"%s\" already exists", what->id)));
			break;
		case TOO_MANY:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many subscriptions"),
					 errdetail("The server has its %d subscriptions.", subdispatch_max_subscriptions),
					 errhint("Increase subdispatch.max_subscriptions.")));
			break;
		case TOO_MANY_CONNECTION:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many subscriptions for connection \"%s\"", what->connection_id),
					 errdetail("It has its %d subscriptions.",
							   subdispatch_max_subscriptions_per_connection),
					 errhint("Increase subdispatch.max_subscriptions_per_connection.")));
			break;
		case TOO_MANY_USER:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many subscriptions for this user_id"),
					 errdetail("It has its %d subscriptions.",
							   subdispatch_max_subscriptions_per_user),
					 errhint("Increase subdispatch.max_subscriptions_per_user.")));
			break;
		case TOO_MANY_ROLE:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many subscriptions for role \"%s\"",
							GetUserNameFromId(what->role, true)),
					 errdetail("It has its %d subscriptions.",
							   subdispatch_max_subscriptions_per_role),
					 errhint("Increase subdispatch.max_subscriptions_per_role.")));
	}
}

static void remember(const char *id, Oid owner, uint64 serial);
static void reserve_memory_to_remember(void);

uint64
subscription_create(const SdSubscribe *what)
{
	SdDatabase *db = database_get(true, false);
	Strings		strings;
	SdSubscription *sub;
	CreateResult result;
	uint64		serial;

	shmem_attach();
	reserve_memory_to_remember();
	make_strings(what, &strings);
	sub = make_subscription(what, &strings);
	if (sub == NULL)
		sd_out_of_shared_memory();
	serial = sub->serial;
	if (!OidIsValid(what->resolver) && JB_ROOT_COUNT(what->variables) > 0)
	{
		sub->variables = sd_dup(SD_MEM_SUBSCRIPTION, what->variables, VARSIZE(what->variables));
		if (sub->variables == NULL)
		{
			sd_free(sub);
			sd_out_of_shared_memory();
		}
	}

	lock_registry();
	result = create_locked(what, db, sub);
	unlock_registry();
	if (result != CREATED)
	{
		sd_free(sub->variables);
		sd_free(sub);
		report(result, what);
	}
	remember(what->id, what->owner, serial);
	stats_add(&db->stats, SD_STAT_SUBSCRIPTIONS_CREATED, 1);
	return serial;
}

/* ---- ending by request ---- */

/* serial 0: whichever has that id.  Ended ones count as gone, and go. */
static bool
remove_one(Oid dboid, Oid owner, const char *id, uint64 serial, bool only_ended)
{
	SdSubscription *sub;
	bool		live = false;

	lock_registry();
	sub = find_exclusive(dboid, owner, id);
	if (sub && (serial == 0 || sub->serial == serial) &&
		(!only_ended || sub->structurally_ended))
	{
		live = !sub->structurally_ended;
		destroy(sub);
	}
	unlock_registry();
	return live;
}

bool
subscription_remove(Oid owner, const char *id)
{
	return remove_one(MyDatabaseId, owner, id, 0, false);
}

void
subscription_forget(Oid owner, const char *id, uint64 serial)
{
	(void) remove_one(MyDatabaseId, owner, id, serial, true);
}

bool
subscription_complete(Oid owner, const char *id)
{
	SdSubscription *sub;
	bool		live = false;

	lock_registry();
	sub = find_exclusive(MyDatabaseId, owner, id);
	if (sub && !sub->structurally_ended)
	{
		live = true;
		end_with_message(sub, SD_END_COMPLETE);
	}
	unlock_registry();
	return live;
}

/* Up to ENDS_PER_LOCK of a connection's; returns how many live ones went. */
static int
disconnect_some(Oid owner, const char *name, const char *consumer, bool *more)
{
	SdConnection *connection;
	dlist_mutable_iter iter;
	int			live = 0;
	int			seen = 0;

	*more = false;
	lock_registry();
	connection = registry_find_connection(owner, name);
	if (connection)
	{
		/* Its own reference keeps the connection while its members go. */
		connection->nlive++;
		dlist_foreach_modify(iter, &connection->subscriptions)
		{
			SdSubscription *sub = dlist_container(SdSubscription, connection_node, iter.cur);

			if (consumer && (sub->consumer == NULL || strcmp(sub->consumer->name, consumer) != 0))
				continue;
			if (seen++ == ENDS_PER_LOCK)
			{
				*more = true;
				break;
			}
			if (!sub->structurally_ended)
				live++;
			destroy(sub);
		}
		connection->nlive--;
		registry_drop_connection(connection);
	}
	unlock_registry();
	return live;
}

int64
subscription_disconnect(Oid owner, const char *connection_id, const char *consumer)
{
	int64		n = 0;
	bool		more;

	do
		n += disconnect_some(owner, connection_id, consumer, &more);
	while (more);
	return n;
}

/* ---- consumers ---- */

static SdSubscription *
any_of_consumer(SdConsumer *consumer)
{
	if (!dlist_is_empty(&consumer->ended))
		return dlist_head_element(SdSubscription, node, &consumer->ended);
	if (!dlist_is_empty(&consumer->links))
	{
		SdLink	   *link = dlist_head_element(SdLink, consumer_node, &consumer->links);
		SdSubscription *sub;

		LWLockAcquire(&link->stream->lock, LW_SHARED);
		sub = dlist_is_empty(&link->behind) ?
			dlist_head_element(SdSubscription, node, &link->current) :
			dlist_head_element(SdSubscription, node, &link->behind);
		LWLockRelease(&link->stream->lock);
		return sub;
	}
	return NULL;
}

/*
 * Removes some of what a consumer has, and the consumer itself if it is then
 * empty and drop is asked for.
 */
static int
empty_some(Oid owner, const char *name, bool drop, bool *more)
{
	SdConsumer *consumer;
	int			live = 0;

	*more = false;
	lock_registry();
	consumer = registry_find_consumer(MyDatabaseId, owner, name);
	if (consumer)
	{
		for (int i = 0; i < ENDS_PER_LOCK; i++)
		{
			SdSubscription *sub = any_of_consumer(consumer);

			if (sub == NULL)
				break;
			if (!sub->structurally_ended)
				live++;
			destroy(sub);
		}
		*more = any_of_consumer(consumer) != NULL;
		if (!*more && drop)
			registry_drop_consumer(consumer);
	}
	unlock_registry();
	return live;
}

int64
consumer_close(Oid owner, const char *name)
{
	int64		n = 0;
	bool		more;

	do
		n += empty_some(owner, name, true, &more);
	while (more);
	return n;
}

int64
consumer_open(Oid owner, const char *name)
{
	int64		n = 0;
	bool		more;
	bool		is_new;
	SdConsumer *consumer;

	do
		n += empty_some(owner, name, false, &more);
	while (more);

	lock_registry();
	consumer = registry_get_consumer(owner, name, &is_new);
	if (consumer)
		pg_atomic_write_u64(&consumer->last_polled, GetCurrentTimestamp());
	unlock_registry();
	if (consumer == NULL)
		sd_out_of_shared_memory();
	return n;
}

/* ---- sweeping: idle and old subscriptions ---- */

#define SWEEP_MAX		64

typedef struct Swept
{
	Oid			owner;
	uint64		serial;
	SdEnd		end;			/* SD_END_NONE: forget it, it has ended before */
	char		id[SD_MAX_NAME + 1];
} Swept;

/* What the sweep should do with one; caller holds its id lock. */
static bool
is_over(SdSubscription *sub, TimestampTz now, SdEnd *end)
{
	TimestampTz idle = (TimestampTz) subdispatch_subscription_idle_timeout * SD_SECOND;
	TimestampTz life = (TimestampTz) subdispatch_subscription_max_lifetime * SD_SECOND;
	TimestampTz polled = pg_atomic_read_u64(&sub->last_polled);

	if (sub->consumer)
		polled = Max(polled, (TimestampTz) pg_atomic_read_u64(&sub->consumer->last_polled));
	*end = SD_END_NONE;
	if (sub->structurally_ended)
		return now > sub->ended_at + (idle > 0 ? idle : 600 * SD_SECOND);
	if (life > 0 && now > sub->created_at + life)
		*end = SD_END_LIFETIME;
	else if (idle > 0 && now > polled + idle)
		*end = SD_END_IDLE;
	return *end != SD_END_NONE;
}

/*
 * Finds what is over in one partition.  registry_lock keeps consumers, the id
 * lock the subscriptions.
 */
static int
sweep_partition(Oid dboid, int partition, TimestampTz now, Swept *swept)
{
	SdHash	   *table = &sd_shared->subscriptions;
	int			n = 0;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	LWLockAcquire(&sd_shared->id_locks[partition], LW_SHARED);
	for (uint32 b = partition; b <= table->mask && n < SWEEP_MAX; b += SD_ID_PARTITIONS)
		for (SdHashNode *node = table->buckets[b]; node && n < SWEEP_MAX; node = node->next)
		{
			SdSubscription *sub = (SdSubscription *) node;

			if (sub->dboid != dboid || !is_over(sub, now, &swept[n].end))
				continue;
			swept[n].owner = sub->owner;
			swept[n].serial = sub->serial;
			strcpy(swept[n].id, sub->strings);
			n++;
		}
	LWLockRelease(&sd_shared->id_locks[partition]);
	LWLockRelease(&sd_shared->registry_lock);
	return n;
}

static void
end_swept(Oid dboid, Swept *swept)
{
	SdSubscription *sub;
	SdEnd		end;

	lock_registry();
	sub = find_exclusive(dboid, swept->owner, swept->id);
	if (sub && sub->serial == swept->serial && is_over(sub, GetCurrentTimestamp(), &end))
	{
		if (sub->structurally_ended)
			destroy(sub);
		else
			end_with_message(sub, end);
	}
	unlock_registry();
}

/*
 * With few subscriptions every call goes through all of them, with many
 * through a part.
 */
void
subscription_sweep(SdDatabase *db)
{
	static int	next = 0;
	int			partitions = SD_ID_PARTITIONS;
	TimestampTz now = GetCurrentTimestamp();
	Swept	   *swept;

	if (pg_atomic_read_u32(&sd_shared->nsubscriptions) > 100000)
		partitions /= 16;
	swept = palloc(sizeof(Swept) * SWEEP_MAX);
	for (int i = 0; i < partitions; i++)
	{
		int			n = sweep_partition(db->dboid, next, now, swept);

		for (int k = 0; k < n; k++)
			end_swept(db->dboid, &swept[k]);
		if (n < SWEEP_MAX)
			next = (next + 1) % SD_ID_PARTITIONS;
	}
	pfree(swept);
	registry_sweep_consumers(db->dboid, now);
}

/*
 * Called after a commit: raises nothing.  Subscriptions of the database go
 * without a word; whoever reads next finds that they are not there.
 */
void
subscription_purge_database(Oid dboid)
{
	SdHash	   *table = &sd_shared->subscriptions;
	uint32		b = 0;

	while (b <= table->mask)
	{
		SdHashNode *node;
		int			n = 0;

		lock_registry();
		for (; b <= table->mask && n < ENDS_PER_LOCK; b++)
		{
			for (node = table->buckets[b]; node; node = node->next)
				if (((SdSubscription *) node)->dboid == dboid)
					break;
			if (node == NULL)
				continue;
			destroy((SdSubscription *) node);
			n++;
			b--;				/* there may be more in this chain */
		}
		unlock_registry();
	}
	registry_purge_consumers(dboid);
}

/* ---- what this transaction made, for its rollback ---- */

typedef struct Made
{
	SubTransactionId subid;
	Oid			owner;
	uint64		serial;
	char	   *id;
} Made;

static Made *made = NULL;		/* in TopMemoryContext */
static int	nmade = 0;
static int	made_size = 0;

/* Before anything is done that would have to be undone. */
static void
reserve_memory_to_remember(void)
{
	if (nmade < made_size)
		return;
	if (made == NULL)
		made = MemoryContextAlloc(TopMemoryContext, sizeof(Made) * 16);
	else
		made = repalloc_huge(made, sizeof(Made) * made_size * 2);
	made_size = made_size ? made_size * 2 : 16;
}

static void
remember(const char *id, Oid owner, uint64 serial)
{
	char	   *copy = MemoryContextAllocExtended(TopTransactionContext, strlen(id) + 1,
												  MCXT_ALLOC_NO_OOM);

	if (copy == NULL)
	{
		(void) remove_one(MyDatabaseId, owner, id, serial, false);
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	strcpy(copy, id);
	made[nmade].subid = GetCurrentSubTransactionId();
	made[nmade].owner = owner;
	made[nmade].serial = serial;
	made[nmade].id = copy;
	nmade++;
}

bool
subscription_pending(void)
{
	return nmade > 0;
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
			while (nmade > 0)
			{
				nmade--;
				(void) remove_one(MyDatabaseId, made[nmade].owner, made[nmade].id,
								  made[nmade].serial, false);
			}
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
			nmade = 0;
			break;
		default:
			break;
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		while (nmade > 0 && made[nmade - 1].subid == mine)
		{
			nmade--;
			(void) remove_one(MyDatabaseId, made[nmade].owner, made[nmade].id,
							  made[nmade].serial, false);
		}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (int i = nmade - 1; i >= 0 && made[i].subid == mine; i--)
			made[i].subid = parent;
}

void
subscription_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
}
