/*-------------------------------------------------------------------------
 *
 * redis_entry.c
 *	  An entry of the stream in Redis: its fields, its MAC, its events.
 *
 * Anybody who can write to Redis can have put it there, so nothing is taken for
 * granted before the MAC was compared.  Even then what it says must make sense
 * here: another server may have other settings, another version, or grants
 * that this one has not.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "bus_own.h"
#include "event_wire.h"
#include "grants.h"
#include "redis_bus.h"
#include "redis_entry.h"

/* ---- the parts of an entry ---- */

/* "<id>-0"; both halves are found even if it is no id of ours. */
static bool
parse_id(const redisReply *reply, uint64 *id, uint64 *part)
{
	const char *dash;

	*id = *part = 0;
	if (reply->type != REDIS_REPLY_STRING)
		return false;
	*id = strtou64(reply->str, NULL, 10);
	dash = memchr(reply->str, '-', reply->len);
	if (dash == NULL)
		return false;
	*part = strtou64(dash + 1, NULL, 10);
	return strcmp(dash, "-0") == 0 &&
		bus_number(reply->str, (Size) (dash - reply->str), id);
}

static const char *const field_names = "pbm";

/* The fields' values, in the order of field_names; false if they are not so. */
static bool
parse_fields(const redisReply *reply, BusBytes *values)
{
	Size		n = strlen(field_names);

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 * n)
		return false;
	for (Size i = 0; i < n; i++)
	{
		const redisReply *name = reply->element[2 * i];
		const redisReply *value = reply->element[2 * i + 1];

		if (name->type != REDIS_REPLY_STRING || value->type != REDIS_REPLY_STRING ||
			name->len != 1 || name->str[0] != field_names[i])
			return false;
		values[i].data = value->str;
		values[i].len = value->len;
	}
	return true;
}

/* NULL if all is well, or what is wrong.  The item gets what all have in common. */
static const char *
parse_entry(const redisReply *reply, BatchReader *batch, uint64 after, Item *item)
{
	BusBytes	values[3];
	char		mac[BUS_MAC_HEX + 1];
	const char *why;

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2)
		return "it is no entry of a stream";
	if (!parse_id(reply->element[0], &item->id, &item->part) || item->id == 0)
		return "its id is none of an event";
	if (!parse_fields(reply->element[1], values) ||
		!bus_number(values[0].data, values[0].len, &item->prev) ||
		values[2].len != BUS_MAC_HEX)
		return "its fields are not those of events";
	bus_mac(values[1], bus_stream, subdispatch_bus_key, mac);
	if (!bus_mac_equal(mac, values[2].data))
		return "it was not made with our subdispatch.bus_key";
	why = batch_open(batch, values[1]);
	if (why == NULL && (item->id < batch->count || item->id <= after))
		why = "its id is none of its events";
	return why;
}

/* ---- an event of it ---- */

static bool
is_for_somebody(const BusEntry *entry)
{
	return database_maybe_subscribed(bus_db, channel_hash(entry->channel.data, entry->channel.len));
}

/* As for what is received here: anybody there may have sent it. */
static bool
may_come_by_notify(const char *channel)
{
	return notify_names(channel) || !grants_cover(channel);
}

/* What keeps it from being dispatched here, or NULL. */
static const char *
wrong_with(const BusEntry *entry, const SdEvent *ev)
{
	if (ev->channel_len != entry->channel.len ||
		memcmp(EVENT_CHANNEL(ev), entry->channel.data, entry->channel.len) != 0)
		return "it is about another channel than it says";
	if (ev->source == SD_SOURCE_NOTIFY && !may_come_by_notify(EVENT_CHANNEL(ev)))
		return "it was sent by NOTIFY, and there are grants on the channel here";
	if (SD_BLOCK_HEADER + ev->size > (Size) subdispatch_event_queue_size * 1024)
		return "it is larger than subdispatch.event_queue_size";
	return NULL;
}

bool
entry_is_own(const BusEntry *entry)
{
	return memcmp(entry->sender.data, bus_self()->sender, SD_SENDER_LEN) == 0;
}

/*
 * The event of a text.  What is needed besides it is much more than itself, so
 * that lies where the memory is used again for the next one.
 */
static SdEvent *
make_of_text(BusBytes text, const char **why)
{
	static MemoryContext scratch = NULL;
	MemoryContext old = CurrentMemoryContext;
	SdEvent    *ev;

	if (scratch == NULL)
		scratch = AllocSetContextCreate(TopMemoryContext, "subdispatch text of an event",
										ALLOCSET_DEFAULT_SIZES);
	/* also of one that an error ended */
	MemoryContextReset(scratch);
	MemoryContextSwitchTo(scratch);
	ev = event_wire_in(text.data, text.len, true, why);
	MemoryContextSwitchTo(old);
	if (ev == NULL)
	{
		*why = pstrdup(*why);
		return NULL;
	}
	return memcpy(MemoryContextAllocHuge(old, ev->size), ev, ev->size);
}

/* As we have sent it, if we have and still know it; or made of its text. */
static SdEvent *
make_event(const BusEntry *entry, const char **why)
{
	SdEvent    *ev = NULL;

	if (entry_is_own(entry))
		ev = own_find(entry->number);
	return ev ? ev : make_of_text(entry->text, why);
}

/* Whatever goes wrong costs this event only; *why then. */
static SdEvent *
event_of(const BusEntry *entry, SdPosition *commit, const char **why)
{
	MemoryContext context = CurrentMemoryContext;
	SdEvent    *volatile ev = NULL;
	const char *volatile reason = NULL;

	PG_TRY();
	{
		const char *r = NULL;
		SdEvent    *e = make_event(entry, &r);

		if (e != NULL)
		{
			*commit = e->commit;
			r = wrong_with(entry, e);
		}
		ev = r == NULL ? e : NULL;
		reason = r;
	}
	PG_CATCH();
	{
		reason = bus_event_error(context);
		ev = NULL;
	}
	PG_END_TRY();
	*why = reason;
	return ev;
}

int
entry_check(const redisReply *reply, uint64 after, Item *items)
{
	BatchReader batch;
	Item		common = {0};
	uint64		id;
	int			n = 0;

	common.why = parse_entry(reply, &batch, after, &common);
	if (common.why != NULL)
	{
		common.verdict = ENTRY_BAD;
		common.last = true;
		items[0] = common;
		return 1;
	}
	id = common.id - batch.count;
	for (uint32 i = 0; i < batch.count; i++)
	{
		Item	   *item = &items[n];

		*item = common;
		item->id = ++id;
		if (i > 0)
			item->prev = id - 1;
		item->last = i == batch.count - 1;
		batch_next(&batch, &item->entry);
		if (id > after)
			n++;
	}
	return n;
}

void
entry_gap_channels(const BusEntry *entry, uint32 *bits)
{
	BusGap		gap = {0};
	uint32		bit;

	if (entry->kind == BUS_GAP)
		gap_read(&gap, entry->text);
	else
	{
		bit = channel_hash(entry->channel.data, entry->channel.len) % SD_SKETCH_SIZE;
		gap.channels[bit / 32] |= UINT32_C(1) << (bit % 32);
	}
	memcpy(bits, gap.channels, sizeof(gap.channels));
}

void
entry_read_event(Item *item)
{
	item->ev = event_of(&item->entry, &item->commit, &item->why);
	item->unusable = item->ev == NULL;
}

static void
examine_gap(Item *item, const ReplayPoint *point)
{
	BusGap		gap;

	if (!point->recovery)
		return;
	gap_read(&gap, item->entry.text);
	item->commit = gap.commit;
	item->pending = replay_state(point, &item->commit) == REPLAY_PENDING;
}

static void
examine(Item *item, const ReplayPoint *point)
{
	bool		wanted;

	if (item->verdict == ENTRY_BAD)
		return;
	if (item->entry.kind != BUS_EVENT)
	{
		examine_gap(item, point);
		return;
	}
	wanted = is_for_somebody(&item->entry);
	/* on a replica only the event itself tells whether it may come to be */
	if (!wanted && !point->recovery)
		return;
	entry_read_event(item);
	item->pending = replay_state(point, &item->commit) == REPLAY_PENDING;
	if (item->ev == NULL)
	{
		item->unusable = wanted || item->pending;
		if (!item->unusable)
			item->why = NULL;
		return;
	}
	if (!wanted && !item->pending)
		item->ev = NULL;
}

int
entry_examine(const redisReply *reply, const ReplayPoint *point, uint64 after, Item *items)
{
	int			n = entry_check(reply, after, items);

	for (int i = 0; i < n; i++)
	{
		examine(&items[i], point);
		CHECK_FOR_INTERRUPTS();
	}
	return n;
}
