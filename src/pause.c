/*-------------------------------------------------------------------------
 *
 * pause.c
 *	  Connections whose client is too slow: pause() and resume().
 *
 * A paused subscription stands in a list of its link's, or of its consumer's if
 * it has ended, that polling never looks at.  In its stream nothing changes:
 * responses are queued as for anybody who is behind, and its limits apply.
 *
 * What is said of a connection holds for the subscriptions that it gets later.
 * It is paused as a whole or not, and its exceptions name the consumers for
 * which it is the other way round.
 *
 * Locks: registry_lock exclusive, and a stream's lock inside of it, for
 * PAUSES_PER_LOCK subscriptions at a time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "registry.h"

#define PAUSES_PER_LOCK	32

typedef struct SdPauseException
{
	dlist_node	node;			/* in SdConnection->pause_exceptions */
	char		consumer[FLEXIBLE_ARRAY_MEMBER];
} SdPauseException;

/* ---- what is said of a connection; registry_lock held exclusively ---- */

static SdPauseException *
find_exception(SdConnection *connection, const char *consumer)
{
	dlist_iter	iter;

	dlist_foreach(iter, &connection->pause_exceptions)
	{
		SdPauseException *e = dlist_container(SdPauseException, node, iter.cur);

		if (strcmp(e->consumer, consumer) == 0)
			return e;
	}
	return NULL;
}

bool
pause_applies(SdConnection *connection, const SdConsumer *consumer)
{
	if (connection == NULL)
		return false;
	if (consumer && !dlist_is_empty(&connection->pause_exceptions) &&
		find_exception(connection, consumer->name))
		return !connection->paused;
	return connection->paused;
}

static void
remove_exception(SdPauseException *e)
{
	dlist_delete(&e->node);
	sd_free(e);
}

void
pause_forget(SdConnection *connection)
{
	while (!dlist_is_empty(&connection->pause_exceptions))
		remove_exception(dlist_head_element(SdPauseException, node,
											&connection->pause_exceptions));
}

/* False: no memory, nothing has changed. */
static bool
set_connection(SdConnection *connection, const char *consumer, bool paused)
{
	SdPauseException *e;

	if (consumer == NULL)
	{
		pause_forget(connection);
		connection->paused = paused;
		return true;
	}
	e = find_exception(connection, consumer);
	if (paused == connection->paused)
	{
		if (e)
			remove_exception(e);
		return true;
	}
	if (e)
		return true;
	e = sd_alloc(SD_MEM_SUBSCRIPTION, offsetof(SdPauseException, consumer) + strlen(consumer) + 1);
	if (e == NULL)
		return false;
	strcpy(e->consumer, consumer);
	dlist_push_tail(&connection->pause_exceptions, &e->node);
	return true;
}

/* ---- its subscriptions ---- */

/* One that has ended: its last message, and what is queued before it. */
static void
set_ended(SdSubscription *sub, bool paused)
{
	SdConsumer *consumer = sub_consumer(sub);

	if (consumer == NULL)
		return;
	sd_list_remove(paused ? &consumer->ended : &consumer->paused_ended, &sub->node);
	if (paused)
	{
		sd_list_push_tail(&consumer->paused_ended, &sub->node);
		pg_atomic_fetch_sub_u32(&consumer->nended, 1);
		return;
	}
	sd_list_push_tail(&consumer->ended, &sub->node);
	pg_atomic_fetch_add_u32(&consumer->nended, 1);
	sd_wake(consumer);
}

static void
set_live(SdSubscription *sub, bool paused)
{
	SdLink	   *link = sub_link(sub);

	link_settle(link);
	link_leave(link, sub, !paused);
	if (paused)
		sd_list_push_tail(&link->paused, &sub->node);
	else if (stream_drained(sub_stream(sub), sub))
		sd_list_push_tail(&link->current, &sub->node);
	else
	{
		sd_list_push_tail(&link->behind, &sub->node);
		stream_link_ready(link);
	}
}

static void
set_subscription(SdSubscription *sub, bool paused)
{
	SdStream   *stream = sub_stream(sub);

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	sub->paused = paused;
	if (sub->structurally_ended)
		set_ended(sub, paused);
	else
		set_live(sub, paused);
	LWLockRelease(&stream->lock);
}

static bool
concerns(const SdSubscription *sub, const char *consumer)
{
	return consumer == NULL || (sub_consumer(sub) && strcmp(sub_consumer(sub)->name, consumer) == 0);
}

typedef enum PauseResult
{
	PAUSE_DONE,
	PAUSE_MORE,
	PAUSE_NO_MEMORY
} PauseResult;

/* What a call wants, and how far it is. */
typedef struct Pause
{
	Oid			owner;
	const char *connection_id;
	const char *consumer;		/* NULL: of all */
	bool		paused;
	bool		said;			/* of the connection */
	uint32		left;			/* members to be looked at */
	int64		live;
} Pause;

/*
 * Some of the members.  Each becomes what is said of the connection now, which
 * somebody else may have changed in the meantime.
 */
static PauseResult
set_some(Pause *p)
{
	SdConnection *connection = registry_find_connection(p->owner, p->connection_id);

	p->left = connection ? Min(p->left, connection->nmembers) : 0;
	for (int i = 0; i < PAUSES_PER_LOCK && p->left > 0; i++)
	{
		SdSubscription *sub = registry_next_member(connection);
		bool		paused;

		p->left--;
		if (!concerns(sub, p->consumer))
			continue;
		if (!p->said && !set_connection(connection, p->consumer, p->paused))
			return PAUSE_NO_MEMORY;
		p->said = true;
		if (!sub->structurally_ended)
			p->live++;
		paused = pause_applies(connection, sub_consumer(sub));
		if (sub->paused != paused)
			set_subscription(sub, paused);
	}
	return p->left > 0 ? PAUSE_MORE : PAUSE_DONE;
}

int64
connection_pause(Oid owner, const char *connection_id, const char *consumer, bool paused)
{
	Pause		p = {owner, connection_id, consumer, paused, .left = PG_UINT32_MAX};
	PauseResult result;

	shmem_attach();
	do
	{
		registry_lock_exclusive();
		result = set_some(&p);
		registry_unlock();
	} while (result == PAUSE_MORE);
	if (result == PAUSE_NO_MEMORY)
		sd_out_of_shared_memory();
	return p.live;
}
