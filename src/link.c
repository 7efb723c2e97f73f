/*-------------------------------------------------------------------------
 *
 * link.c
 *	  Links: what a consumer has in a stream.
 *
 * A stream may have very many consumers and a consumer very many streams, so
 * neither's list is searched.  Most streams have one link, which is part of
 * them; the others stand in a hash table by stream and consumer.
 *
 * Locks: registry_lock exclusive and the stream's lock, held by the caller; the
 * consumer's mutex.  No errors are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "registry.h"

/* One that is not its stream's first. */
typedef struct FurtherLink
{
	SdHashNode	hnode;
	SdLink		link;
} FurtherLink;

typedef struct LinkKey
{
	SdStream   *stream;
	SdConsumer *consumer;
} LinkKey;

static uint32
link_hash(const LinkKey *key)
{
	return sd_hash_bytes(key, sizeof(LinkKey), 0);
}

static bool
link_match(const SdHashNode *node, const void *k)
{
	const SdLink *link = &((const FurtherLink *) node)->link;
	const LinkKey *key = k;

	return link_stream(link) == key->stream && link_consumer(link) == key->consumer;
}

static SdLink *
find(SdStream *stream, SdConsumer *consumer)
{
	LinkKey		key = {stream, consumer};
	SdLink	   *first = &stream->first_link;
	SdHashNode *node;

	if (first->nsubscriptions > 0 && link_consumer(first) == consumer)
		return first;
	/* the usual case, without a look anywhere else */
	if (sd_list_is_empty(&stream->links) ||
		(sd_list_first(&stream->links) == &first->stream_node &&
		 sd_list_next(&stream->links, &first->stream_node) == NULL))
		return NULL;
	node = sd_hash_find(&sd_shared->links, link_hash(&key), link_match, &key);
	return node ? &((FurtherLink *) node)->link : NULL;
}

static SdLink *
make_further(SdStream *stream, SdConsumer *consumer)
{
	LinkKey		key = {stream, consumer};
	FurtherLink *further = sd_alloc(SD_MEM_SUBSCRIPTION, sizeof(FurtherLink));

	if (further == NULL)
		return NULL;
	sd_hash_insert(&sd_shared->links, &further->hnode, link_hash(&key));
	return &further->link;
}

SdLink *
link_get(SdStream *stream, SdConsumer *consumer)
{
	SdLink	   *link = find(stream, consumer);

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	if (link)
		return link;
	link = &stream->first_link;
	if (link->nsubscriptions > 0)
		link = make_further(stream, consumer);
	if (link == NULL)
		return NULL;
	memset(link, 0, sizeof(SdLink));
	link->stream = sd_ref(stream);
	link->consumer = sd_ref(consumer);
	link->told = stream->told;
	sd_list_push_tail(&stream->links, &link->stream_node);
	if (consumer)
		sd_list_push_tail(&consumer->links, &link->consumer_node);
	return link;
}

void
link_remove(SdLink *link)
{
	SdConsumer *consumer = link_consumer(link);
	FurtherLink *further;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(LWLockHeldByMeInMode(&link_stream(link)->lock, LW_EXCLUSIVE));
	sd_list_remove(&link_stream(link)->links, &link->stream_node);
	if (consumer)
	{
		sd_list_remove(&consumer->links, &link->consumer_node);
		SpinLockAcquire(&consumer->mutex);
		if (link->ready)
		{
			sd_list_remove(&consumer->ready, &link->ready_node);
			consumer->nready--;
		}
		link->ready = false;
		SpinLockRelease(&consumer->mutex);
	}
	if (link == &link_stream(link)->first_link)
		return;
	further = (FurtherLink *) ((char *) link - offsetof(FurtherLink, link));
	sd_hash_remove(&sd_shared->links, &further->hnode);
	sd_free(further);
}
