/*-------------------------------------------------------------------------
 *
 * index.c
 *	  Where a channel's events look for its streams: the equality index.
 *
 * A channel has one array of the streams whose filter doesn't ask for equality
 * with a scalar.  The others are found by (path, value) in a hash table, so that
 * an event looks only at streams whose value it has (see match.c for the keys);
 * they stand in an array of all of them, too, for what concerns them whatever
 * their value.
 *
 * Most values are asked for by one stream alone, and there may be a million of
 * them: such a stream stands in the hash table itself.  A second one brings a
 * bucket with an array, which stays until it is empty.  In the table the hashes
 * of buckets have BUCKET_BIT set, those of streams haven't.
 *
 * Locks: registry_lock, held by the caller exclusively, to look in any mode.  No
 * errors are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "registry.h"

#define BUCKET_BIT	UINT32_C(0x80000000)

typedef struct IndexKey
{
	SdIndexPath *path;
	uint64		value_hash;
} IndexKey;

/* ---- paths ---- */

static SdIndexPath *
find_path(SdChannel *channel, const char *path, int len)
{
	dlist_iter	iter;

	dlist_foreach(iter, &channel->paths)
	{
		SdIndexPath *p = dlist_container(SdIndexPath, node, iter.cur);

		if (p->pathlen == len && memcmp(p->path, path, len) == 0)
			return p;
	}
	return NULL;
}

static SdIndexPath *
get_path(SdChannel *channel, const char *path, int len)
{
	SdIndexPath *p = find_path(channel, path, len);

	if (p)
		return p;
	p = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdIndexPath, path) + len);
	if (p == NULL)
		return NULL;
	p->channel = channel;
	p->pathlen = len;
	memcpy(p->path, path, len);
	dlist_push_tail(&channel->paths, &p->node);
	return p;
}

static void
drop_path(SdIndexPath *path)
{
	if (path->nvalues > 0)
		return;
	dlist_delete(&path->node);
	sd_free(path);
}

/* ---- the hash table ---- */

static uint32
key_hash(const IndexKey *key)
{
	return sd_hash_bytes(&key->value_hash, sizeof(uint64),
						 (uint32) ((uintptr_t) key->path >> 3)) & ~BUCKET_BIT;
}

static bool
bucket_match(const SdHashNode *node, const void *k)
{
	const SdBucket *bucket = (const SdBucket *) node;
	const IndexKey *key = k;

	return bucket->path == key->path && bucket->value_hash == key->value_hash;
}

static SdBucket *
find_bucket(const IndexKey *key)
{
	return (SdBucket *) sd_hash_find(&sd_shared->buckets, key_hash(key) | BUCKET_BIT, bucket_match, key);
}

#define STREAM_ALONE(node)	((SdStream *) ((char *) (node) - offsetof(SdStream, alone)))

/* Has the stream that stands in the table this key? */
static bool
alone_match(const SdHashNode *node, const void *k)
{
	const SdStream *stream = STREAM_ALONE(node);
	const IndexKey *key = k;
	const char *path;
	int			pathlen;
	uint64		value_hash;

	return stream_channel(stream) == key->path->channel &&
		filter_index_key(stream_filter(stream), &path, &pathlen, &value_hash) &&
		value_hash == key->value_hash && pathlen == key->path->pathlen &&
		memcmp(path, key->path->path, pathlen) == 0;
}

static SdStream *
find_alone(const IndexKey *key)
{
	SdHashNode *node = sd_hash_find(&sd_shared->buckets, key_hash(key), alone_match, key);

	return node ? STREAM_ALONE(node) : NULL;
}

SdStreamVec *
index_find(SdChannel *channel, const char *path, int pathlen, uint64 value_hash,
		   SdStreamVec *alone)
{
	IndexKey	key = {find_path(channel, path, pathlen), value_hash};
	SdStream   *stream;
	SdBucket   *bucket;

	if (key.path == NULL)
		return NULL;
	stream = find_alone(&key);
	if (stream)
	{
		streamvec_of_one(alone, stream);
		return alone;
	}
	bucket = find_bucket(&key);
	return bucket ? &bucket->vec : NULL;
}

/* ---- buckets ---- */

static void
drop_bucket(SdBucket *bucket)
{
	if (bucket->vec.n > 0)
		return;
	sd_hash_remove(&sd_shared->buckets, &bucket->hnode);
	bucket->path->nvalues--;
	drop_path(bucket->path);
	sd_free(bucket);
}

static bool
enter_bucket(SdBucket *bucket, SdStream *stream)
{
	if (!streamvec_push(&bucket->vec, stream))
		return false;
	stream->place = SD_PLACE_BUCKET;
	stream->bucket = sd_ref(bucket);
	stream->vec_pos = bucket->vec.n - 1;
	return true;
}

static void
enter_alone(const IndexKey *key, SdStream *stream)
{
	stream->place = SD_PLACE_ALONE;
	sd_hash_insert(&sd_shared->buckets, &stream->alone, key_hash(key));
}

/* A bucket for the stream that was alone so far and another one; false: as before. */
static bool
make_bucket(const IndexKey *key, SdStream *alone, SdStream *stream)
{
	SdBucket   *bucket = sd_alloc(SD_MEM_SUBSCRIPTION, sizeof(SdBucket));

	if (bucket == NULL)
		return false;
	bucket->path = key->path;
	bucket->value_hash = key->value_hash;
	sd_hash_remove(&sd_shared->buckets, &alone->alone);
	(void) enter_bucket(bucket, alone); /* the first needs no memory */
	if (!enter_bucket(bucket, stream))
	{
		(void) streamvec_remove(&bucket->vec, alone->vec_pos);
		enter_alone(key, alone);
		sd_free(bucket);
		return false;
	}
	sd_hash_insert(&sd_shared->buckets, &bucket->hnode, key_hash(key) | BUCKET_BIT);
	return true;
}

/* ---- streams ---- */

static bool
add_by_key(SdStream *stream, const IndexKey *key)
{
	SdStream   *alone = find_alone(key);
	SdBucket   *bucket;

	if (alone)
		return make_bucket(key, alone, stream);
	bucket = find_bucket(key);
	if (bucket)
		return enter_bucket(bucket, stream);
	enter_alone(key, stream);
	key->path->nvalues++;
	return true;
}

static void
leave_bucket(SdStream *stream)
{
	SdBucket   *bucket = (SdBucket *) sd_at(stream->bucket);
	SdStream   *moved = streamvec_remove(&bucket->vec, stream->vec_pos);

	if (moved)
		moved->vec_pos = stream->vec_pos;
	drop_bucket(bucket);
}

static void
remove_by_key(SdStream *stream)
{
	const char *path;
	int			pathlen;
	uint64		value_hash;
	SdIndexPath *p;

	if (stream->place == SD_PLACE_BUCKET)
	{
		leave_bucket(stream);
		return;
	}
	(void) filter_index_key(stream_filter(stream), &path, &pathlen, &value_hash);
	p = find_path(stream_channel(stream), path, pathlen);
	sd_hash_remove(&sd_shared->buckets, &stream->alone);
	p->nvalues--;
	drop_path(p);
}

bool
index_add(SdStream *stream)
{
	SdChannel  *channel = stream_channel(stream);
	const char *path;
	int			pathlen;
	IndexKey	key;

	if (stream->filter == 0 ||
		!filter_index_key(stream_filter(stream), &path, &pathlen, &key.value_hash))
	{
		stream->place = SD_PLACE_PLAIN;
		stream->vec_pos = channel->plain.n;
		return streamvec_push(&channel->plain, stream);
	}
	stream->filtered_pos = channel->filtered.n;
	if (!streamvec_push(&channel->filtered, stream))
		return false;
	key.path = get_path(channel, path, pathlen);
	if (key.path && add_by_key(stream, &key))
		return true;
	if (key.path)
		drop_path(key.path);
	(void) streamvec_remove(&channel->filtered, stream->filtered_pos);
	return false;
}

void
index_remove(SdStream *stream)
{
	SdChannel  *channel = stream_channel(stream);
	SdStream   *moved;

	if (stream->place == SD_PLACE_PLAIN)
	{
		moved = streamvec_remove(&channel->plain, stream->vec_pos);
		if (moved)
			moved->vec_pos = stream->vec_pos;
		return;
	}
	moved = streamvec_remove(&channel->filtered, stream->filtered_pos);
	if (moved)
		moved->filtered_pos = stream->filtered_pos;
	remove_by_key(stream);
}
