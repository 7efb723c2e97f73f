/*-------------------------------------------------------------------------
 *
 * event_wire.c
 *	  An event between the servers of a group: what wire.c writes and reads, to
 *	  and from the form that events have in memory.
 *
 * ENCODING.  A text is in the encoding of the database that it comes from,
 * whose name it tells, and nothing is converted: what is not pure ASCII is
 * refused where the encoding is another one.
 *
 * SIZE.  Text can take several times what the event takes in memory.  So a
 * text is read up to MAX_GROWTH times subdispatch.max_event_size, and what came
 * of it must not be larger than that setting.
 *
 * What json-c allocates is malloc'd, and freed whatever happens.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "common/string.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "event_wire.h"
#include "wire.h"

#define MAX_GROWTH		8
#define MAX_TEXT		((Size) MaxAllocSize / 2)

static const char too_large[] = "it is larger than subdispatch.max_event_size allows";

/* ---- sending ---- */

/* What wire_format() makes of it, palloc'd. */
static char *
format(const Wire *wire, Size *len)
{
	char	   *text = wire_format(wire, len);
	char	   *volatile copy = NULL;

	if (text == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	PG_TRY();
	{
		copy = MemoryContextAllocHuge(CurrentMemoryContext, *len + 1);
		memcpy(copy, text, *len + 1);
	}
	PG_FINALLY();
	{
		free(text);
	}
	PG_END_TRY();
	return copy;
}

char *
event_wire_out(const SdEvent *ev, const SdPosition *commit, Size *len, const char **why)
{
	Wire		wire = {0};
	char		system[32];
	char		lsn[32];
	StringInfoData data;
	char	   *text;

	wire.encoding = GetDatabaseEncodingName();
	wire.channel = EVENT_CHANNEL(ev);
	wire.event_type = EVENT_STRING(ev, event_type);
	wire.correlation_id = EVENT_STRING(ev, correlation_id);
	wire.federation_id = EVENT_STRING(ev, federation_id);
	wire.timestamp = ev->timestamp + UNIX_EPOCH_US;
	if (!XLogRecPtrIsInvalid(commit->lsn))
	{
		snprintf(system, sizeof(system), UINT64_FORMAT, commit->system);
		snprintf(lsn, sizeof(lsn), "%X/%X", LSN_FORMAT_ARGS(commit->lsn));
		wire.system = system;
		wire.lsn = lsn;
		wire.timeline = commit->timeline;
	}
	if (ev->source != SD_SOURCE_PUBLISH)
	{
		*why = "only events of publish() can be sent";
		return NULL;
	}
	wire.source = "publish";
	initStringInfo(&data);
	(void) JsonbToCString(&data, &((Jsonb *) ((char *) ev + ev->data))->root, ev->size);
	wire.data = data.data;
	wire.data_len = data.len;
	text = format(&wire, len);
	pfree(data.data);
	return text;
}

/* ---- receiving ---- */

static bool
valid_text(const char *s, Size len)
{
	return pg_verifymbstr(s, (int) len, true);
}

/* What json-c decoded can be other characters than the text had. */
static bool
valid_string(const char *s)
{
	return s == NULL || valid_text(s, strlen(s));
}

/* All of a string as a number without a sign; false if it is none. */
static bool
parse_uint64(const char *s, uint64 *value)
{
	char	   *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	*value = strtou64(s, &end, 10);
	return errno == 0 && *end == '\0';
}

/* "16/B374D848" */
static bool
parse_lsn(const char *s, XLogRecPtr *lsn)
{
	Size		high = strspn(s, "0123456789abcdefABCDEF");
	Size		low;

	if (high < 1 || high > 8 || s[high] != '/')
		return false;
	low = strspn(s + high + 1, "0123456789abcdefABCDEF");
	if (low < 1 || low > 8 || s[high + 1 + low] != '\0')
		return false;
	*lsn = ((uint64) strtoul(s, NULL, 16) << 32) | (uint64) strtoul(s + high + 1, NULL, 16);
	return true;
}

static const char *
read_commit(const Wire *wire, SdPosition *commit)
{
	if (wire->lsn == NULL)
		return NULL;
	if (!parse_uint64(wire->system, &commit->system) || !parse_lsn(wire->lsn, &commit->lsn))
		return "its commit's position is not one";
	commit->timeline = (TimeLineID) wire->timeline;
	return NULL;
}

static const char *
check_head(const Wire *wire, const char *text, Size len)
{
	Size		channel_len = strlen(wire->channel);
	int64		timestamp;

	if (strcmp(wire->encoding, GetDatabaseEncodingName()) != 0 && !pg_is_ascii(text))
		return "it is in another encoding than this database";
	if (!valid_text(text, len) || !valid_string(wire->channel) ||
		!valid_string(wire->event_type) || !valid_string(wire->correlation_id) ||
		!valid_string(wire->federation_id))
		return "it has bytes that are no character in this database's encoding";
	if (channel_len == 0 || channel_len > SD_MAX_NAME || strcmp(wire->channel, SD_STAR) == 0)
		return "its channel is none that can be published on";
	if (pg_sub_s64_overflow(wire->timestamp, UNIX_EPOCH_US, &timestamp) ||
		!IS_VALID_TIMESTAMP(timestamp))
		return "its timestamp is out of range";
	return NULL;
}

static SdEvent *
make_published(const Wire *wire, const char **why)
{
	char	   *json = pnstrdup(wire->data, wire->data_len);
	Jsonb	   *data = event_parse_json(json);

	pfree(json);
	if (data == NULL)
	{
		*why = "its data is not JSON that jsonb can hold";
		return NULL;
	}
	return event_make(wire->channel, wire->event_type, wire->correlation_id,
					  wire->federation_id, data, SD_SOURCE_PUBLISH);
}

static SdEvent *
make_event(const Wire *wire, const char *text, Size len, SdPosition *commit, const char **why)
{
	SdEvent    *ev;

	*why = check_head(wire, text, len);
	if (*why == NULL)
		*why = read_commit(wire, commit);
	if (*why != NULL)
		return NULL;
	if (wire->data == NULL || strcmp(wire->source, "publish") != 0)
	{
		*why = "its source is not one that can be received";
		return NULL;
	}
	ev = make_published(wire, why);
	if (ev == NULL)
		return NULL;
	if (ev->size > (Size) subdispatch_max_event_size)
	{
		*why = too_large;
		return NULL;
	}
	ev->timestamp = wire->timestamp - UNIX_EPOCH_US;
	return ev;
}

SdEvent *
event_wire_in(const char *text, Size len, bool authenticated, SdPosition *commit,
			  const char **why)
{
	Wire		wire;
	SdEvent    *volatile ev = NULL;

	memset(commit, 0, sizeof(SdPosition));
	if (len > Min((Size) subdispatch_max_event_size * MAX_GROWTH, MAX_TEXT))
	{
		*why = too_large;
		return NULL;
	}
	*why = wire_parse(text, len, &wire);
	if (*why != NULL)
		return NULL;
	PG_TRY();
	{
		ev = make_event(&wire, text, len, commit, why);
	}
	PG_FINALLY();
	{
		wire_free(&wire);
	}
	PG_END_TRY();
	return ev;
}
