/*-------------------------------------------------------------------------
 *
 * event.c
 *	  An event in one contiguous piece: building it, and the envelope in which
 *	  a resolver sees it.
 *
 * An event travels through shared memory, and a change's images may be read
 * when the table has been altered or dropped.  So it has no pointers, nothing
 * that lies out of line (TOAST), and brings the description of its columns.
 *
 * What an image looks like in JSON is event_image.c's work, done by the
 * dispatcher: it costs the writer nothing and depends on none of the writer's
 * settings.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "database.h"
#include "event.h"
#include "event_build.h"
#include "event_image.h"
#include "json_compose.h"

/* ---- building ---- */

static uint32
put_aligned(SdEvent *ev, uint32 *at, const void *data, Size size)
{
	uint32		offset = MAXALIGN(*at);

	memcpy((char *) ev + offset, data, size);
	*at = offset + size;
	return offset;
}

SdEvent *
event_make_head(Size size, const char *channel, SdSource source, uint32 *at)
{
	SdEvent    *ev = palloc0(size);
	uint32		len = strlen(channel);

	ev->size = size;
	ev->source = source;
	ev->op = SD_OP_NONE;
	ev->own_channel = true;
	ev->timestamp = GetCurrentTimestamp();
	ev->channel_hash = channel_hash(channel, len);
	ev->channel_len = len;
	*at = sizeof(SdEvent);
	ev->channel = event_put_string(ev, at, channel);
	return ev;
}

void
event_check_size(Size size)
{
	if (size <= (Size) subdispatch_max_event_size)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("event is too large to be published"),
			 errdetail("The event takes %zu bytes, the limit is %d bytes.",
					   size, subdispatch_max_event_size),
			 errhint("Publish a reference to the data instead, or increase subdispatch.max_event_size.")));
}

/*
 * An event of publish() or NOTIFY.  The caller has seen to it that the
 * arguments together are of a sane size.  channel is not NULL, the other
 * strings may be; data is detoasted.
 */
SdEvent *
event_make(const char *channel, const char *event_type, const char *correlation_id,
		   const char *federation_id, Jsonb *data, SdSource source)
{
	Size		size = sizeof(SdEvent);
	SdEvent    *ev;
	uint32		at;

	Assert(source != SD_SOURCE_CHANGE);
	size += event_string_size(channel) + event_string_size(event_type);
	size += event_string_size(correlation_id) + event_string_size(federation_id);
	size = MAXALIGN(MAXALIGN(size) + VARSIZE(data));

	ev = event_make_head(size, channel, source, &at);
	ev->event_type = event_put_string(ev, &at, event_type);
	ev->correlation_id = event_put_string(ev, &at, correlation_id);
	ev->federation_id = event_put_string(ev, &at, federation_id);
	ev->data = put_aligned(ev, &at, data, VARSIZE(data));
	Assert(MAXALIGN(at) == size);
	return ev;
}

void
event_copy_place(SdEvent *to, const SdEvent *from)
{
	to->ordinal = from->ordinal;
	to->star_copy = from->star_copy;
	to->own_channel = from->own_channel;
	to->second = from->second;
	to->timestamp = from->timestamp;
	to->commit = from->commit;
}

/* Only memory is allocated in between, so there is nothing else to undo. */
Jsonb *
event_parse_json(const char *json)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	PG_TRY();
	{
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
	}
	PG_CATCH();
	{
		int			category;

		MemoryContextSwitchTo(context);
		category = ERRCODE_TO_CATEGORY(geterrcode());
		if (category != ERRCODE_DATA_EXCEPTION && category != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

/* ---- row images ---- */

SdEventTable *
event_table_of(Oid relid, char *schema_name, char *table_name, TupleDesc desc)
{
	SdEventTable *table = palloc(sizeof(SdEventTable));

	table->relid = relid;
	table->schema_name = schema_name;
	table->table_name = table_name;
	table->desc = desc;
	table->natts = desc->natts;
	table->atts = palloc0(sizeof(SdEventAtt) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		SdEventAtt *to = &table->atts[i];

		to->type = att->attisdropped ? InvalidOid : att->atttypid;
		to->typmod = att->atttypmod;
		to->collation = att->attcollation;
		to->shape = event_type_shape(to->type);
		to->len = att->attlen;
		to->align = att->attalign;
		to->byval = att->attbyval;
		to->name = att->attname;
	}
	return table;
}

/* The table as it is now: copies, in the current memory context. */
SdEventTable *
event_table_make(Relation rel)
{
	/* with constraints, for they hold the values of columns added later */
	return event_table_of(RelationGetRelid(rel),
						  get_namespace_name(RelationGetNamespace(rel)),
						  pstrdup(RelationGetRelationName(rel)),
						  CreateTupleDescCopyConstr(RelationGetDescr(rel)));
}

/*
 * What values out of line would add, so that a giant row is refused before it
 * is fetched and unpacked.
 */
static Size
external_size(HeapTuple tuple, TupleDesc desc)
{
	Datum	   *values = palloc(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);
	Size		size = 0;

	heap_deform_tuple(tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		if (nulls[i] || TupleDescAttr(desc, i)->attlen != -1)
			continue;
		if (VARATT_IS_EXTERNAL(DatumGetPointer(values[i])))
			size += toast_raw_datum_size(values[i]);
	}
	pfree(values);
	pfree(nulls);
	return size;
}

/*
 * The tuple as a datum with nothing out of line, and with the values of
 * columns that were added to the table after it was written.  It is an
 * anonymous row: its columns are those that travel with it, not those of the
 * table's row type.  (Newer minor releases keep a row type's version in the
 * typmod and t_ctid of a datum; this one has none.)
 */
static HeapTupleHeader
make_image(HeapTuple tuple, TupleDesc desc)
{
	HeapTupleHeader image;

	if (HeapTupleHeaderGetNatts(tuple->t_data) < desc->natts &&
		desc->constr && desc->constr->missing)
		tuple = heap_expand_tuple(tuple, desc);
	if (HeapTupleHasExternal(tuple))
		event_check_size(sizeof(SdEvent) + tuple->t_len + external_size(tuple, desc));
	else
		event_check_size(sizeof(SdEvent) + tuple->t_len);
	image = (HeapTupleHeader) DatumGetPointer(heap_copy_tuple_as_datum(tuple, desc));
	HeapTupleHeaderSetTypeId(image, RECORDOID);
	HeapTupleHeaderSetTypMod(image, -1);
	ItemPointerSetInvalid(&image->t_ctid);
	return image;
}

static inline Size
image_size(HeapTupleHeader image)
{
	return image ? HeapTupleHeaderGetDatumLength(image) : 0;
}

/*
 * An event of publish_change().  row and old may be NULL; both have the
 * table's layout.  Fetches values that are out of line.
 */
SdEvent *
event_make_change(const char *channel, const char *event_type, SdOp op,
				  const SdEventTable *table, HeapTuple row, HeapTuple old)
{
	HeapTupleHeader row_image = row ? make_image(row, table->desc) : NULL;
	HeapTupleHeader old_image = old ? make_image(old, table->desc) : NULL;
	Size		atts_size = (row || old) ? sizeof(SdEventAtt) * table->natts : 0;
	Size		size = sizeof(SdEvent);
	SdEvent    *ev;
	uint32		at;

	size += event_string_size(channel) + event_string_size(event_type);
	size += event_string_size(table->schema_name) + event_string_size(table->table_name);
	size = MAXALIGN(size) + atts_size;
	size = MAXALIGN(size) + image_size(row_image);
	size = MAXALIGN(size) + image_size(old_image);
	size = MAXALIGN(size);
	event_check_size(size);

	ev = event_make_head(size, channel, SD_SOURCE_CHANGE, &at);
	ev->op = op;
	ev->relid = table->relid;
	ev->event_type = event_put_string(ev, &at, event_type);
	ev->schema_name = event_put_string(ev, &at, table->schema_name);
	ev->table_name = event_put_string(ev, &at, table->table_name);
	if (row || old)
	{
		ev->natts = table->natts;
		ev->atts = put_aligned(ev, &at, table->atts, atts_size);
	}
	if (row)
		ev->row = put_aligned(ev, &at, row_image, image_size(row_image));
	if (old)
		ev->old = put_aligned(ev, &at, old_image, image_size(old_image));
	Assert(MAXALIGN(at) <= size);

	if (row)
		pfree(row_image);
	if (old)
		pfree(old_image);
	return ev;
}

/* ---- reading ---- */

Jsonb *
event_data(const SdEvent *ev)
{
	if (ev->source == SD_SOURCE_CHANGE)
		return event_change_data(ev);
	return (Jsonb *) ((char *) ev + ev->data);
}

static char *
put_part(char *to, uint32 value, int digits, char after)
{
	to = pg_ultostr_zeropad(to, value, digits);
	*to++ = after;
	return to;
}

/* RFC 3339 in UTC, with microseconds: "2024-02-03T04:05:06.789000Z". */
static void
format_timestamp(TimestampTz at, char *buf)
{
	struct pg_tm tm;
	fsec_t		fsec;

	/* without a time zone it is UTC that comes out */
	if (timestamp2tm(at, NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp of an event is out of range");
	/* each call of a resolver has one, and a format has to be read each time */
	if (tm.tm_year < 0)
		*buf++ = '-';
	buf = put_part(buf, Abs(tm.tm_year), 4, '-');
	buf = put_part(buf, tm.tm_mon, 2, '-');
	buf = put_part(buf, tm.tm_mday, 2, 'T');
	buf = put_part(buf, tm.tm_hour, 2, ':');
	buf = put_part(buf, tm.tm_min, 2, ':');
	buf = put_part(buf, tm.tm_sec, 2, '.');
	buf = put_part(buf, fsec, 6, 'Z');
	*buf = '\0';
}

static const char *
source_name(uint8 source)
{
	switch ((SdSource) source)
	{
		case SD_SOURCE_PUBLISH:
			return "publish";
		case SD_SOURCE_CHANGE:
			return "change";
		case SD_SOURCE_NOTIFY:
			return "notify";
	}
	elog(ERROR, "unknown source of an event: %d", source);
}

/*
 * The event as jsonb around data, which is event_data() or what is left of it
 * for an identity.  Allocated in the current memory context.
 */
Jsonb *
event_envelope(const SdEvent *ev, uint64 id, Jsonb *data)
{
	char		timestamp[64];
	JsonMember	members[] = {	/* in jsonb's order of keys */
		json_member("id"),
		json_jsonb_member("data", data),
		json_string_member("source", source_name(ev->source)),
		json_string_member("channel", EVENT_CHANNEL(ev)),
		json_string_member("timestamp", ""),
		json_string_member("event_type", EVENT_STRING(ev, event_type)),
		json_string_member("federation_id", EVENT_STRING(ev, federation_id)),
		json_string_member("correlation_id", EVENT_STRING(ev, correlation_id)),
	};

	format_timestamp(ev->timestamp, timestamp);
	members[0].value.type = jbvNumeric;
	members[0].value.val.numeric = int64_to_numeric((int64) id);
	members[4] = json_string_member("timestamp", timestamp);
	return json_compose(members, lengthof(members));
}

/*
 * As overrides, so that neither a reload of the configuration nor a resolver's
 * RESET brings back what is configured.
 */
void
event_fix_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			fixed[] = {
		{"DateStyle", "ISO, MDY"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"bytea_output", "hex"},
		{"extra_float_digits", "1"},
		{"xmlbinary", "base64"},
		{"quote_all_identifiers", "off"},
	};

	for (int i = 0; i < (int) lengthof(fixed); i++)
		SetConfigOption(fixed[i].name, fixed[i].value, PGC_SUSET, PGC_S_OVERRIDE);
}
