/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  The registry: finding subscriptions and making them.
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
 * How subscriptions end is in ending.c.
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
#include "replay.h"
#include "response.h"
#include "resume.h"

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

uint32
subscription_hash(Oid owner, const char *id)
{
	IdKey		key = {MyDatabaseId, owner, id};

	return id_hash(&key);
}

static bool
id_match(const SdHashNode *node, const void *k)
{
	const SdSubscription *sub = (const SdSubscription *) node;
	const IdKey *key = k;

	return sub->dboid == key->dboid && strcmp(sub_id(sub), key->id) == 0 &&
		subscription_owner(sub) == key->owner;
}

LWLock *
subscription_id_lock(uint32 hash)
{
	return &sd_shared->id_locks[(hash & sd_shared->subscriptions.mask) >> sd_shared->id_shift];
}

SdSubscription *
subscription_lookup(Oid owner, const char *id, LWLock **lock)
{
	IdKey		key = {MyDatabaseId, owner, id};
	uint32		hash = id_hash(&key);
	SdSubscription *sub;

	*lock = subscription_id_lock(hash);
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
SdSubscription *
subscription_find(Oid dboid, Oid owner, const char *id)
{
	IdKey		key = {dboid, owner, id};

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	return (SdSubscription *) sd_hash_find(&sd_shared->subscriptions, id_hash(&key),
										   id_match, &key);
}

/* ---- making one ---- */

/* What lies behind a subscription: offsets into sub->strings. */
typedef struct Strings
{
	StringInfoData buf;
	int			id;
	int			operation_id;
	int			operation_json;
	int			operation_json_len;
	int			operation_name;
	int			variables;
} Strings;

static void *
grow_palloc(void *old, size_t size)
{
	return old ? repalloc(old, size) : palloc(size);
}

/*
 * The operation's id is part of its JSON literal unless something in it had to
 * be escaped.
 */
static void
make_strings(const SdSubscribe *what, Strings *s)
{
	RespBuf		json = {.grow = grow_palloc};
	int			len = strlen(what->operation_id);

	initStringInfo(&s->buf);
	if (what->overflow != SD_DROP_OLDEST)
		while (offsetof(SdSubscription, strings) + s->buf.len < STRICT_NODE_OFFSET + sizeof(SdListNode))
			appendStringInfoChar(&s->buf, '\0');
	s->id = s->buf.len;
	appendBinaryStringInfo(&s->buf, what->id, strlen(what->id) + 1);
	if (!response_escape(&json, what->operation_id))
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	s->operation_json = s->buf.len;
	s->operation_json_len = json.len;
	appendBinaryStringInfo(&s->buf, json.data, json.len);
	s->operation_id = s->operation_json + 1;
	if ((int) json.len != len + 2)
	{
		s->operation_id = s->buf.len;
		appendBinaryStringInfo(&s->buf, what->operation_id, len);
	}
	s->operation_name = 0;
	if (what->operation_name)
	{
		s->operation_name = s->buf.len;
		appendBinaryStringInfo(&s->buf, what->operation_name, strlen(what->operation_name) + 1);
	}
	s->variables = 0;
	if (!OidIsValid(what->resolver) && JB_ROOT_COUNT(what->variables) > 0)
	{
		/* Aligned as seen from the struct's beginning. */
		while ((offsetof(SdSubscription, strings) + s->buf.len) % MAXIMUM_ALIGNOF != 0)
			appendStringInfoChar(&s->buf, '\0');
		s->variables = s->buf.len;
		appendBinaryStringInfo(&s->buf, (char *) what->variables, VARSIZE(what->variables));
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
	sub->overflow = what->overflow;
	sub->max_pending = what->max_pending;
	sub->max_pending_bytes = what->max_pending_bytes;
	sub->created_at = now;
	sub->serial = pg_atomic_add_fetch_u64(&sd_shared->serials, 1);
	pg_atomic_init_u64(&sub->last_polled, now);
	pg_atomic_init_u64(&sub->seen_version, 0);
	sub->id = s->id;
	sub->id_len = strlen(what->id);
	sub->operation_id = s->operation_id;
	sub->operation_id_len = strlen(what->operation_id);
	sub->operation_json = s->operation_json;
	sub->operation_json_len = s->operation_json_len;
	sub->operation_name = s->operation_name;
	sub->variables = s->variables;
	memcpy(sub->strings, s->buf.data, s->buf.len);
	return sub;
}

/* The first that is not drop_oldest brings this; false: no memory. */
static bool
get_strict(SdStream *stream)
{
	SdStrict   *strict;

	if (stream_strict(stream))
		return true;
	strict = sd_alloc(SD_MEM_SUBSCRIPTION, sizeof(SdStrict));
	if (strict == NULL)
		return false;
	stream->strict = sd_ref(strict);
	return true;
}

/* Puts a new subscription into its stream.  False when there is no memory. */
static bool
enter_stream(SdStream *stream, SdSubscription *sub, SdConsumer *consumer, bool paused,
			 SdResume *resume)
{
	SdLink	   *link = NULL;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (sub->overflow == SD_DROP_OLDEST || get_strict(stream))
		link = link_get(stream, consumer);
	if (link)
	{
		link->nsubscriptions++;
		sub->link = sd_ref(link);
		if (resume)
			resume_enter(stream, sub, resume);
		else
			stream_attach(stream, sub);
		sub->paused = paused;
		link_settle(link);
		sd_list_push_tail(paused ? &link->paused : &link->current, &sub->node);
		pg_atomic_write_u64(&sub->seen_version, pg_atomic_read_u64(&stream->version));
		/* who resumes finds in the history what was given up */
		if (resume == NULL && replay_lacks_event(stream_channel(stream)->db))
		{
			stream_miss(stream, sub);
			stream_wake_resumed(stream);
		}
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
	TOO_MANY_CONSUMERS,
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
} Parts;

static CreateResult
get_parts(const SdSubscribe *what, SdDatabase *db, Parts *p)
{
	SdIdentity *identity;

	p->stream = registry_get_stream(what, db);
	if (p->stream == NULL)
		return NO_MEMORY;
	if (what->consumer)
	{
		bool		too_many;

		p->consumer = registry_get_consumer(db, what->owner, what->consumer, &p->consumer_is_new,
											&too_many);
		if (p->consumer == NULL)
			return too_many ? TOO_MANY_CONSUMERS : NO_MEMORY;
	}
	if (what->connection_id)
	{
		p->connection = registry_get_connection(what->owner, what->connection_id);
		if (p->connection == NULL)
			return NO_MEMORY;
		if (subdispatch_max_subscriptions_per_connection > 0 &&
			p->connection->nlive >= subdispatch_max_subscriptions_per_connection)
			return TOO_MANY_CONNECTION;
	}
	identity = stream_identity(p->stream);
	if (identity->user && subdispatch_max_subscriptions_per_user > 0 &&
		identity->user->n >= subdispatch_max_subscriptions_per_user)
		return TOO_MANY_USER;
	if (subdispatch_max_subscriptions_per_role > 0 &&
		identity->role_quota->n >= subdispatch_max_subscriptions_per_role)
		return TOO_MANY_ROLE;
	return CREATED;
}

static void
undo_parts(Parts *p)
{
	if (p->connection)
		registry_drop_connection(p->connection);
	if (p->consumer && p->consumer_is_new)
		registry_drop_consumer(p->consumer);
	if (p->stream)
		registry_leave_stream(p->stream);
}

/* Caller holds registry_lock exclusive; sub is not yet anywhere. */
static CreateResult
create_locked(const SdSubscribe *what, SdDatabase *db, SdSubscription *sub, SdResume *resume)
{
	Parts		parts = {0};
	IdKey		key = {MyDatabaseId, what->owner, what->id};
	uint32		hash = id_hash(&key);
	SdSubscription *old = subscription_find(key.dboid, key.owner, key.id);
	CreateResult result;

	if (old && !old->structurally_ended)
		return ID_IN_USE;
	if (pg_atomic_read_u32(&sd_shared->nsubscriptions) >= (uint32) subdispatch_max_subscriptions)
		return TOO_MANY;
	result = get_parts(what, db, &parts);
	sub->stream = sd_ref(parts.stream); /* the dispatcher may look at it from here on */
	if (result == CREATED && !enter_stream(parts.stream, sub, parts.consumer,
										  pause_applies(parts.connection, parts.consumer),
										  resume))
		result = NO_MEMORY;
	if (result != CREATED)
	{
		undo_parts(&parts);
		return result;
	}

	stream_pin(parts.stream);
	sub->consumer = sd_ref(parts.consumer);
	sub->connection = sd_ref(parts.connection);
	registry_count_quotas(stream_identity(parts.stream), 1);
	if (sub_consumer(sub))
		sub_consumer(sub)->nsubscriptions++;
	if (sub_connection(sub))
	{
		sub_connection(sub)->nlive++;
		sub_connection(sub)->nmembers++;
		sd_list_push_tail(&sub_connection(sub)->subscriptions, &sub->connection_node);
	}
	pg_atomic_fetch_add_u32(&sd_shared->nsubscriptions, 1);
	pg_atomic_fetch_add_u32(&db->nsubscriptions, 1);

	/* Only now: it may be the last that keeps the connection. */
	if (old)
		subscription_destroy(old);
	LWLockAcquire(subscription_id_lock(hash), LW_EXCLUSIVE);
	sd_hash_insert(&sd_shared->subscriptions, &sub->hnode, hash);
	LWLockRelease(subscription_id_lock(hash));
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
		case TOO_MANY_CONSUMERS:
			registry_too_many_consumers();
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
	SdResume   *resume = NULL;
	uint64		serial;

	shmem_attach();
	if (what->resumes)
		resume_check(db, what->after_event);
	reserve_memory_to_remember();
	make_strings(what, &strings);
	sub = make_subscription(what, &strings);
	if (sub == NULL)
		sd_out_of_shared_memory();
	serial = sub->serial;
	if (what->resumes)
	{
		resume = resume_make((uint64) what->after_event, what->max_pending,
							 what->max_pending_bytes);
		if (resume == NULL)
		{
			sd_free(sub);
			sd_out_of_shared_memory();
		}
	}

	registry_lock_exclusive();
	result = create_locked(what, db, sub, resume);
	registry_unlock();
	if (result != CREATED)
	{
		if (resume)
			resume_unref(resume);
		sd_free(sub);
		report(result, what);
	}
	database_keep_dispatchers(db);
	if (resume)
		database_wake(db, channel_dispatcher(channel_hash(what->channel, strlen(what->channel))));
	remember(what->id, what->owner, serial);
	stats_add(&db->stats, SD_STAT_SUBSCRIPTIONS_CREATED, 1);
	return serial;
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
		(void) subscription_remove_one(MyDatabaseId, owner, id, serial);
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
				(void) subscription_remove_one(MyDatabaseId, made[nmade].owner, made[nmade].id,
								  made[nmade].serial);
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
			(void) subscription_remove_one(MyDatabaseId, made[nmade].owner, made[nmade].id,
							  made[nmade].serial);
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
