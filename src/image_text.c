/*-------------------------------------------------------------------------
 *
 * image_text.c
 *	  Row images as texts: sending.
 *
 * Types' output functions are C code that a superuser has installed, or
 * PostgreSQL's own: nothing of what runs here was written by other users.  What
 * they write must depend on no setting that another server may have otherwise.
 *
 * What depends on the columns alone is kept for the layouts seen last, until a
 * type, a schema, or, where a column holds rows, any relation changes.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "event_image.h"
#include "image_text.h"

typedef struct Layout
{
	MemoryContext context;		/* of what follows; NULL: unused */
	uint64		types_changed;	/* when it was made */
	uint64		relations_changed;
	bool		has_rows;
	uint32		natts;
	SdEventAtt *atts;
	uint32		ncolumns;		/* of natts, without dropped ones */
	WireColumn *columns;
	FmgrInfo   *functions;		/* by column */
	int		   *attnos;			/* likewise; from 0 on */
} Layout;

#define LAYOUTS		16

static Layout layouts[LAYOUTS];
static int	next_layout = 0;
static uint64 types_changed = 0;	/* counted up by invalidations */
static uint64 relations_changed = 0;

/* ---- invalidation ---- */

static void
type_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	types_changed++;
}

static void
relation_callback(Datum arg, Oid relid)
{
	relations_changed++;
}

static void
watch_changes(void)
{
	static bool watching = false;

	if (watching)
		return;
	watching = true;
	CacheRegisterSyscacheCallback(TYPEOID, type_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, type_callback, (Datum) 0);
	CacheRegisterRelcacheCallback(relation_callback, (Datum) 0);
}

/* ---- types ---- */

static void
describe_row(StringInfo buf, Oid type)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(type, -1);
	bool		first = true;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		appendStringInfo(buf, "%s%s ", first ? "(" : ", ", quote_identifier(NameStr(att->attname)));
		image_describe_type(buf, att->atttypid);
		first = false;
	}
	appendStringInfoString(buf, first ? "()" : ")");
	FreeTupleDesc(desc);
}

/*
 * What a built-in type is made of is the same everywhere, and so is what an
 * array looks like, whatever the name of its type.
 */
void
image_describe_type(StringInfo buf, Oid type)
{
	Oid			element = get_element_type(type);
	HeapTuple	tuple;
	Form_pg_type form;
	char	   *schema;

	check_stack_depth();
	if (OidIsValid(element))
	{
		image_describe_type(buf, element);
		appendStringInfoString(buf, "[]");
		return;
	}
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	schema = get_namespace_name(form->typnamespace);
	appendStringInfo(buf, "%s.", quote_identifier(schema ? schema : "?"));
	appendStringInfoString(buf, quote_identifier(NameStr(form->typname)));
	if (type >= FirstNormalObjectId)
		switch (form->typtype)
		{
			case TYPTYPE_COMPOSITE:
				describe_row(buf, type);
				break;
			case TYPTYPE_DOMAIN:
				appendStringInfoString(buf, " of ");
				image_describe_type(buf, form->typbasetype);
				break;
			case TYPTYPE_RANGE:
				appendStringInfoString(buf, " of ");
				image_describe_type(buf, get_range_subtype(type));
				break;
			case TYPTYPE_MULTIRANGE:
				appendStringInfoString(buf, " of ");
				image_describe_type(buf, get_multirange_range(type));
				break;
		}
	ReleaseSysCache(tuple);
}

/* ---- layouts ---- */

static bool
is_fresh(const Layout *layout)
{
	return layout->types_changed == types_changed &&
		(!layout->has_rows || layout->relations_changed == relations_changed);
}

static void
add_column(Layout *layout, int attno)
{
	const SdEventAtt *att = &layout->atts[attno];
	uint32		i = layout->ncolumns;
	StringInfoData type;
	Oid			function;
	bool		is_varlena;

	initStringInfo(&type);
	image_describe_type(&type, att->type);
	getTypeOutputInfo(att->type, &function, &is_varlena);
	fmgr_info_cxt(function, &layout->functions[i], layout->context);
	layout->columns[i].name = NameStr(att->name);
	layout->columns[i].type = type.data;
	layout->attnos[i] = attno;
	layout->has_rows |= event_type_has_rows(att->type);
	layout->ncolumns++;
}

/* All of it in a context that goes with the current one, should it fail. */
static void
make_layout(Layout *layout, const SdEventAtt *atts, uint32 natts)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch layout",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Layout		made = {.context = context, .natts = natts};
	Size		room = Max(natts, 1);

	watch_changes();
	made.types_changed = types_changed;
	made.relations_changed = relations_changed;
	made.atts = palloc(sizeof(SdEventAtt) * room);
	memcpy(made.atts, atts, sizeof(SdEventAtt) * natts);
	made.columns = palloc(sizeof(WireColumn) * room);
	made.functions = palloc(sizeof(FmgrInfo) * room);
	made.attnos = palloc(sizeof(int) * room);
	for (uint32 i = 0; i < natts; i++)
		if (OidIsValid(atts[i].type))
			add_column(&made, i);
	MemoryContextSwitchTo(old);

	if (layout->context)
		MemoryContextDelete(layout->context);
	*layout = made;
	MemoryContextSetParent(context, TopMemoryContext);
}

static const Layout *
get_layout(const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	Layout	   *layout = NULL;

	for (int i = 0; i < LAYOUTS && layout == NULL; i++)
		if (layouts[i].context && layouts[i].natts == ev->natts &&
			memcmp(layouts[i].atts, atts, sizeof(SdEventAtt) * ev->natts) == 0)
			layout = &layouts[i];
	if (layout && is_fresh(layout))
		return layout;
	if (layout == NULL)
	{
		layout = &layouts[next_layout];
		next_layout = (next_layout + 1) % LAYOUTS;
	}
	make_layout(layout, atts, ev->natts);
	return layout;
}

/* ---- images ---- */

/* The values of an image, by column; NULL if there is no such image. */
static const char *const *
values_of(const SdEvent *ev, uint32 offset, const Layout *layout, TupleDesc desc)
{
	const char **texts;
	Datum	   *values;
	bool	   *nulls;
	HeapTupleData tuple = {0};

	if (offset == 0)
		return NULL;
	texts = palloc(sizeof(char *) * Max(layout->ncolumns, 1));
	values = palloc(sizeof(Datum) * Max(desc->natts, 1));
	nulls = palloc(sizeof(bool) * Max(desc->natts, 1));
	tuple.t_data = (HeapTupleHeader) ((char *) ev + offset);
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	heap_deform_tuple(&tuple, desc, values, nulls);
	for (uint32 i = 0; i < layout->ncolumns; i++)
	{
		int			attno = layout->attnos[i];

		texts[i] = nulls[attno] ? NULL :
			OutputFunctionCall(&layout->functions[i], values[attno]);
	}
	pfree(values);
	pfree(nulls);
	return texts;
}

/* "char" is the one type of PostgreSQL's that can write what is no character. */
static bool
valid_values(const char *const *values, uint32 n)
{
	for (uint32 i = 0; values && i < n; i++)
		if (values[i] && !pg_verifymbstr(values[i], strlen(values[i]), true))
			return false;
	return true;
}

const char *
image_to_text(const SdEvent *ev, Wire *wire)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	const Layout *layout;
	TupleDesc	desc;

	Assert(IsTransactionState());
	Assert(ev->source == SD_SOURCE_CHANGE && !image_is_received(ev));
	wire->op = event_op_name(ev->op);
	wire->schema = EVENT_STRING(ev, schema_name);
	wire->table = EVENT_STRING(ev, table_name);
	if (ev->row == 0 && ev->old == 0)
		return NULL;

	for (uint32 i = 0; i < ev->natts; i++)
	{
		const char *problem = event_att_problem(&atts[i]);

		if (problem)
			return problem;
	}
	layout = get_layout(ev);
	desc = event_image_desc(ev);
	wire->ncolumns = layout->ncolumns;
	wire->columns = layout->columns;
	wire->row = values_of(ev, ev->row, layout, desc);
	wire->old = values_of(ev, ev->old, layout, desc);
	if (!valid_values(wire->row, wire->ncolumns) || !valid_values(wire->old, wire->ncolumns))
		return "a value has bytes that are no character in this database's encoding";
	return NULL;
}

void
image_text_init(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			fixed[] = {
		{"lc_monetary", "C"},
		{"quote_all_identifiers", "off"},
		{"search_path", "pg_catalog, pg_temp"},
	};

	event_fix_settings();
	for (int i = 0; i < (int) lengthof(fixed); i++)
		SetConfigOption(fixed[i].name, fixed[i].value, PGC_SUSET, PGC_S_OVERRIDE);
}
