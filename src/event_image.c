/*-------------------------------------------------------------------------
 *
 * event_image.c
 *	  Row images as jsonb.
 *
 * An image is read with the columns that travel with it, never with those the
 * table has by now.  A descriptor made of them is registered as an anonymous
 * row type, which to_jsonb() knows how to take apart.
 *
 * What an image refers to can have changed in between:
 *
 *	  - A column's type was dropped: there is no way to show the value; the
 *		event fails with an error.
 *	  - A row type inside a value (a composite column) was altered: its bytes
 *		would be misread, which can crash the server.  A fingerprint of the row
 *		types tells, and the event fails with an error.
 *
 * Built-in types are shown by code of PostgreSQL alone.  For others to_jsonb()
 * may call a cast to json that a user wrote, so it runs as the table's owner,
 * in a security-restricted operation, with a safe search_path.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "event.h"
#include "event_image.h"

/* ---- what lies inside values ---- */

/* The row type that values of a type are or consist of; InvalidOid: none. */
static Oid
row_type_inside(Oid type)
{
	for (;;)
	{
		Oid			inner;

		/* nobody can alter what a built-in type consists of */
		if (type < FirstNormalObjectId)
			return InvalidOid;
		switch (get_typtype(type))
		{
			case TYPTYPE_COMPOSITE:
				return type;
			case TYPTYPE_DOMAIN:
				inner = getBaseType(type);
				break;
			case TYPTYPE_RANGE:
				inner = get_range_subtype(type);
				break;
			case TYPTYPE_MULTIRANGE:
				inner = get_multirange_range(type);
				break;
			default:
				inner = get_element_type(type);
				break;
		}
		if (!OidIsValid(inner) || inner == type)
			return InvalidOid;
		type = inner;
	}
}

bool
event_type_has_rows(Oid type)
{
	return OidIsValid(row_type_inside(type));
}

/* Uses the catalog caches, so it needs a transaction. */
uint32
event_type_shape(Oid type)
{
	Oid			row_type = row_type_inside(type);
	uint32		shape;
	TupleDesc	desc;

	if (!OidIsValid(row_type))
		return 0;

	check_stack_depth();
	desc = lookup_rowtype_tupdesc(row_type, -1);
	shape = hash_combine(hash_bytes_uint32(row_type), desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		shape = hash_combine(shape, hash_bytes_uint32(att->attisdropped ? InvalidOid : att->atttypid));
		shape = hash_combine(shape, hash_bytes_uint32(((uint32) (uint16) att->attlen << 16) |
													  ((uint8) att->attalign << 1) | att->attbyval));
		shape = hash_combine(shape, event_type_shape(att->attisdropped ? InvalidOid : att->atttypid));
	}
	ReleaseTupleDesc(desc);
	return shape ? shape : 1;
}

/* ---- descriptors ---- */

typedef struct DescCache
{
	uint32		natts;
	SdEventAtt *atts;			/* NULL: unused */
	TupleDesc	desc;			/* blessed */
	bool		builtin;		/* all columns are of built-in types */
} DescCache;

#define DESC_CACHE_SIZE		16

static DescCache desc_cache[DESC_CACHE_SIZE];
static int	desc_cache_next = 0;

static void
fill_attribute(Form_pg_attribute att, int number, const SdEventAtt *from)
{
	memset(att, 0, ATTRIBUTE_FIXED_PART_SIZE);
	att->attname = from->name;
	att->atttypid = from->type;
	att->atttypmod = from->typmod;
	att->attcollation = from->collation;
	att->attlen = from->len;
	att->attalign = from->align;
	att->attbyval = from->byval;
	att->attnum = number;
	att->attcacheoff = -1;
	att->attstorage = TYPSTORAGE_PLAIN;
	att->attislocal = true;
	att->attisdropped = !OidIsValid(from->type);
}

/*
 * The descriptor of an event's images, made or out of the cache.  It stays
 * valid until some other layouts have been asked for; what was registered with
 * the type cache stays for the life of the process, and is the same for equal
 * layouts.
 */
static DescCache *
get_desc(const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	Size		size = sizeof(SdEventAtt) * ev->natts;
	DescCache  *cached;
	MemoryContext old;

	for (int i = 0; i < DESC_CACHE_SIZE; i++)
		if (desc_cache[i].atts && desc_cache[i].natts == ev->natts &&
			memcmp(desc_cache[i].atts, atts, size) == 0)
			return &desc_cache[i];

	cached = &desc_cache[desc_cache_next];
	desc_cache_next = (desc_cache_next + 1) % DESC_CACHE_SIZE;
	if (cached->atts)
	{
		pfree(cached->atts);
		cached->atts = NULL;	/* unused, if what follows fails */
		FreeTupleDesc(cached->desc);
	}

	old = MemoryContextSwitchTo(TopMemoryContext);
	cached->desc = CreateTemplateTupleDesc(ev->natts);
	cached->builtin = true;
	for (uint32 i = 0; i < ev->natts; i++)
	{
		fill_attribute(TupleDescAttr(cached->desc, i), i + 1, &atts[i]);
		cached->builtin &= atts[i].type < FirstNormalObjectId;
	}
	BlessTupleDesc(cached->desc);
	cached->natts = ev->natts;
	cached->atts = memcpy(palloc(Max(size, 1)), atts, size);
	MemoryContextSwitchTo(old);
	return cached;
}

/* Raises an error if a value cannot be read any more; see the file's header. */
static void
check_types(const SdEvent *ev, const DescCache *cached)
{
	if (cached->builtin)
		return;
	for (uint32 i = 0; i < ev->natts; i++)
	{
		const SdEventAtt *att = &cached->atts[i];

		if (att->type < FirstNormalObjectId)
			continue;
		if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(att->type)))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("row of table \"%s\" cannot be shown: the type of its column \"%s\" no longer exists",
							EVENT_STRING(ev, table_name), NameStr(att->name))));
		if (event_type_shape(att->type) != att->shape)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("row of table \"%s\" cannot be shown: the type of its column \"%s\" has been altered since",
							EVENT_STRING(ev, table_name), NameStr(att->name))));
	}
}

/* ---- images ---- */

/* pg_catalog.to_jsonb(record) */
static FmgrInfo *
to_jsonb_function(void)
{
	static FmgrInfo info;
	static bool ready = false;

	if (!ready)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		Const	   *arg = makeNullConst(RECORDOID, -1, InvalidOid);
		FuncExpr   *call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(arg), InvalidOid,
										InvalidOid, COERCE_EXPLICIT_CALL);

		fmgr_info_cxt(F_TO_JSONB, &info, TopMemoryContext);
		fmgr_info_set_expr((Node *) call, &info);
		MemoryContextSwitchTo(old);
		ready = true;
	}
	return &info;
}

static Jsonb *
image_to_jsonb(const SdEvent *ev, uint32 offset, TupleDesc desc)
{
	const HeapTupleHeaderData *image = (const HeapTupleHeaderData *) ((const char *) ev + offset);
	Size		size = HeapTupleHeaderGetDatumLength(image);
	HeapTupleHeader copy = palloc(size);
	Jsonb	   *result;

	Assert(HeapTupleHeaderGetTypeId(image) == RECORDOID);
	memcpy(copy, image, size);
	HeapTupleHeaderSetTypMod(copy, desc->tdtypmod);
	result = DatumGetJsonbP(FunctionCall1(to_jsonb_function(), PointerGetDatum(copy)));
	pfree(copy);
	return result;
}

/* row and old; either may be missing. */
static void
show_images(const SdEvent *ev, TupleDesc desc, Jsonb **row, Jsonb **old)
{
	if (ev->row)
		*row = image_to_jsonb(ev, ev->row, desc);
	if (ev->old)
		*old = image_to_jsonb(ev, ev->old, desc);
}

static Oid
table_owner(const SdEvent *ev)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(ev->relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("row of table \"%s\" cannot be shown: the table no longer exists",
						EVENT_STRING(ev, table_name)),
				 errdetail("It has columns of types that are not built in, for which rights are needed.")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * If it fails, the role is put back here, the settings by the end of the
 * (sub)transaction.
 */
static void
show_images_as_owner(const SdEvent *ev, TupleDesc desc, Jsonb **row, Jsonb **old)
{
	Oid			owner = table_owner(ev);
	Oid			save_user;
	int			save_context;
	int			nest_level;

	GetUserIdAndSecContext(&save_user, &save_context);
	nest_level = NewGUCNestLevel();
	PG_TRY();
	{
		SetUserIdAndSecContext(owner, save_context | SECURITY_RESTRICTED_OPERATION);
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		show_images(ev, desc, row, old);
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(save_user, save_context);
	}
	PG_END_TRY();
	AtEOXact_GUC(false, nest_level);
}

const char *
event_op_name(uint8 op)
{
	switch ((SdOp) op)
	{
		case SD_OP_INSERT:
			return "INSERT";
		case SD_OP_UPDATE:
			return "UPDATE";
		case SD_OP_DELETE:
			return "DELETE";
		case SD_OP_TRUNCATE:
			return "TRUNCATE";
		case SD_OP_NONE:
			break;
	}
	elog(ERROR, "unknown operation of an event: %d", op);
}

bool
event_runs_user_code(const SdEvent *ev, Oid *owner)
{
	if (ev->source != SD_SOURCE_CHANGE || (ev->row == 0 && ev->old == 0) || get_desc(ev)->builtin)
		return false;
	*owner = table_owner(ev);
	return true;
}

Jsonb *
event_change_object(const SdEvent *ev, const char *op, Jsonb *row, Jsonb *old)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	event_push_string(&state, "op", op);
	event_push_string(&state, "schema", EVENT_STRING(ev, schema_name));
	event_push_string(&state, "table", EVENT_STRING(ev, table_name));
	if (row)
		event_push_jsonb(&state, "row", row);
	if (old)
		event_push_jsonb(&state, "old", old);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

Jsonb *
event_change_data(const SdEvent *ev)
{
	Jsonb	   *row = NULL;
	Jsonb	   *old = NULL;

	if (ev->row || ev->old)
	{
		DescCache  *cached = get_desc(ev);

		check_types(ev, cached);
		if (cached->builtin)
			show_images(ev, cached->desc, &row, &old);
		else
			show_images_as_owner(ev, cached->desc, &row, &old);
	}

	return event_change_object(ev, event_op_name(ev->op), row, old);
}
