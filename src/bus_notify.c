/*-------------------------------------------------------------------------
 *
 * bus_notify.c
 *	  The notify bus: publish() sends an event by NOTIFY at commit.  Which
 *	  channels are received is set here, too; bus_listen.c receives.
 *
 * NOTIFY brings its own rules: one lock for all commits that notify, at most
 * 63 bytes for a channel and 7999 for a payload.  What does not fit is an error
 * at the call, never a cut.  Anybody can LISTEN and NOTIFY, so images of rows
 * never come this way.
 *
 * Takes no lock of ours; looks at grants.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "elsewhere.h"
#include "envelope.h"
#include "grants.h"

/* What Async_Notify() takes; async.c keeps its limits to itself. */
#define MAX_CHANNEL		(NAMEDATALEN - 1)
#define MAX_PAYLOAD		(BLCKSZ - NAMEDATALEN - 128 - 1)

/* ---- publishing ---- */

static void
check_channel(const char *channel)
{
	if (strlen(channel) > MAX_CHANNEL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("channel name is too long for the notify bus"),
				 errdetail("The name has %zu bytes; with subdispatch.event_bus = notify it may have %d.",
						   strlen(channel), MAX_CHANNEL),
				 errhint("Use a shorter name, or set subdispatch.event_bus to memory.")));
	if (!notify_names(channel) && grants_cover(channel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("channel \"%s\" cannot be used on the notify bus", channel),
				 errdetail("Privileges are granted on the channel, but with subdispatch.event_bus = notify any role can send to it and listen to it."),
				 errhint("Name the channel in subdispatch.listen_channels (a pattern is not enough), or set subdispatch.event_bus to memory.")));
	/* It would be sent, and no dispatcher would be there to receive it. */
	if (!notify_covers(channel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("channel \"%s\" is not listened on", channel),
				 errdetail("With subdispatch.event_bus = notify an event arrives only if subdispatch.listen_channels covers its channel."),
				 errhint("Add the channel to subdispatch.listen_channels, or set subdispatch.event_bus to memory.")));
}

static void
check_payload(Size len)
{
	if (len > MAX_PAYLOAD)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event is too large for the notify bus"),
				 errdetail("It takes %zu bytes; with subdispatch.event_bus = notify it has to be less than %d.",
						   len, MAX_PAYLOAD + 1),
				 errhint("Publish less, or set subdispatch.event_bus to memory.")));
}

/* The first line is malloc'd and must not leak when an error is raised. */
static void
append_envelope(StringInfo payload, const Envelope *env)
{
	char	   *line = envelope_format(env);

	if (line == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	PG_TRY();
	{
		appendStringInfoString(payload, line);
	}
	PG_FINALLY();
	{
		free(line);
	}
	PG_END_TRY();
}

/*
 * Sends the event when the current transaction commits.  Raises 54000 for what
 * NOTIFY cannot carry.
 */
void
notify_publish(const SdEvent *ev)
{
	static int64 seq = 0;
	SdDatabase *db = database_get(true, true);
	const char *channel = EVENT_CHANNEL(ev);
	Jsonb	   *data = (Jsonb *) ((char *) ev + ev->data);
	char		timestamp[MAXDATELEN + 1];
	const int	utc = 0;
	StringInfoData payload;
	Envelope	env = {0};

	Assert(ev->source == SD_SOURCE_PUBLISH);
	PreventCommandDuringRecovery("subdispatch.publish()");
	check_channel(channel);

	env.seq = ++seq;
	env.pid = MyProcPid;
	env.event_type = EVENT_STRING(ev, event_type);
	env.correlation_id = EVENT_STRING(ev, correlation_id);
	env.federation_id = EVENT_STRING(ev, federation_id);
	env.timestamp = JsonEncodeDateTime(timestamp, TimestampTzGetDatum(ev->timestamp),
									   TIMESTAMPTZOID, &utc);
	initStringInfo(&payload);
	append_envelope(&payload, &env);
	JsonbToCString(&payload, &data->root, VARSIZE(data));
	check_payload(payload.len);
	if (db != NULL)
	{
		elsewhere_begin(db);
		elsewhere_note(db);
	}
	Async_Notify(channel, payload.data);
	pfree(payload.data);
}

/* ---- subdispatch.listen_channels ---- */

/*
 * The next element of a comma-separated list, without the blanks around it;
 * false at the list's end.  *at starts at the list and moves on.
 */
static bool
next_element(const char **at, const char **element, Size *len)
{
	const char *p = *at;
	const char *end;

	if (p == NULL)
		return false;
	end = strchr(p, ',');
	*at = end ? end + 1 : NULL;
	if (end == NULL)
		end = p + strlen(p);
	while (p < end && isspace((unsigned char) *p))
		p++;
	while (end > p && isspace((unsigned char) end[-1]))
		end--;
	*element = p;
	*len = end - p;
	return true;
}

static bool
is_blank(const char *list)
{
	return strspn(list, " \t\r\n\v\f") == strlen(list);
}

static bool
element_names(const char *element, Size len, const char *channel)
{
	return strlen(channel) == len && memcmp(channel, element, len) == 0;
}

static bool
element_covers(const char *element, Size len, const char *channel)
{
	if (len == 1 && element[0] == '*')
		return true;
	if (len > 2 && element[len - 2] == '.' && element[len - 1] == '*')
		return strncmp(channel, element, len - 1) == 0;
	return element_names(element, len, channel);
}

/* Also false for what no NOTIFY can be sent to. */
static bool
list_covers(const char *channel, bool by_name)
{
	const char *at = subdispatch_listen_channels;
	const char *element;
	Size		len = strlen(channel);

	if (len == 0 || len > MAX_CHANNEL || at == NULL || is_blank(at))
		return false;
	while (next_element(&at, &element, &len))
		if (by_name ? element_names(element, len, channel) : element_covers(element, len, channel))
			return true;
	return false;
}

/*
 * Anybody can NOTIFY, so a channel on which somebody was granted a privilege
 * is LISTENed on only if that was asked for by its name.
 */
bool
notify_covers(const char *channel)
{
	if (!list_covers(channel, false))
		return false;
	return notify_names(channel) || !grants_cover(channel);
}

bool
notify_names(const char *channel)
{
	return list_covers(channel, true);
}

/* A name, a name followed by ".*", or "*". */
static bool
element_valid(const char *element, Size len)
{
	const char *star = memchr(element, '*', len);

	if (len == 0)
	{
		GUC_check_errdetail("A name in the list is empty.");
		return false;
	}
	if (star && len > 1 &&
		(star != element + len - 1 || len < 3 || star[-1] != '.'))
	{
		GUC_check_errdetail("\"%.*s\" is no name, no prefix such as \"orders.*\", and not \"*\".",
							(int) len, element);
		return false;
	}
	if (len - (star ? 1 : 0) > MAX_CHANNEL)
	{
		GUC_check_errdetail("\"%.*s\" has more than %d bytes, so NOTIFY cannot be sent to it.",
							(int) len, element, MAX_CHANNEL);
		return false;
	}
	return true;
}

bool
notify_check_listen_channels(char **newval, void **extra, int source)
{
	const char *at = *newval;
	const char *element;
	Size		len;

	if (at == NULL || is_blank(at))
		return true;
	while (next_element(&at, &element, &len))
		if (!element_valid(element, len))
			return false;
	return true;
}
