/*-------------------------------------------------------------------------
 *
 * redis_progress.c
 *	  How far the stream in Redis was read, and what of it is new.
 *
 * The steps from one entry to the next: redis_read.c tells what is checked, and
 * why.  They change nothing but the progress and the item that they are given, so
 * they can be tried on a copy first.  Cannot fail.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "redis_progress.h"

static SdBusSender *
find_sender(SdBusProgress *progress, const char *name)
{
	for (int i = 0; i < SD_BUS_SENDERS; i++)
		if (memcmp(progress->senders[i].name, name, SD_SENDER_LEN) == 0)
			return &progress->senders[i];
	return NULL;
}

/*
 * A place for a new sender: a free one, or that of the one who was silent the
 * longest.  What that one sent is then too old for those who are not known.
 */
SdBusSender *
progress_add_sender(SdBusProgress *progress, const char *name)
{
	SdBusSender *place = &progress->senders[0];

	for (int i = 0; i < SD_BUS_SENDERS && place->name[0] != '\0'; i++)
		if (progress->senders[i].name[0] == '\0' ||
			progress->senders[i].sent_at < place->sent_at)
			place = &progress->senders[i];
	if (place->name[0] != '\0')
		progress->oldest_sent = Max(progress->oldest_sent, place->sent_at);
	memcpy(place->name, name, SD_SENDER_LEN);
	place->name[SD_SENDER_LEN] = '\0';
	return place;
}

void
progress_set(SdBusProgress *progress, uint64 id, uint64 part)
{
	progress->position = id;
	progress->part = part;
}

/*
 * Moves past an event: decides whether it is new, and whether anything before
 * it is missing.
 */
void
progress_advance(SdBusProgress *progress, Item *item)
{
	const BusEntry *entry = &item->entry;
	SdBusSender *sender;

	if (item->verdict == ENTRY_BAD || item->id <= progress->position)
	{
		/* whatever its id is, it must not come again */
		item->verdict = ENTRY_BAD;
		if (item->id > progress->position)
			progress_set(progress, item->id, item->part);
		else if (item->id == progress->position)
			progress->part = Max(progress->part, item->part);
		return;
	}
	progress_set(progress, item->id, 0);
	if (unlikely(item->id <= progress->chain))
	{
		/* a replica looks back; see redis_read.c */
		item->verdict = item->pending ? ENTRY_GOOD : ENTRY_OLD;
		return;
	}
	sender = find_sender(progress, entry->sender.data);
	if (sender ? entry->number <= sender->number : entry->sent_at <= progress->oldest_sent)
	{
		item->verdict = ENTRY_REPEATED;
		return;
	}
	item->verdict = ENTRY_GOOD;
	item->gap = item->prev != progress->chain ||
		(sender != NULL && entry->number != sender->number + 1);
	progress->chain = item->id;
	if (sender == NULL)
		sender = progress_add_sender(progress, entry->sender.data);
	sender->number = entry->number;
	sender->sent_at = Max(sender->sent_at, entry->sent_at);
}
