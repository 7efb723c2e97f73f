/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  Channels, streams and identities, found under registry_lock.
 *
 * A channel keeps its streams in arrays (index.c).  They have no order; a stream
 * that goes is replaced by the last one.  The dispatcher walks them backwards
 * in pieces, so that it never misses a stream that was there when it began.
 *
 * Locks: registry_lock, held by the caller except where registry.h says
 * otherwise.  No errors are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "history.h"
#include "registry.h"

static uint32
mix(uint32 a, uint32 b)
{
	return hash_combine(a, b);
}

static uint32
hash_string(const char *s, uint32 seed)
{
	return s ? sd_hash_bytes(s, strlen(s), seed) : seed;
}

static uint32
hash_jsonb(const Jsonb *j, uint32 seed)
{
	return j ? sd_hash_bytes(j, VARSIZE(j), seed) : seed;
}

static bool
same_string(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

static bool
same_jsonb(const Jsonb *a, const Jsonb *b)
{
	return a == b || (a && b && VARSIZE(a) == VARSIZE(b) && memcmp(a, b, VARSIZE(a)) == 0);
}

static bool
same_filter(const SdFilter *a, const SdFilter *b)
{
	return a == b ||
		(a && b && filter_size(a) == filter_size(b) && memcmp(a, b, filter_size(a)) == 0);
}

void
registry_lock_exclusive(void)
{
	shmem_attach();
	LWLockAcquire(&sd_shared->registry_lock, LW_EXCLUSIVE);
}

void
registry_unlock(void)
{
	LWLockRelease(&sd_shared->registry_lock);
	trash_empty();
}

/* ---- streams in pieces ---- */

int
registry_pin_streams(const SdStreamVec *vec, uint32 *at, SdStream **pins, int room)
{
	int			n = 0;

	*at = Min(*at, vec ? vec->n : 0);
	for (uint32 ahead = *at; ahead > 0 && n < room; n++)
		stream_fetch(pins[n] = streamvec_get(vec, --ahead));
	for (int i = 0; i < n; i++)
		(void) stream_pin(pins[i]);
	*at -= n;
	return n;
}

/* ---- identities ---- */

static uint32
identity_hash(const SdSubscribe *what)
{
	return mix(hash_jsonb(what->settings, what->role),
			   hash_jsonb(what->context, what->owner ^ MyDatabaseId));
}

static bool
identity_match(const SdHashNode *node, const void *key)
{
	const SdIdentity *identity = (const SdIdentity *) node;
	const SdSubscribe *what = key;

	return identity->dboid == MyDatabaseId && identity->owner == what->owner &&
		identity->role == what->role &&
		same_jsonb(identity->settings, what->settings) &&
		same_jsonb(identity->context, what->context);
}

static SdIdentity *
make_identity(const SdSubscribe *what)
{
	Size		settings = MAXALIGN(sizeof(SdIdentity));
	Size		context = settings + MAXALIGN(VARSIZE(what->settings));
	SdIdentity *identity = sd_alloc(SD_MEM_SUBSCRIPTION, context + VARSIZE(what->context));

	if (identity == NULL)
		return NULL;
	identity->dboid = MyDatabaseId;
	identity->owner = what->owner;
	identity->role = what->role;
	identity->serial = pg_atomic_add_fetch_u64(&sd_shared->serials, 1);
	identity->settings = (Jsonb *) ((char *) identity + settings);
	memcpy(identity->settings, what->settings, VARSIZE(what->settings));
	identity->context = (Jsonb *) ((char *) identity + context);
	memcpy(identity->context, what->context, VARSIZE(what->context));
	pg_atomic_init_u32(&identity->refs, 1);
	return identity;
}

static SdIdentity *
get_identity(const SdSubscribe *what)
{
	uint32		hash = identity_hash(what);
	SdIdentity *identity = (SdIdentity *) sd_hash_find(&sd_shared->identities, hash,
													   identity_match, what);

	if (identity)
		return identity;
	identity = make_identity(what);
	if (identity == NULL)
		return NULL;
	if (!registry_get_quotas(what, &identity->user, &identity->role_quota))
	{
		identity_unref(identity);
		return NULL;
	}
	sd_hash_insert(&sd_shared->identities, &identity->hnode, hash);
	return identity;
}

static void
drop_identity(SdIdentity *identity)
{
	if (identity->nstreams > 0)
		return;
	sd_hash_remove(&sd_shared->identities, &identity->hnode);
	registry_leave_quota(identity->user);
	registry_leave_quota(identity->role_quota);
	identity_unref(identity);
}

/* ---- channels ---- */

typedef struct ChannelKey
{
	Oid			dboid;
	const char *name;
	Size		len;
} ChannelKey;

static bool
channel_match(const SdHashNode *node, const void *k)
{
	const SdChannel *channel = (const SdChannel *) node;
	const ChannelKey *key = k;

	return channel->dboid == key->dboid && channel->namelen == key->len &&
		memcmp(channel->name, key->name, key->len) == 0;
}

SdChannel *
channel_lookup(Oid dboid, const char *name, Size len, uint32 hash)
{
	ChannelKey	key = {dboid, name, len};

	return (SdChannel *) sd_hash_find(&sd_shared->channels, hash, channel_match, &key);
}

/*
 * The dispatcher looks through all channels then, so it isn't asked when it has
 * said that it can't LISTEN on any more.  It takes that back before it looks
 * again, so that it sees what was done here before, and looks again by itself
 * when there are places.
 */
void
registry_listen_anew(SdChannel *channel)
{
	SdDispatcher *disp = &channel->db->dispatchers[channel->dispatcher];

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	if (pg_atomic_read_u32(&channel->listening) == 0 &&
		pg_atomic_read_u32(&disp->listen_full) == pg_atomic_read_u32(&disp->listen_vacated) + 1)
		return;
	pg_atomic_fetch_add_u32(&disp->listen_requests, 1);
	database_wake(channel->db, channel->dispatcher);
}

/* Takes an id that is above all that were given, and below those to come. */
void
registry_keep_from_now(SdChannel *channel)
{
	pg_atomic_write_u64(&channel->kept_from, bus_take_id(channel->db));
}

static SdChannel *
get_channel(const char *name, SdDatabase *db)
{
	Size		len = strlen(name);
	uint32		hash = channel_hash(name, len);
	SdChannel  *channel = channel_lookup(MyDatabaseId, name, len, hash);

	if (channel)
		return channel;
	channel = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdChannel, name) + len + 1);
	if (channel == NULL)
		return NULL;
	channel->db = db;
	channel->dboid = MyDatabaseId;
	channel->hash = hash;
	channel->dispatcher = channel_dispatcher(hash);
	channel->star = strcmp(name, SD_STAR) == 0;
	dlist_init(&channel->paths);
	pg_atomic_init_u32(&channel->refs, 1);
	pg_atomic_init_u32(&channel->gaps, 0);
	pg_atomic_init_u64(&channel->lost_elsewhere, 0);
	pg_atomic_init_u64(&channel->events, 0);
	pg_atomic_init_u32(&channel->listening, 0);
	pg_atomic_init_u32(&channel->of_replica, RecoveryInProgress() ? 1 : 0);
	pg_atomic_init_u64(&channel->kept_from, 0);
	channel->namelen = len;
	memcpy(channel->name, name, len + 1);
	sd_hash_insert(&sd_shared->channels, &channel->hnode, hash);
	registry_listen_anew(channel);
	return channel;
}

void
registry_remove_channel(SdChannel *channel)
{
	Assert(channel->nstreams == 0);
	sd_hash_remove(&sd_shared->channels, &channel->hnode);
	registry_listen_anew(channel);
	channel_unref(channel);
}

static void
drop_channel(SdChannel *channel)
{
	if (channel->nstreams == 0 && !channel_lingers(channel))
		registry_remove_channel(channel);
}

/*
 * A publisher looks at the sketch without a lock after its commit has become
 * visible, so it counts before the subscriber can take its snapshot.
 */
static void
count_channel(SdChannel *channel, int by)
{
	SdDatabase *db = channel->db;

	channel->nsubscriptions += by;
	pg_atomic_fetch_add_u32(&db->sketch[channel->hash % SD_SKETCH_SIZE], by);
	if (channel->star)
		pg_atomic_fetch_add_u32(&db->nstar, by);
}

/* ---- streams ---- */

typedef struct StreamKey
{
	const SdSubscribe *what;
	SdChannel  *channel;
	SdIdentity *identity;
} StreamKey;

static uint32
stream_hash(const StreamKey *key)
{
	const SdSubscribe *what = key->what;
	uint32		h = mix(key->channel->hash, (uint32) key->identity->serial);

	if (what->filter)
		h = sd_hash_bytes(what->filter, filter_size(what->filter), h);
	if (OidIsValid(what->resolver))
		h = mix(hash_jsonb(what->variables, h), what->resolver);
	h = hash_string(what->response_key, h);
	return what->rate_limit > 0 ?
		sd_hash_bytes(&what->rate_limit, sizeof(double), h ^ what->burst) : h;
}

static bool
same_rate(const SdStreamLimit *limit, const SdSubscribe *what)
{
	return limit ? limit->rate == what->rate_limit && limit->burst == what->burst :
		what->rate_limit <= 0;
}

static bool
stream_match(const SdHashNode *node, const void *k)
{
	const SdStream *stream = (const SdStream *) node;
	const StreamKey *key = k;
	const SdSubscribe *what = key->what;

	return stream_channel(stream) == key->channel && stream_identity(stream) == key->identity &&
		stream_resolver(stream) == what->resolver && same_rate(stream_rate(stream), what) &&
		same_string(stream_response_key(stream), what->response_key) &&
		same_filter(stream_filter(stream), what->filter) &&
		(!OidIsValid(what->resolver) || same_jsonb(stream_variables(stream), what->variables));
}

/* The next piece of what lies behind a stream: MAXALIGNed, zeroed. */
static void *
next_piece(SdStream *stream, Size *used, Size size)
{
	void	   *piece = (char *) stream + *used;

	*used += MAXALIGN(size);
	return piece;
}

static void *
copy_piece(SdStream *stream, Size *used, const void *src, Size size)
{
	return memcpy(next_piece(stream, used, size), src, size);
}

static bool
needs_extras(const SdSubscribe *what)
{
	return OidIsValid(what->resolver) || what->rate_limit > 0 || what->response_key;
}

static void
copy_extras(SdStream *stream, Size *used, const SdSubscribe *what)
{
	SdStreamExtras *extras = next_piece(stream, used, sizeof(SdStreamExtras));

	stream->extras = sd_ref(extras);
	extras->resolver = what->resolver;
	if (OidIsValid(what->resolver))
		extras->variables = sd_ref(copy_piece(stream, used, what->variables,
											  VARSIZE(what->variables)));
	if (what->rate_limit > 0)
	{
		SdStreamLimit *limit = next_piece(stream, used, sizeof(SdStreamLimit));

		limit->rate = what->rate_limit;
		limit->burst = what->burst;
		ratelimit_init(&limit->tokens, what->rate_limit, what->burst, GetCurrentTimestamp());
		extras->rate = sd_ref(limit);
	}
	if (what->response_key)
		extras->response_key = sd_ref(copy_piece(stream, used, what->response_key,
												 strlen(what->response_key) + 1));
}

static Size
extras_size(const SdSubscribe *what)
{
	return MAXALIGN(sizeof(SdStreamExtras)) +
		(OidIsValid(what->resolver) ? MAXALIGN(VARSIZE(what->variables)) : 0) +
		(what->rate_limit > 0 ? MAXALIGN(sizeof(SdStreamLimit)) : 0) +
		(what->response_key ? strlen(what->response_key) + 1 : 0);
}

/*
 * A stream with what the caller gave behind it.  Called twice: with stream NULL
 * it only tells how much memory that takes.
 */
static Size
copy_parts(SdStream *stream, const SdSubscribe *what)
{
	Size		used = MAXALIGN(sizeof(SdStream));

	if (stream == NULL)
		return used + MAXALIGN(VARSIZE(what->filter_json)) +
			(what->filter ? MAXALIGN(filter_size(what->filter)) : 0) +
			(needs_extras(what) ? extras_size(what) : 0);

	stream->filter_json = sd_ref(copy_piece(stream, &used, what->filter_json,
											VARSIZE(what->filter_json)));
	if (what->filter)
		stream->filter = sd_ref(copy_piece(stream, &used, what->filter,
										   filter_size(what->filter)));
	if (needs_extras(what))
		copy_extras(stream, &used, what);
	return used;
}

static void
init_stream(SdStream *stream, const StreamKey *key)
{
	const SdSubscribe *what = key->what;

	stream->channel = sd_ref(key->channel);
	stream->identity = sd_ref(key->identity);
	pg_atomic_fetch_add_u32(&key->channel->refs, 1);
	pg_atomic_fetch_add_u32(&key->identity->refs, 1);
	stream->owner = what->owner;
	stream->role = what->role;
	stream->batched = what->batched;
	stream->immutable = what->immutable;
	stream->has_context = JB_ROOT_COUNT(what->context) > 0;
	stream->ordinary = what->ordinary;
	(void) copy_parts(stream, what);
	pg_atomic_init_u32(&stream->refs, 1);
	pg_atomic_init_u64(&stream->version, 1);
	LWLockInitialize(&stream->lock, sd_tranche_stream);
}

static SdStream *
make_stream(const StreamKey *key, uint32 hash)
{
	SdStream   *stream = sd_alloc(SD_MEM_SUBSCRIPTION, copy_parts(NULL, key->what));

	if (stream == NULL)
		return NULL;
	init_stream(stream, key);
	if (!index_add(stream))
	{
		stream_unpin(stream);
		return NULL;
	}
	sd_hash_insert(&sd_shared->streams, &stream->hnode, hash);
	key->channel->nstreams++;
	key->channel->ncontext += stream->has_context;
	key->channel->nordinary += stream->ordinary;
	key->identity->nstreams++;
	return stream;
}

SdStream *
registry_get_stream(const SdSubscribe *what, SdDatabase *db)
{
	StreamKey	key = {.what = what};
	SdStream   *stream = NULL;
	uint32		hash;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	key.identity = get_identity(what);
	if (key.identity == NULL)
		return NULL;
	key.channel = get_channel(what->channel, db);
	if (key.channel)
	{
		hash = stream_hash(&key);
		stream = (SdStream *) sd_hash_find(&sd_shared->streams, hash, stream_match, &key);
		if (stream == NULL)
			stream = make_stream(&key, hash);
		if (stream == NULL)
			drop_channel(key.channel);
	}
	if (stream == NULL)
	{
		drop_identity(key.identity);
		return NULL;
	}
	stream->nsubscriptions++;
	count_channel(stream_channel(stream), 1);
	/* a new one: whoever did not see it counted has told which events he links */
	pg_memory_barrier();		/* pairs with publish_numbered() */
	if (pg_atomic_read_u64(&stream_channel(stream)->kept_from) == 0)
		registry_keep_from_now(stream_channel(stream));
	if (channel_lingers(stream_channel(stream)))
		linger_revive(stream_channel(stream));
	return stream;
}

void
registry_leave_stream(SdStream *stream)
{
	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	/* First, so that publishers find it counted all the time. */
	if (stream->nsubscriptions == 1 && stream_channel(stream)->nstreams == 1)
		linger_begin(stream_channel(stream));
	count_channel(stream_channel(stream), -1);
	if (--stream->nsubscriptions > 0)
		return;
	index_remove(stream);
	sd_hash_remove(&sd_shared->streams, &stream->hnode);
	stream_channel(stream)->nstreams--;
	stream_channel(stream)->ncontext -= stream->has_context;
	stream_channel(stream)->nordinary -= stream->ordinary;
	drop_channel(stream_channel(stream));
	stream_identity(stream)->nstreams--;
	drop_identity(stream_identity(stream));
	stream_unpin(stream);
}
