/*-------------------------------------------------------------------------
 *
 * bus_receive.c
 *	  How a notification becomes an event.
 *
 * Its way:
 *
 *	  1. Its sender commits; PostgreSQL signals each process that LISTENs, which
 *		 sets notifyInterruptPending and the latch.
 *	  2. notify_receive() calls ProcessNotifyInterrupt() between two
 *		 transactions.  That is meant for a session with a client, so it writes
 *		 protocol messages; ours go to methods of our own that do nothing but
 *		 copy them to memory.  They must not raise an error: delivery would make
 *		 it FATAL.
 *	  3. What was copied is made into events and linked like any other event,
 *		 in its order.  When the queue is full it stays here and is tried again
 *		 before anything newer is taken from PostgreSQL, which keeps the rest
 *		 (and in the end tells those who NOTIFY that its queue is full).
 *
 * What is copied and not linked yet is lost if the process dies; bus_listen.c
 * tells the gap.
 *
 * Locks: registry_lock in shared mode, for short looks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "libpq/libpq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "bus_listen.h"
#include "envelope.h"
#include "grants.h"

/* More than this is not copied at a time; the rest is told as a gap. */
#define MAX_RECEIVED	((Size) 256 * 1024 * 1024)
/* A larger buffer is given back when it is empty. */
#define KEEP_RECEIVED	((Size) 1024 * 1024)

/*
 * Notifications as they came: "received_next" is the next one to link.  Each
 * is the sender's pid, the channel and the payload, both with a NUL byte.
 * malloc'd, since the memory must be had without an error.
 */
static char *received = NULL;
static Size received_len = 0;
static Size received_size = 0;
static Size received_next = 0;
static bool received_loss = false;

/* ---- receiving: what PostgreSQL calls; must not raise an error ---- */

static bool
make_room(Size len)
{
	Size		size = Max(received_size, 8192);
	char	   *larger;

	if (received_len + len > MAX_RECEIVED)
		return false;
	while (size < received_len + len)
		size *= 2;
	if (size == received_size)
		return true;
	larger = realloc(received, size);
	if (larger == NULL)
		return false;
	received = larger;
	received_size = size;
	return true;
}

static int
receive_message(char type, const char *s, size_t len)
{
	/* NotificationResponse; nothing else is of interest */
	if (type != 'A')
		return 0;
	if (make_room(len))
	{
		memcpy(received + received_len, s, len);
		received_len += len;
	}
	else
		received_loss = true;
	return 0;
}

static void
receive_message_noblock(char type, const char *s, size_t len)
{
	(void) receive_message(type, s, len);
}

static void
comm_reset(void)
{
}

static int
comm_flush(void)
{
	return 0;
}

static bool
comm_is_send_pending(void)
{
	return false;
}

static const PQcommMethods comm_methods = {
	.comm_reset = comm_reset,
	.flush = comm_flush,
	.flush_if_writable = comm_flush,
	.is_send_pending = comm_is_send_pending,
	.putmessage = receive_message,
	.putmessage_noblock = receive_message_noblock,
};

/*
 * Messages to a client are converted to its encoding: there must be nothing to
 * convert, or delivery could fail.
 */
static void
fix_client_encoding(void)
{
	if (pg_get_client_encoding() != GetDatabaseEncoding())
		SetConfigOption("client_encoding", GetDatabaseEncodingName(),
						PGC_USERSET, PGC_S_OVERRIDE);
}

/* Has PostgreSQL deliver what is there.  Outside of a transaction. */
static void
take_from_postgres(void)
{
	Assert(!IsTransactionState());
	fix_client_encoding();
	SetCurrentStatementStartTimestamp();
	whereToSendOutput = DestRemote;
	PG_TRY();
	{
		ProcessNotifyInterrupt(false);
	}
	PG_FINALLY();
	{
		whereToSendOutput = DestNone;
	}
	PG_END_TRY();
	set_ps_display("");			/* it left "idle" there */
}

/* ---- a notification becomes an event ---- */

static Jsonb *
json_string(const char *s)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, s);
	v.val.string.len = strlen(s);
	return JsonbValueToJsonb(&v);
}

/* The time in an envelope; 0 unless it is one in the past of this server. */
static TimestampTz
parse_timestamp(const char *s)
{
	MemoryContext context = CurrentMemoryContext;
	volatile TimestampTz result = 0;

	if (s == NULL)
		return 0;
	PG_TRY();
	{
		result = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(s),
														 ObjectIdGetDatum(InvalidOid),
														 Int32GetDatum(-1)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return result > 0 && result <= GetCurrentTimestamp() ? result : 0;
}

static bool
valid_encoding(const char *s)
{
	return s == NULL || pg_verifymbstr(s, strlen(s), true);
}

/*
 * The event of an envelope, or NULL if the payload is none.  Anybody can send
 * one, so it is worth no more than a plain notification.
 */
static SdEvent *
event_of_envelope(const char *channel, const char *payload)
{
	char	   *strings = palloc(strlen(payload) + 4);
	const char *json;
	Envelope	env;
	Jsonb	   *data;
	SdEvent    *ev;
	TimestampTz published_at;

	if (!envelope_parse(payload, &env, strings, &json) ||
		!valid_encoding(env.event_type) ||
		!valid_encoding(env.correlation_id) ||
		!valid_encoding(env.federation_id))
		return NULL;
	data = event_parse_json(json);
	if (data == NULL)
		return NULL;
	ev = event_make(channel, env.event_type, env.correlation_id, env.federation_id,
					data, SD_SOURCE_PUBLISH);
	published_at = parse_timestamp(env.timestamp);
	if (published_at != 0)
		ev->timestamp = published_at;
	return ev;
}

/* An event made of whatever was sent; palloc'd. */
static SdEvent *
event_of(SdDispatcher *disp, const char *channel, const char *payload)
{
	Jsonb	   *data;

	if (envelope_looks_like(payload))
	{
		SdEvent    *ev = event_of_envelope(channel, payload);

		if (ev)
			return ev;
		stats_add(&disp->stats, SD_STAT_BAD_ENVELOPES, 1);
	}
	data = event_parse_json(payload);
	if (data == NULL)
		data = json_string(payload);
	return event_make(channel, NULL, NULL, NULL, data, SD_SOURCE_NOTIFY);
}

/*
 * The same, but whatever goes wrong costs this notification only: it is
 * logged and NULL returned.
 */
static SdEvent *
try_event_of(SdDispatcher *disp, const char *channel, const char *payload)
{
	MemoryContext context = CurrentMemoryContext;
	SdEvent    *volatile ev = NULL;

	PG_TRY();
	{
		ev = event_of(disp, channel, payload);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		errcontext("notification on channel \"%s\"", channel);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	return ev;
}

/* ---- linking what was received ---- */

/* False if there is no room for it now. */
static bool
link_one(SdDatabase *db, int dispatcher, int32 pid, const char *channel, const char *payload)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];
	SdEvent    *ev;

	if (listen_take_marker(db, dispatcher, pid, channel, payload))
		return true;
	/* Granted since it was sent, or since we were to UNLISTEN: see notify_covers(). */
	if (!notify_names(channel) && grants_cover(channel))
		ev = NULL;
	else
		ev = try_event_of(disp, channel, payload);
	if (ev == NULL)
	{
		listen_lose_one(channel);
		stats_add(&disp->stats, SD_STAT_EVENTS_GAPPED, 1);
	}
	else if (!publish_now(db, ev))
		return false;
	stats_add(&disp->stats, SD_STAT_NOTIFICATIONS_RECEIVED, 1);
	return true;
}

static void
forget_linked(void)
{
	if (received_next < received_len)
		return;
	received_next = received_len = 0;
	if (received_size > KEEP_RECEIVED)
	{
		free(received);
		received = NULL;
		received_size = 0;
	}
}

/*
 * Links what was received, until there is no room.  Returns whether anything
 * was.  In a transaction of its own, so that errors find one to abort.
 */
static bool
link_received(SdDatabase *db, int dispatcher)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context;
	bool		any = false;

	if (received_next == received_len)
		return false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch notification",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	while (received_next < received_len)
	{
		const char *at = received + received_next;
		const char *channel = at + sizeof(int32);
		const char *payload = channel + strlen(channel) + 1;
		int32		pid;

		memcpy(&pid, at, sizeof(pid));
		if (!link_one(db, dispatcher, (int32) pg_ntoh32(pid), channel, payload))
			break;
		any = true;
		received_next = payload + strlen(payload) + 1 - received;
		MemoryContextReset(context);
		CHECK_FOR_INTERRUPTS();
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	forget_linked();
	return any;
}

bool
notify_receive(SdDatabase *db, int dispatcher)
{
	bool		any = link_received(db, dispatcher);

	if (received_next < received_len || !notifyInterruptPending)
		return any;
	take_from_postgres();
	if (received_loss)
	{
		received_loss = false;
		listen_lose_all(dispatcher);
		ereport(LOG,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("subdispatch lost notifications for lack of memory"),
				 errdetail("The subscriptions concerned are told of a gap.")));
	}
	return link_received(db, dispatcher) || any;
}

bool
notify_backlog(void)
{
	return received_next < received_len;
}

/* Takes the place of a client.  Once, when the process has connected. */
void
receive_init(void)
{
	PqCommMethods = &comm_methods;
}
