/*-------------------------------------------------------------------------
 *
 * owned.c
 *	  What belongs to an owner by name: consumers, connections, quotas.
 *
 * Locks: registry_lock, held by the caller except where registry.h says
 * otherwise.  No errors are raised, but by registry_too_many_consumers().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "ack.h"
#include "registry.h"

/* ---- what is found by (database, owner, name) ---- */

typedef struct OwnedKey
{
	Oid			dboid;
	Oid			owner;
	const char *name;
} OwnedKey;

static uint32
owned_hash(const OwnedKey *key)
{
	return sd_hash_bytes(key->name, strlen(key->name), key->dboid ^ (key->owner * 31));
}

static bool
consumer_match(const SdHashNode *node, const void *k)
{
	const SdConsumer *consumer = (const SdConsumer *) node;
	const OwnedKey *key = k;

	return consumer->dboid == key->dboid && consumer->owner == key->owner &&
		strcmp(consumer->name, key->name) == 0;
}

SdConsumer *
registry_find_consumer(Oid dboid, Oid owner, const char *name)
{
	OwnedKey	key = {dboid, owner, name};

	return (SdConsumer *) sd_hash_find(&sd_shared->consumers, owned_hash(&key),
									   consumer_match, &key);
}

SdConsumer *
consumer_lookup(Oid owner, const char *name)
{
	return registry_find_consumer(MyDatabaseId, owner, name);
}

SdConsumer *
registry_get_consumer(SdDatabase *db, Oid owner, const char *name, bool *is_new, bool *too_many)
{
	OwnedKey	key = {MyDatabaseId, owner, name};
	SdConsumer *consumer = consumer_lookup(owner, name);

	*is_new = consumer == NULL;
	*too_many = false;
	if (consumer)
		return consumer;
	*too_many = sd_shared->nconsumers >= (uint32) subdispatch_max_subscriptions;
	if (*too_many)
		return NULL;
	consumer = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdConsumer, name) + strlen(name) + 1);
	if (consumer == NULL)
		return NULL;
	consumer->dboid = MyDatabaseId;
	consumer->db = db;
	consumer->owner = owner;
	LWLockInitialize(&consumer->reading, sd_tranche_consumer);
	SpinLockInit(&consumer->mutex);
	pg_atomic_init_u32(&consumer->nended, 0);
	pg_atomic_init_u64(&consumer->last_polled, GetCurrentTimestamp());
	pg_atomic_init_u64(&consumer->pending_since, 0);
	consumer->namelen = strlen(name);
	strcpy(consumer->name, name);
	sd_hash_insert(&sd_shared->consumers, &consumer->hnode, owned_hash(&key));
	sd_shared->nconsumers++;
	return consumer;
}

static bool
consumer_is_empty(SdConsumer *consumer)
{
	return sd_list_is_empty(&consumer->links) && sd_list_is_empty(&consumer->ended) &&
		sd_list_is_empty(&consumer->paused_ended);
}

void
registry_too_many_consumers(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many consumers"),
			 errdetail("The server has as many consumers as it may have subscriptions, %d.",
					   subdispatch_max_subscriptions),
			 errhint("Close those that are not needed by subdispatch.close_consumer(), or increase subdispatch.max_subscriptions.")));
}

/* Caller knows that it has no subscriptions. */
void
registry_drop_consumer(SdConsumer *consumer)
{
	if (!consumer_is_empty(consumer))
		return;
	sd_hash_remove(&sd_shared->consumers, &consumer->hnode);
	sd_shared->nconsumers--;
	ack_drop(consumer);
	sd_wake(consumer);
	sd_free(consumer);
}

static bool
connection_match(const SdHashNode *node, const void *k)
{
	const SdConnection *connection = (const SdConnection *) node;
	const OwnedKey *key = k;

	return connection->dboid == key->dboid && connection->owner == key->owner &&
		strcmp(connection->name, key->name) == 0;
}

SdConnection *
registry_find_connection(Oid owner, const char *name)
{
	OwnedKey	key = {MyDatabaseId, owner, name};

	return (SdConnection *) sd_hash_find(&sd_shared->connections, owned_hash(&key),
										 connection_match, &key);
}

SdConnection *
registry_get_connection(Oid owner, const char *name)
{
	OwnedKey	key = {MyDatabaseId, owner, name};
	SdConnection *connection = registry_find_connection(owner, name);

	if (connection)
		return connection;
	connection = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdConnection, name) + strlen(name) + 1);
	if (connection == NULL)
		return NULL;
	connection->dboid = MyDatabaseId;
	connection->owner = owner;
	dlist_init(&connection->pause_exceptions);
	connection->namelen = strlen(name);
	strcpy(connection->name, name);
	sd_hash_insert(&sd_shared->connections, &connection->hnode, owned_hash(&key));
	return connection;
}

void
registry_drop_connection(SdConnection *connection)
{
	if (connection->nlive > 0 || !sd_list_is_empty(&connection->subscriptions))
		return;
	sd_hash_remove(&sd_shared->connections, &connection->hnode);
	pause_forget(connection);
	sd_free(connection);
}

SdSubscription *
registry_next_member(SdConnection *connection)
{
	SdListNode *node = sd_list_first(&connection->subscriptions);

	if (node == NULL)
		return NULL;
	sd_list_rotate(&connection->subscriptions);
	return sd_list_container(SdSubscription, connection_node, node);
}

/* ---- quotas ---- */

typedef struct QuotaKey
{
	Oid			dboid;
	Oid			owner;
	Oid			role;
	bool		is_role;
	const char *key;
} QuotaKey;

static bool
quota_match(const SdHashNode *node, const void *k)
{
	const SdQuota *quota = (const SdQuota *) node;
	const QuotaKey *key = k;

	return quota->dboid == key->dboid && quota->owner == key->owner &&
		quota->role == key->role && quota->is_role == key->is_role &&
		strcmp(quota->key, key->key) == 0;
}

/* Finds or makes it; counts nothing. */
static SdQuota *
get_quota(const QuotaKey *key)
{
	uint32		hash = sd_hash_bytes(key->key, strlen(key->key),
											 hash_combine(key->role, key->owner ^ key->dboid) + key->is_role);
	SdQuota    *quota = (SdQuota *) sd_hash_find(&sd_shared->quotas, hash, quota_match, key);

	if (quota == NULL)
	{
		quota = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdQuota, key) + strlen(key->key) + 1);
		if (quota == NULL)
			return NULL;
		quota->dboid = key->dboid;
		quota->owner = key->owner;
		quota->role = key->role;
		quota->is_role = key->is_role;
		pg_atomic_init_u32(&quota->refs, 1);
		SpinLockInit(&quota->mutex);
		ratelimit_init(&quota->tokens, subdispatch_user_rate_limit, Max(subdispatch_user_burst, 1),
					   GetCurrentTimestamp());
		quota->keylen = strlen(key->key);
		strcpy(quota->key, key->key);
		sd_hash_insert(&sd_shared->quotas, &quota->hnode, hash);
	}
	return quota;
}

/* Counts one more identity of it. */
static SdQuota *
join_quota(const QuotaKey *key)
{
	SdQuota    *quota = get_quota(key);

	if (quota)
	{
		quota->nidentities++;
		pg_atomic_fetch_add_u32(&quota->refs, 1);
	}
	return quota;
}

void
registry_leave_quota(SdQuota *quota)
{
	if (quota == NULL || --quota->nidentities > 0)
		return;
	Assert(quota->n == 0);
	sd_hash_remove(&sd_shared->quotas, &quota->hnode);
	quota_unref(quota);
}

bool
registry_get_quotas(const SdSubscribe *what, SdQuota **user, SdQuota **role)
{
	QuotaKey	user_key = {MyDatabaseId, what->owner, what->role, false, what->user_key};
	QuotaKey	role_key = {MyDatabaseId, InvalidOid, what->role, true, ""};

	*user = NULL;
	*role = join_quota(&role_key);
	if (*role == NULL)
		return false;
	if (what->user_key == NULL)
		return true;
	*user = join_quota(&user_key);
	if (*user)
		return true;
	registry_leave_quota(*role);
	return false;
}

void
registry_count_quotas(SdIdentity *identity, int by)
{
	identity->role_quota->n += by;
	if (identity->user)
		identity->user->n += by;
}

/* ---- consumers that nobody comes for ---- */

static bool
consumer_is_idle(SdConsumer *consumer, TimestampTz now)
{
	TimestampTz idle = (TimestampTz) subdispatch_subscription_idle_timeout * SD_SECOND;

	return idle > 0 && consumer_is_empty(consumer) &&
		now > (TimestampTz) pg_atomic_read_u64(&consumer->last_polled) + idle;
}

/* Is there anything to drop in the bucket?  Caller holds the lock. */
static bool
has_idle(uint32 bucket, Oid dboid, TimestampTz now, bool all)
{
	for (SdHashNode *node = sd_hash_first(&sd_shared->consumers, bucket); node; node = sd_hash_next(node))
	{
		SdConsumer *consumer = (SdConsumer *) node;

		if (consumer->dboid == dboid && (all || consumer_is_idle(consumer, now)))
			return true;
	}
	return false;
}

/* Locks exclusively only where there is something to drop. */
void
registry_drop_consumers(uint32 bucket, Oid dboid, TimestampTz now, bool all)
{
	SdHash	   *table = &sd_shared->consumers;
	SdHashNode *next;
	bool		found;

	if (table->buckets[bucket] == 0)
		return;					/* read without the lock: seen next time */
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	found = has_idle(bucket, dboid, now, all);
	LWLockRelease(&sd_shared->registry_lock);
	if (!found)
		return;
	LWLockAcquire(&sd_shared->registry_lock, LW_EXCLUSIVE);
	for (SdHashNode *node = sd_hash_first(table, bucket); node; node = next)
	{
		SdConsumer *consumer = (SdConsumer *) node;

		next = sd_hash_next(node);
		if (consumer->dboid == dboid && (all || consumer_is_idle(consumer, now)))
			registry_drop_consumer(consumer);
	}
	LWLockRelease(&sd_shared->registry_lock);
	ack_free();
}
