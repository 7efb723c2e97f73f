/*-------------------------------------------------------------------------
 *
 * event_image.c
 *	  Row images as jsonb.
 *
 * An image is read with the columns that travel with it, never with those the
 * table has by now.  Values of the commonest types are put into the object
 * directly, as to_jsonb() would; it is called for all others.
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
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "event.h"
#include "event_image.h"
#include "json_compose.h"

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

/* How a column's values become JSON. */
typedef enum ColumnKind
{
	COLUMN_INT2, COLUMN_INT4, COLUMN_INT8, COLUMN_NUMERIC, COLUMN_BOOL,
	COLUMN_TEXT,				/* a varlena of nothing but text */
	COLUMN_TIME,				/* what JsonEncodeDateTime() writes */
	COLUMN_OTHER				/* by to_jsonb() */
} ColumnKind;

/* A column that is not dropped. */
typedef struct Column
{
	int			at;				/* its index in the row */
	Oid			type;
	ColumnKind	kind;
	FmgrInfo	to_jsonb;		/* for COLUMN_OTHER */
} Column;

typedef struct DescCache
{
	MemoryContext context;		/* of all that follows; NULL: unused */
	uint32		natts;
	SdEventAtt *atts;
	TupleDesc	desc;
	bool		builtin;		/* all columns are of built-in types */
	Datum	   *values;			/* room for a row, */
	bool	   *nulls;
	JsonMember *members;		/* and its members, with their keys, in the order */
	Column	   *columns;		/* of jsonb; so many columns as members */
	int			nmembers;
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

static ColumnKind
column_kind(Oid type)
{
	switch (type)
	{
		case INT2OID:
			return COLUMN_INT2;
		case INT4OID:
			return COLUMN_INT4;
		case INT8OID:
			return COLUMN_INT8;
		case NUMERICOID:
			return COLUMN_NUMERIC;
		case BOOLOID:
			return COLUMN_BOOL;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return COLUMN_TEXT;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return COLUMN_TIME;
		default:
			return COLUMN_OTHER;
	}
}

/* pg_catalog.to_jsonb(anyelement), for an argument of this type. */
static void
prepare_to_jsonb(FmgrInfo *info, Oid type)
{
	Const	   *arg = makeNullConst(type, -1, InvalidOid);
	FuncExpr   *call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(arg), InvalidOid,
									InvalidOid, COERCE_EXPLICIT_CALL);

	fmgr_info_cxt(F_TO_JSONB, info, CurrentMemoryContext);
	fmgr_info_set_expr((Node *) call, info);
}

/*
 * The members of the objects, in jsonb's order of keys.  What does not depend
 * on a type that may be gone by now is prepared here.
 */
static void
prepare_columns(DescCache *cached)
{
	int			n = 0;

	cached->members = palloc0(sizeof(JsonMember) * Max(cached->natts, 1));
	cached->columns = palloc0(sizeof(Column) * Max(cached->natts, 1));
	for (uint32 i = 0; i < cached->natts; i++)
	{
		if (!OidIsValid(cached->atts[i].type))
			continue;
		cached->members[n] = json_member(NameStr(cached->atts[i].name));
		/* until they are sorted, the value says which column it is */
		cached->members[n++].value.val.string.len = i;
	}
	qsort(cached->members, n, sizeof(JsonMember), json_member_compare);
	cached->nmembers = n;
	for (int i = 0; i < n; i++)
	{
		Column	   *column = &cached->columns[i];

		column->at = cached->members[i].value.val.string.len;
		column->type = cached->atts[column->at].type;
		column->kind = column_kind(column->type);
		if (column->kind == COLUMN_OTHER)
			prepare_to_jsonb(&column->to_jsonb, column->type);
	}
}

/* All in the current memory context. */
static void
fill_desc(DescCache *cached, const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	Size		size = sizeof(SdEventAtt) * ev->natts;

	cached->natts = ev->natts;
	cached->atts = memcpy(palloc(Max(size, 1)), atts, size);
	cached->desc = CreateTemplateTupleDesc(ev->natts);
	cached->builtin = true;
	for (uint32 i = 0; i < ev->natts; i++)
	{
		fill_attribute(TupleDescAttr(cached->desc, i), i + 1, &atts[i]);
		cached->builtin &= atts[i].type < FirstNormalObjectId;
	}
	cached->values = palloc(sizeof(Datum) * Max(ev->natts, 1));
	cached->nulls = palloc(sizeof(bool) * Max(ev->natts, 1));
	prepare_columns(cached);
}

/*
 * The layout of an event's images, made or out of the cache.  It stays valid
 * until some other layouts have been asked for.
 */
static DescCache *
get_desc(const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	DescCache  *cached;
	MemoryContext context;
	MemoryContext old;

	for (int i = 0; i < DESC_CACHE_SIZE; i++)
		if (desc_cache[i].context && desc_cache[i].natts == ev->natts &&
			memcmp(desc_cache[i].atts, atts, sizeof(SdEventAtt) * ev->natts) == 0)
			return &desc_cache[i];

	cached = &desc_cache[desc_cache_next];
	desc_cache_next = (desc_cache_next + 1) % DESC_CACHE_SIZE;
	if (cached->context)
	{
		context = cached->context;
		cached->context = NULL; /* unused, if what follows fails */
		MemoryContextDelete(context);
	}

	/* if it fails the memory goes with the batch's */
	context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch row images",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	fill_desc(cached, ev);
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, TopMemoryContext);
	cached->context = context;
	return cached;
}

TupleDesc
event_image_desc(const SdEvent *ev)
{
	return get_desc(ev)->desc;
}

const char *
event_att_problem(const SdEventAtt *att)
{
	if (att->type < FirstNormalObjectId)
		return NULL;
	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(att->type)))
		return "the type of a column no longer exists";
	if (event_type_shape(att->type) != att->shape)
		return "the type of a column has been altered since";
	return NULL;
}

/* Raises an error if a value cannot be read any more; see the file's header. */
static void
check_types(const SdEvent *ev, const DescCache *cached)
{
	if (cached->builtin)
		return;
	for (uint32 i = 0; i < ev->natts; i++)
	{
		const char *problem = event_att_problem(&cached->atts[i]);

		if (problem)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("row of table \"%s\" cannot be shown: %s",
							EVENT_STRING(ev, table_name), problem),
					 errdetail("The column is \"%s\".", NameStr(cached->atts[i].name))));
	}
}

/* ---- images ---- */

/* NaN and the infinities are strings in JSON. */
static void
numeric_value(Datum datum, JsonbValue *value)
{
	Numeric		number = DatumGetNumeric(datum);

	if (numeric_is_nan(number) || numeric_is_inf(number))
	{
		value->type = jbvString;
		value->val.string.val = DatumGetCString(DirectFunctionCall1(numeric_out,
																	NumericGetDatum(number)));
		value->val.string.len = strlen(value->val.string.val);
		return;
	}
	value->type = jbvNumeric;
	value->val.numeric = number;
}

static void
integer_value(int64 number, JsonbValue *value)
{
	value->type = jbvNumeric;
	value->val.numeric = int64_to_numeric(number);
}

static void
text_value(Datum datum, JsonbValue *value)
{
	text	   *t = DatumGetTextPP(datum);

	value->type = jbvString;
	value->val.string.val = VARDATA_ANY(t);
	value->val.string.len = VARSIZE_ANY_EXHDR(t);
}

static void
time_value(Datum datum, Oid type, JsonbValue *value)
{
	value->type = jbvString;
	value->val.string.val = JsonEncodeDateTime(NULL, datum, type, NULL);
	value->val.string.len = strlen(value->val.string.val);
}

/* What to_jsonb() would make of it.  What it allocates is small. */
static void
column_value(Column *column, Datum datum, JsonbValue *value)
{
	switch (column->kind)
	{
		case COLUMN_INT2:
			integer_value(DatumGetInt16(datum), value);
			break;
		case COLUMN_INT4:
			integer_value(DatumGetInt32(datum), value);
			break;
		case COLUMN_INT8:
			integer_value(DatumGetInt64(datum), value);
			break;
		case COLUMN_NUMERIC:
			numeric_value(datum, value);
			break;
		case COLUMN_BOOL:
			value->type = jbvBool;
			value->val.boolean = DatumGetBool(datum);
			break;
		case COLUMN_TEXT:
			text_value(datum, value);
			break;
		case COLUMN_TIME:
			time_value(datum, column->type, value);
			break;
		case COLUMN_OTHER:
			json_value_of(DatumGetJsonbP(FunctionCall1(&column->to_jsonb, datum)), value);
			break;
	}
}

/*
 * The image is read where it lies, in shared memory: nobody changes it, and
 * to_jsonb() neither.
 */
static Jsonb *
image_to_jsonb(const SdEvent *ev, uint32 offset, DescCache *cached)
{
	HeapTupleHeader image = (HeapTupleHeader) ((const char *) ev + offset);
	HeapTupleData tuple = {.t_data = image, .t_len = HeapTupleHeaderGetDatumLength(image)};

	Assert(HeapTupleHeaderGetTypeId(image) == RECORDOID);
	ItemPointerSetInvalid(&tuple.t_self);
	heap_deform_tuple(&tuple, cached->desc, cached->values, cached->nulls);
	for (int i = 0; i < cached->nmembers; i++)
	{
		Column	   *column = &cached->columns[i];
		JsonbValue *value = &cached->members[i].value;

		if (cached->nulls[column->at])
			value->type = jbvNull;
		else
			column_value(column, cached->values[column->at], value);
	}
	return json_compose(cached->members, cached->nmembers);
}

/* row and old; either may be missing. */
static void
show_images(const SdEvent *ev, DescCache *cached, Jsonb **row, Jsonb **old)
{
	if (ev->row)
		*row = image_to_jsonb(ev, ev->row, cached);
	if (ev->old)
		*old = image_to_jsonb(ev, ev->old, cached);
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
show_images_as_owner(const SdEvent *ev, DescCache *cached, Jsonb **row, Jsonb **old)
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
		show_images(ev, cached, row, old);
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
	JsonMember	members[5];		/* in jsonb's order of keys */
	int			n = 0;

	members[n++] = json_string_member("op", op);
	if (old)
		members[n++] = json_jsonb_member("old", old);
	if (row)
		members[n++] = json_jsonb_member("row", row);
	members[n++] = json_string_member("table", EVENT_STRING(ev, table_name));
	members[n++] = json_string_member("schema", EVENT_STRING(ev, schema_name));
	return json_compose(members, n);
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
			show_images(ev, cached, &row, &old);
		else
			show_images_as_owner(ev, cached, &row, &old);
	}

	return event_change_object(ev, event_op_name(ev->op), row, old);
}
