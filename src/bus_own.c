/*-------------------------------------------------------------------------
 *
 * bus_own.c
 *	  This server's own events, from being sent until they are read again.
 *
 * A server reads its own events from the stream, too: where they stand among
 * those of others, and under which ids, is known to Redis alone.  What they say
 * is known here, so they need not be made from their text again.  Row images
 * stay what they were, of this server's own tables.
 *
 * An entry that has the right MAC, our name and a number is what we have sent
 * under that number, whatever was done to the stream: a number is given once.
 *
 * Copies in this process's memory, of the last events that were sent: up to a
 * limit, and only of small ones.  One that is not here any more (Redis holds up
 * its replies, another process has sent it) is read from its text, which makes
 * the same of it.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "bus_own.h"

#define MAX_EVENTS		16384
#define MAX_BYTES		((Size) 8 * 1024 * 1024)
#define MAX_EVENT_BYTES	((Size) 64 * 1024)

static MemoryContext context = NULL;
static SdEvent *events[MAX_EVENTS]; /* by number; NULL: not kept */
static uint64 first = 0;		/* of those that may be there */
static uint64 end = 0;			/* behind the last */
static Size bytes = 0;

static inline SdEvent **
place_of(uint64 number)
{
	return &events[number % MAX_EVENTS];
}

static void
drop_first(void)
{
	SdEvent   **place = place_of(first++);

	if (*place == NULL)
		return;
	bytes -= (*place)->size;
	pfree(*place);
	*place = NULL;
}

void
own_init(void)
{
	context = AllocSetContextCreate(TopMemoryContext, "subdispatch own events",
									ALLOCSET_DEFAULT_SIZES);
}

void
own_keep(uint64 number, const SdEvent *ev, const SdPosition *commit)
{
	SdEvent    *copy = NULL;

	/* sending has begun anew: what it was before is the same */
	if (number < end)
		return;
	while (first < end && (number > end || end - first == MAX_EVENTS ||
						   (ev != NULL && bytes + ev->size > MAX_BYTES)))
		drop_first();
	if (ev != NULL && ev->size <= MAX_EVENT_BYTES)
	{
		copy = MemoryContextAlloc(context, ev->size);
		memcpy(copy, ev, ev->size);
		copy->commit = *commit;
		bytes += copy->size;
	}
	if (first == end)
		first = number;
	*place_of(number) = copy;
	end = number + 1;
}

SdEvent *
own_find(uint64 number)
{
	return number >= first && number < end ? *place_of(number) : NULL;
}

bool
own_is_filling(void)
{
	return end - first > MAX_EVENTS / 4 || bytes > MAX_BYTES / 4;
}

void
own_forget(uint64 number)
{
	while (first < end && first <= number)
		drop_first();
}
