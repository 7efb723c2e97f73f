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

	return link->stream == key->stream && link->consumer == key->consumer;
}

static SdLink *
find(SdStream *stream, SdConsumer *consumer)
{
	LinkKey		key = {stream, consumer};
	SdLink	   *first = &stream->first_link;
	SdHashNode *node;

	if (first->nsubscriptions > 0 && first->consumer == consumer)
		return first;
	/* the usual case, without a look anywhere else */
	if (dlist_is_empty(&stream->links) ||
		(stream->links.head.next == &first->stream_node &&
		 stream->links.head.prev == &first->stream_node))
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
	link->stream = stream;
	link->consumer = consumer;
	link->fresh = false;
	link->told = stream->told;
	dlist_init(&link->behind);
	dlist_init(&link->current);
	dlist_init(&link->paused);
	dlist_push_tail(&stream->links, &link->stream_node);
	if (consumer)
		dlist_push_tail(&consumer->links, &link->consumer_node);
	return link;
}

void
link_remove(SdLink *link)
{
	SdConsumer *consumer = link->consumer;
	FurtherLink *further;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(LWLockHeldByMeInMode(&link->stream->lock, LW_EXCLUSIVE));
	dlist_delete(&link->stream_node);
	if (consumer)
	{
		dlist_delete(&link->consumer_node);
		SpinLockAcquire(&consumer->mutex);
		if (link->ready)
			dlist_delete(&link->ready_node);
		link->ready = false;
		SpinLockRelease(&consumer->mutex);
	}
	if (link == &link->stream->first_link)
		return;
	further = (FurtherLink *) ((char *) link - offsetof(FurtherLink, link));
	sd_hash_remove(&sd_shared->links, &further->hnode);
	sd_free(further);
}
