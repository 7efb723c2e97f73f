/*-------------------------------------------------------------------------
 *
 * image_received.c
 *	  Row images as texts: receiving.
 *
 * Another server knows nothing of our OIDs, so a received change names its
 * table, its columns and their types, and brings texts.  It lies in the queue
 * like that.  The dispatcher that needs it first looks for the table, and makes
 * of the texts what the table's trigger would have made of the row, so that
 * from then on it is like any other change.
 *
 * The table must be meant: of that schema and name, an ordinary or partitioned
 * one that is not temporary, with the same columns in the same order, of the
 * same types (image_describe_type()), whatever their length or precision; and
 * its owner must have the right to publish on the channel, as publish_change()
 * demands of the table's owner on the server where the row was changed: what
 * an image shows is decided by policies of the owner's.  Otherwise the event
 * is denied.
 *
 * WHOSE CODE.  Built-in types are read by PostgreSQL's own code.  Reading a
 * value of another type can run its author's: input functions, checks of
 * domains inside of arrays or rows.  So it is done as the table's owner, who
 * chose these types, in a security-restricted operation.  The checks of a
 * column's own domain are not run: they were where the row was written, and a
 * valid image must not depend on what a check says now.
 *
 * What depends on the columns alone is kept, until a type, a schema, the table,
 * or, where a column holds rows, any relation changes.  It comes from the catalog caches alone, without a lock on the
 * table: a table that is altered at this moment has another layout than the
 * event by then, which is how images of an altered table are recognized anyway.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "event_build.h"
#include "event_image.h"
#include "grants.h"
#include "image_text.h"

/*
 * At SdEvent->received; offsets count from the event's start.  The layout is
 * schema, table, and name and type of each column, all with a NUL byte: equal
 * for equal tables.  An image is a byte for each column, 0 for NULL, or 1 and
 * the value as a string.
 */
typedef struct SdReceived
{
	uint32		ncolumns;
	uint32		layout;
	uint32		layout_size;
	uint32		row;			/* 0: none */
	uint32		old;
} SdReceived;

struct ImageTable
{
	uint64		hash;			/* key: of the layout */
	MemoryContext context;		/* of all that follows; NULL: nothing there */
	char	   *layout;
	uint32		layout_size;
	bool		valid;			/* nothing has changed since it was made */
	bool		used;			/* an error came while it was in use */
	const char *why;			/* it is none: what follows is not set */
	Oid			relid;
	Oid			owner;
	bool		care;
	bool		has_rows;		/* a column's type depends on other relations */
	SdEventTable *table;
	FmgrInfo   *functions;		/* of the columns */
	Oid		   *params;
	int		   *attnos;			/* from 0 on */
};

#define MAX_TABLES		256		/* then the cache begins anew */

static HTAB *tables = NULL;
static uint64 invalidations = 0;	/* how many there were */

/* ---- an event in the queue ---- */

static Size
layout_size(const Wire *wire)
{
	Size		size = strlen(wire->schema) + 1 + strlen(wire->table) + 1;

	for (uint32 i = 0; i < wire->ncolumns; i++)
		size += strlen(wire->columns[i].name) + 1 + strlen(wire->columns[i].type) + 1;
	return size;
}

static Size
image_size(const char *const *values, uint32 n)
{
	Size		size = 0;

	for (uint32 i = 0; values && i < n; i++)
		size += values[i] ? 1 + strlen(values[i]) + 1 : 1;
	return size;
}

static uint32
put_image(SdEvent *ev, uint32 *at, const char *const *values, uint32 n)
{
	uint32		offset = *at;

	if (values == NULL)
		return 0;
	for (uint32 i = 0; i < n; i++)
	{
		((char *) ev)[(*at)++] = values[i] != NULL;
		(void) event_put_string(ev, at, values[i]);
	}
	return offset;
}

SdEvent *
image_make_received(const Wire *wire, SdOp op)
{
	Size		size = sizeof(SdEvent);
	SdReceived *received;
	SdEvent    *ev;
	uint32		at;

	size += event_string_size(wire->channel) + event_string_size(wire->event_type);
	size = MAXALIGN(size) + sizeof(SdReceived) + layout_size(wire);
	size += image_size(wire->row, wire->ncolumns) + image_size(wire->old, wire->ncolumns);
	/* 1: an image without columns has an offset that nothing else has */
	size = MAXALIGN(size + 1);

	ev = event_make_head(size, wire->channel, SD_SOURCE_CHANGE, &at);
	ev->op = op;
	ev->event_type = event_put_string(ev, &at, wire->event_type);
	ev->received = at = MAXALIGN(at);
	received = (SdReceived *) ((char *) ev + at);
	at += sizeof(SdReceived);
	received->ncolumns = wire->ncolumns;
	received->layout = at;
	ev->schema_name = event_put_string(ev, &at, wire->schema);
	ev->table_name = event_put_string(ev, &at, wire->table);
	for (uint32 i = 0; i < wire->ncolumns; i++)
	{
		(void) event_put_string(ev, &at, wire->columns[i].name);
		(void) event_put_string(ev, &at, wire->columns[i].type);
	}
	received->layout_size = at - received->layout;
	received->row = put_image(ev, &at, wire->row, wire->ncolumns);
	received->old = put_image(ev, &at, wire->old, wire->ncolumns);
	Assert(at < size);
	return ev;
}

static inline const SdReceived *
received_part(const SdEvent *ev)
{
	return (const SdReceived *) ((const char *) ev + ev->received);
}

/* ---- invalidation ---- */

/* relid: InvalidOid for all.  What was not found may be there by now. */
static void
invalidate(Oid relid)
{
	HASH_SEQ_STATUS scan;
	ImageTable *table;

	invalidations++;
	if (tables == NULL)
		return;
	hash_seq_init(&scan, tables);
	while ((table = hash_seq_search(&scan)) != NULL)
		if (!OidIsValid(relid) || table->why || table->has_rows || table->relid == relid)
			table->valid = false;
}

static void
relation_callback(Datum arg, Oid relid)
{
	invalidate(relid);
}

static void
type_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	invalidate(InvalidOid);
}

static void
make_cache(void)
{
	static bool watching = false;
	HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(ImageTable)};

	if (!watching)
	{
		CacheRegisterRelcacheCallback(relation_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, type_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, type_callback, (Datum) 0);
		watching = true;
	}
	tables = hash_create("subdispatch received tables", 32, &ctl, HASH_ELEM | HASH_BLOBS);
}

static void
drop_cache(void)
{
	HASH_SEQ_STATUS scan;
	ImageTable *table;

	hash_seq_init(&scan, tables);
	while ((table = hash_seq_search(&scan)) != NULL)
		if (table->context)
			MemoryContextDelete(table->context);
	hash_destroy(tables);
	tables = NULL;
}

/* ---- the table ---- */

/* The columns as the catalog caches have them; NULL if they are being changed. */
static TupleDesc
columns_of(Oid relid, int natts)
{
	TupleDesc	desc = CreateTemplateTupleDesc(natts);

	for (int i = 0; i < natts; i++)
	{
		HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(i + 1));
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!HeapTupleIsValid(tuple))
			return NULL;
		memcpy(att, GETSTRUCT(tuple), ATTRIBUTE_FIXED_PART_SIZE);
		att->attnotnull = false;
		att->atthasdef = false;
		att->atthasmissing = false;
		att->attcacheoff = -1;
		ReleaseSysCache(tuple);
	}
	return desc;
}

/* Values of these are read by PostgreSQL alone, and depend on no setting. */
static bool
is_plain(Oid type)
{
	Oid			element = get_element_type(type);

	switch (OidIsValid(element) ? element : type)
	{
		case CASHOID:
		case XMLOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case ACLITEMOID:
			return false;
		default:
			return type < FirstNormalObjectId;
	}
}

/* Notes how column i is read if it is the table's; false if it is not. */
static bool
match_column(ImageTable *made, int i, int attno, const char *name, const char *type)
{
	const SdEventAtt *att = &made->table->atts[attno];
	StringInfoData here;
	Oid			function;
	bool		same;

	if (strcmp(NameStr(att->name), name) != 0)
		return false;
	initStringInfo(&here);
	image_describe_type(&here, att->type);
	same = strcmp(here.data, type) == 0;
	pfree(here.data);
	if (!same)
		return false;

	getTypeInputInfo(getBaseType(att->type), &function, &made->params[i]);
	fmgr_info_cxt(function, &made->functions[i], made->context);
	made->attnos[i] = attno;
	made->care |= !is_plain(att->type);
	made->has_rows |= event_type_has_rows(att->type);
	return true;
}

/* Are these the table's columns, all of them? */
static bool
match_columns(ImageTable *made, const char *columns, uint32 n)
{
	uint32		i = 0;

	made->params = palloc(sizeof(Oid) * Max(n, 1));
	made->functions = palloc(sizeof(FmgrInfo) * Max(n, 1));
	made->attnos = palloc(sizeof(int) * Max(n, 1));
	for (uint32 attno = 0; attno < made->table->natts; attno++)
	{
		const char *type;

		if (!OidIsValid(made->table->atts[attno].type))
			continue;
		if (i == n)
			return false;
		type = columns + strlen(columns) + 1;
		if (!match_column(made, i, attno, columns, type))
			return false;
		columns = type + strlen(type) + 1;
		i++;
	}
	return i == n;
}

/* Fills in the rest of an entry, or why there is none. */
static const char *
find(ImageTable *made, const SdEvent *ev)
{
	const SdReceived *received = received_part(ev);
	const char *schema = EVENT_STRING(ev, schema_name);
	const char *name = EVENT_STRING(ev, table_name);
	Oid			schema_oid = get_namespace_oid(schema, true);
	HeapTuple	tuple;
	FormData_pg_class form;
	TupleDesc	desc;

	made->relid = OidIsValid(schema_oid) ? get_relname_relid(name, schema_oid) : InvalidOid;
	tuple = OidIsValid(made->relid) ?
		SearchSysCache1(RELOID, ObjectIdGetDatum(made->relid)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return "there is no such table here";
	memcpy(&form, GETSTRUCT(tuple), sizeof(form));
	ReleaseSysCache(tuple);
	if ((form.relkind != RELKIND_RELATION && form.relkind != RELKIND_PARTITIONED_TABLE) ||
		form.relpersistence == RELPERSISTENCE_TEMP || made->relid < FirstNormalObjectId)
		return "what has that name here is no table whose changes can be published";
	made->owner = form.relowner;

	desc = columns_of(made->relid, form.relnatts);
	if (desc == NULL)
		return "the table is being altered here";
	made->table = event_table_of(made->relid, pstrdup(schema), pstrdup(name), desc);
	/* a TRUNCATE tells no columns */
	if ((received->row || received->old) &&
		!match_columns(made, name + strlen(name) + 1, received->ncolumns))
		return "the table has other columns here";
	return NULL;
}

/* All of it in a context that goes with the current one, should it fail. */
static void
make_entry(ImageTable *entry, const SdEvent *ev)
{
	const SdReceived *received = received_part(ev);
	uint64		before = invalidations;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch received table",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ImageTable	made = {.hash = entry->hash, .context = context};

	made.layout_size = received->layout_size;
	made.layout = memcpy(palloc(made.layout_size), (const char *) ev + received->layout,
						 made.layout_size);
	made.why = find(&made, ev);
	MemoryContextSwitchTo(old);

	/* good for this event in any case, for more only if nothing changed */
	made.valid = before == invalidations;
	if (entry->context)
		MemoryContextDelete(entry->context);
	*entry = made;
	MemoryContextSetParent(context, CacheMemoryContext);
}

/* A TRUNCATE needs less than a row, so they have different entries. */
static ImageTable *
get_entry(const SdEvent *ev)
{
	const SdReceived *received = received_part(ev);
	const char *layout = (const char *) ev + received->layout;
	uint64		hash = hash_bytes_extended((const unsigned char *) layout, received->layout_size,
										   ev->op == SD_OP_TRUNCATE);
	ImageTable *entry;
	bool		found;

	if (tables && hash_get_num_entries(tables) >= MAX_TABLES)
		drop_cache();
	if (tables == NULL)
		make_cache();
	entry = hash_search(tables, &hash, HASH_ENTER, &found);
	if (!found)
		memset((char *) entry + sizeof(hash), 0, sizeof(ImageTable) - sizeof(hash));
	else if (likely(entry->valid && !entry->used &&
					entry->layout_size == received->layout_size &&
					memcmp(entry->layout, layout, received->layout_size) == 0))
		return entry;
	entry->valid = false;
	make_entry(entry, ev);
	return entry;
}

const ImageTable *
image_find_table(const SdEvent *ev, const char **why)
{
	ImageTable *entry;

	Assert(IsTransactionState());
	Assert(image_is_received(ev));
	entry = get_entry(ev);
	*why = entry->why;
	if (*why == NULL && !grants_allow(entry->owner, EVENT_CHANNEL(ev), GRANT_PUBLISH, NULL))
		*why = "the table's owner may not publish on the channel here";
	return *why == NULL ? entry : NULL;
}

bool
image_needs_care(const ImageTable *table, Oid *owner)
{
	*owner = table->owner;
	return table->care;
}

/* ---- reading ---- */

static HeapTuple
read_image(const SdEvent *ev, uint32 offset, const ImageTable *table)
{
	const char *at = (const char *) ev + offset;
	uint32		n = received_part(ev)->ncolumns;
	uint32		natts = table->table->natts;
	Datum	   *values;
	bool	   *nulls;

	if (offset == 0)
		return NULL;
	values = palloc0(sizeof(Datum) * Max(natts, 1));
	nulls = palloc(sizeof(bool) * Max(natts, 1));
	memset(nulls, true, sizeof(bool) * natts);
	for (uint32 i = 0; i < n; i++)
	{
		int			attno = table->attnos[i];

		if (*at++ == 0)
			continue;
		/* a copy, for the function may be careless with shared memory */
		values[attno] = InputFunctionCall(&table->functions[i], pstrdup(at), table->params[i], -1);
		nulls[attno] = false;
		at += strlen(at) + 1;
	}
	return heap_form_tuple(table->table->desc, values, nulls);
}

/* As when texts were made; see image_text_init().  The rest is so in any case. */
static void
set_settings(void)
{
	(void) set_config_option("lc_monetary", "C", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("xmloption", "content", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

SdEvent *
image_read(const SdEvent *ev, const ImageTable *table)
{
	const SdReceived *received = received_part(ev);
	bool	   *used = &unconstify(ImageTable *, table)->used;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch received image",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HeapTuple	row;
	HeapTuple	old_row;
	SdEvent    *made;
	SdEvent    *result;

	if (table->care)
		set_settings();
	*used = true;
	row = read_image(ev, received->row, table);
	old_row = read_image(ev, received->old, table);
	*used = false;
	made = event_make_change(EVENT_CHANNEL(ev), EVENT_STRING(ev, event_type), ev->op,
							 table->table, row, old_row);
	event_copy_place(made, ev);
	MemoryContextSwitchTo(old);
	result = memcpy(palloc(made->size), made, made->size);
	MemoryContextDelete(context);
	return result;
}
