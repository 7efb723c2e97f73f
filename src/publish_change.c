/*-------------------------------------------------------------------------
 *
 * publish_change.c
 *	  From a fired trigger to an event: which table it is about, and images in
 *	  that table's layout.
 *
 * A row trigger of a partitioned table fires on the partition, as a clone of
 * the one that was created.  The event is about the table on which it was
 * created (its policies are those that count), so the rows are converted to
 * that table's layout.
 *
 * All that does not depend on the row is kept per trigger in this backend.  An
 * entry is marked as invalid when any table it was made from changes, or a
 * row type inside a column, or a schema's name; and made anew at its next use.
 * It is never freed by an invalidation, which may come while it is in use.
 *
 * Takes no lock of ours.  To make an entry for a partition the table at the
 * root is opened with an AccessShareLock; what the entry says of it cannot
 * change while the partition is locked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tupconvert.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "event_image.h"
#include "publish_change.h"

typedef struct Entry
{
	Oid			trigger;		/* key */
	Oid			relid;			/* the table that it fires on */
	bool		valid;
	bool		has_rows;		/* some columns are, or hold, row types */
	MemoryContext context;		/* of what follows; NULL: nothing there */
	SdEventTable *table;		/* the one that it was created on */
	TupleConversionMap *map;	/* NULL: the same layout */
} Entry;

static HTAB *entries = NULL;
static uint64 invalidations = 0;	/* how many there were */

/* ---- invalidation ---- */

/* relid: InvalidOid for all */
static void
invalidate(Oid relid)
{
	HASH_SEQ_STATUS scan;
	Entry	   *entry;

	invalidations++;
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->context == NULL)
			continue;
		if (!OidIsValid(relid) || entry->has_rows ||
			entry->relid == relid || entry->table->relid == relid)
			entry->valid = false;
	}
}

static void
relcache_callback(Datum arg, Oid relid)
{
	invalidate(relid);
}

static void
schema_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	invalidate(InvalidOid);
}

static void
make_cache(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(Entry)};

	entries = hash_create("subdispatch triggers", 32, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_callback, (Datum) 0);
}

/* ---- making an entry ---- */

/*
 * The table on which a trigger was created of which this one is a clone, of a
 * clone, ...
 */
static Oid
table_created_on(Oid trigger)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	Oid			result = InvalidOid;

	while (OidIsValid(trigger))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;
		Form_pg_trigger form;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(trigger));
		scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
		tuple = systable_getnext(scan);
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "could not find trigger %u", trigger);
		form = (Form_pg_trigger) GETSTRUCT(tuple);
		result = form->tgrelid;
		trigger = form->tgparentid;
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return result;
}

static bool
table_has_rows(const SdEventTable *table)
{
	for (uint32 i = 0; i < table->natts; i++)
		if (OidIsValid(table->atts[i].type) && event_type_has_rows(table->atts[i].type))
			return true;
	return false;
}

/* In the current memory context. */
static void
describe(Entry *entry, Relation rel, Trigger *trigger)
{
	Oid			created_on = RelationGetRelid(rel);

	entry->map = NULL;
	if (trigger->tgisclone)
		created_on = table_created_on(trigger->tgoid);
	if (created_on == RelationGetRelid(rel))
		entry->table = event_table_make(rel);
	else
	{
		Relation	root = table_open(created_on, AccessShareLock);

		entry->table = event_table_make(root);
		table_close(root, AccessShareLock);
		/* with constraints, for they hold the values of columns added later */
		entry->map = convert_tuples_by_name(CreateTupleDescCopyConstr(RelationGetDescr(rel)),
											entry->table->desc);
	}
	entry->has_rows = table_has_rows(entry->table);
}

/*
 * If it fails the entry is left invalid, and its memory goes with the current
 * memory context.
 */
static void
fill_entry(Entry *entry, Relation rel, Trigger *trigger)
{
	uint64		before = invalidations;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch trigger",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	describe(entry, rel, trigger);
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, CacheMemoryContext);
	entry->relid = RelationGetRelid(rel);
	entry->context = context;
	/* good for this row in any case, for more only if nothing changed */
	entry->valid = before == invalidations;
}

/* Frees what is not valid any more, so that dropped tables leave nothing. */
static void
sweep(void)
{
	HASH_SEQ_STATUS scan;
	Entry	   *entry;

	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->valid)
			continue;
		if (entry->context)
			MemoryContextDelete(entry->context);
		(void) hash_search(entries, &entry->trigger, HASH_REMOVE, NULL);
	}
}

static Entry *
get_entry(Relation rel, Trigger *trigger)
{
	Entry	   *entry;

	if (entries == NULL)
		make_cache();
	entry = hash_search(entries, &trigger->tgoid, HASH_FIND, NULL);
	if (likely(entry && entry->valid && entry->relid == RelationGetRelid(rel)))
		return entry;

	if (entry)
		entry->valid = false;
	sweep();
	entry = hash_search(entries, &trigger->tgoid, HASH_ENTER, NULL);
	entry->valid = false;
	entry->context = NULL;
	fill_entry(entry, rel, trigger);
	return entry;
}

/* ---- events ---- */

SdEvent *
change_event(TriggerData *data, const char *channel, const char *event_type)
{
	Entry	   *entry = get_entry(data->tg_relation, data->tg_trigger);
	HeapTuple	row = data->tg_trigtuple;
	HeapTuple	old = NULL;
	SdOp		op;

	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		op = SD_OP_INSERT;
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		op = SD_OP_DELETE;
	else if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
	{
		op = SD_OP_UPDATE;
		row = data->tg_newtuple;
		old = data->tg_trigtuple;
	}
	else
	{
		op = SD_OP_TRUNCATE;
		row = NULL;
	}

	if (entry->map)
	{
		row = row ? execute_attr_map_tuple(row, entry->map) : NULL;
		old = old ? execute_attr_map_tuple(old, entry->map) : NULL;
	}
	return event_make_change(channel, event_type, op, entry->table, row, old);
}
