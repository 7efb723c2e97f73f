/*-------------------------------------------------------------------------
 *
 * event_wire.c
 *	  An event between the servers of a group: what wire.c writes and wire_read.c
 *	  reads, to and from the form that events have in memory.
 *
 * ENCODING.  A text is in the encoding of the database that it comes from,
 * whose name it tells, and nothing is converted: what is not pure ASCII is
 * refused where the encoding is another one.
 *
 * SIZE.  Text can take several times what the event takes in memory.  So a
 * text is read up to MAX_GROWTH times subdispatch.max_event_size, and what came
 * of it must not be larger than that setting.
 *
 * ROW IMAGES.  Texts are made and read by image_text.c and image_received.c;
 * no type's code runs when an event is received.
 *
 * What these allocate is malloc'd, and freed whatever happens.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "common/int.h"
#include "common/string.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "event_image.h"
#include "event_wire.h"
#include "image_text.h"

#define MAX_GROWTH		8
#define MAX_TEXT		((Size) MaxAllocSize / 2)

static const char not_characters[] = "it has bytes that are no character in this database's encoding";
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

static bool
has_user_types(const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);

	for (uint32 i = 0; i < ev->natts; i++)
		if (atts[i].type >= FirstNormalObjectId)
			return true;
	return false;
}

/* What a type's output function raises; requests to stop are none of it. */
static const char *
recover(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
		PG_RE_THROW();
	FlushErrorState();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	return psprintf("a value cannot be written: %s", error->message);
}

static const char *
put_change(const SdEvent *ev, Wire *wire)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const char *volatile why = NULL;

	wire->source = "change";
	if (image_is_received(ev))
		return "it came from another server";
	if (!has_user_types(ev))
		return image_to_text(ev, wire);

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		why = image_to_text(ev, wire);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		why = recover(context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return why;
}

static void
put_data(const SdEvent *ev, Wire *wire)
{
	Jsonb	   *jsonb = (Jsonb *) ((char *) ev + ev->data);
	StringInfoData data;

	wire->source = ev->source == SD_SOURCE_NOTIFY ? "notify" : "publish";
	initStringInfo(&data);
	(void) JsonbToCString(&data, &jsonb->root, VARSIZE(jsonb));
	wire->data = data.data;
	wire->data_len = data.len;
}

char *
event_wire_out(const SdEvent *ev, const SdPosition *commit, Size *len, const char **why)
{
	Wire		wire = {0};
	char		system[32];
	char		lsn[32];

	*why = NULL;
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
	switch ((SdSource) ev->source)
	{
		case SD_SOURCE_PUBLISH:
		case SD_SOURCE_NOTIFY:
			put_data(ev, &wire);
			break;
		case SD_SOURCE_CHANGE:
			*why = put_change(ev, &wire);
			break;
	}
	return *why ? NULL : format(&wire, len);
}

/* ---- receiving ---- */

static bool
valid_text(const char *s, Size len)
{
	return pg_verifymbstr(s, (int) len, true);
}

/* What was decoded can be other characters than the text had. */
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
		return not_characters;
	if (channel_len == 0 || channel_len > SD_MAX_NAME || strcmp(wire->channel, SD_STAR) == 0)
		return "its channel is none that can be published on";
	if (pg_sub_s64_overflow(wire->timestamp, UNIX_EPOCH_US, &timestamp) ||
		!IS_VALID_TIMESTAMP(timestamp))
		return "its timestamp is out of range";
	return NULL;
}

static SdEvent *
make_published(const Wire *wire, SdSource source, const char **why)
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
					  wire->federation_id, data, source);
}

/* SD_OP_NONE if its images are not those of its operation. */
static SdOp
operation_of(const Wire *wire)
{
	static const struct
	{
		SdOp		op;
		bool		row;
		bool		old;
	}			ops[] = {
		{SD_OP_INSERT, true, false},
		{SD_OP_UPDATE, true, true},
		{SD_OP_DELETE, true, false},
		{SD_OP_TRUNCATE, false, false},
	};

	for (int i = 0; i < (int) lengthof(ops); i++)
		if (strcmp(wire->op, event_op_name(ops[i].op)) == 0 &&
			ops[i].row == (wire->row != NULL) && ops[i].old == (wire->old != NULL))
			return ops[i].op;
	return SD_OP_NONE;
}

static bool
valid_image(const Wire *wire)
{
	bool		valid = valid_string(wire->schema) && valid_string(wire->table);

	for (uint32 i = 0; valid && i < wire->ncolumns; i++)
		valid = valid_string(wire->columns[i].name) && valid_string(wire->columns[i].type) &&
			(wire->row == NULL || valid_string(wire->row[i])) &&
			(wire->old == NULL || valid_string(wire->old[i]));
	return valid;
}

static SdEvent *
make_changed(const Wire *wire, bool authenticated, const char **why)
{
	SdOp		op = operation_of(wire);

	*why = NULL;
	if (!authenticated)
		*why = "row images are believed only of servers of the group";
	else if (op == SD_OP_NONE)
		*why = "its operation is none, or has other images";
	else if (!valid_image(wire))
		*why = not_characters;
	return *why ? NULL : image_make_received(wire, op);
}

static SdEvent *
make_event(const Wire *wire, const char *text, Size len, bool authenticated,
		   const char **why)
{
	Size		limit = subdispatch_max_event_size;
	SdPosition	commit = {0};
	SdEvent    *ev = NULL;

	*why = check_head(wire, text, len);
	if (*why == NULL)
		*why = read_commit(wire, &commit);
	if (*why != NULL)
		return NULL;

	if (wire->data && strcmp(wire->source, "publish") == 0)
		ev = make_published(wire, SD_SOURCE_PUBLISH, why);
	else if (wire->data && strcmp(wire->source, "notify") == 0)
		ev = make_published(wire, SD_SOURCE_NOTIFY, why);
	else if (wire->op && strcmp(wire->source, "change") == 0)
	{
		ev = make_changed(wire, authenticated, why);
		/* still a text; what is made of it is measured by the dispatcher */
		limit *= MAX_GROWTH;
	}
	else
		*why = "its source is not one that can be received";
	if (ev == NULL)
		return NULL;
	if (ev->size > limit)
	{
		*why = too_large;
		return NULL;
	}
	ev->timestamp = wire->timestamp - UNIX_EPOCH_US;
	ev->commit = commit;
	return ev;
}

SdEvent *
event_wire_in(const char *text, Size len, bool authenticated, const char **why)
{
	Wire		wire;
	SdEvent    *volatile ev = NULL;

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
		ev = make_event(&wire, text, len, authenticated, why);
	}
	PG_FINALLY();
	{
		wire_free(&wire);
	}
	PG_END_TRY();
	return ev;
}
