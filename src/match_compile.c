/*-------------------------------------------------------------------------
 *
 * match_compile.c
 *	  The grammar of filters, and the errors in them.  match_node.c builds the
 *	  nodes, match.c says what they mean.
 *
 * A filter is an object, all of whose members must hold.  The members and, or
 * (arrays of filters) and not (a filter) combine; any other member is a path
 * with an object of operators, or with a value, which is short for eq.  An
 * empty and is true, an empty or false.  An object of operators may not be
 * empty, since {"field": {}} could be meant as a comparison with an object.
 *
 * Constraints: no catalog access, no locks.  Work and memory grow with the
 * filter's size, n log n at worst: callers bound that size.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "match_private.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Longest part of a user's name or value that an error message quotes. */
#define QUOTE_MAX	100

/* What an operator accepts. */
typedef enum OperandKind
{
	OPERAND_ANY,
	OPERAND_ARRAY,
	OPERAND_BOOLEAN,
	OPERAND_STRING,
	OPERAND_SCALAR
} OperandKind;

static const struct
{
	const char *name;
	FilterKind	kind;
	OperandKind operand;
}			operators[] =
{
	{"eq", FILTER_EQ, OPERAND_ANY},
	{"neq", FILTER_NEQ, OPERAND_ANY},
	{"gt", FILTER_GT, OPERAND_ANY},
	{"gte", FILTER_GTE, OPERAND_ANY},
	{"lt", FILTER_LT, OPERAND_ANY},
	{"lte", FILTER_LTE, OPERAND_ANY},
	{"in", FILTER_IN, OPERAND_ARRAY},
	{"nin", FILTER_NIN, OPERAND_ARRAY},
	{"exists", FILTER_EXISTS, OPERAND_BOOLEAN},
	{"contains", FILTER_CONTAINS, OPERAND_SCALAR},
	{"starts_with", FILTER_STARTS_WITH, OPERAND_STRING},
};

#define OPERATOR_LIST \
	"eq, neq, gt, gte, lt, lte, in, nin, exists, contains and starts_with"

/* What an error says an operator needs, by OperandKind. */
static const char *const operand_needed[] =
{
	"a value", "an array", "true or false", "a string",
	"a string, a number, true, false or null"
};

static FilterNode *compile_filter(JsonbContainer *filter, int level);

/* ---------- errors ---------- */

/* A string from the filter for an error message, not too long. */
static char *
quote(const JsonbValue *string)
{
	int			len = string->val.string.len;

	if (len <= QUOTE_MAX)
		return pnstrdup(string->val.string.val, len);
	len = pg_mbcliplen(string->val.string.val, len, QUOTE_MAX);
	return psprintf("%.*s...", len, string->val.string.val);
}

/* An article and the JSON type of a value, for an error message. */
static const char *
type_name(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvBool:
			return "a boolean";
		case jbvNumeric:
			return "a number";
		case jbvString:
			return "a string";
		default:
			return JsonContainerIsObject(value->val.binary.data) ? "an object" : "an array";
	}
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary && JsonContainerIsObject(value->val.binary.data);
}

static bool
is_array(const JsonbValue *value)
{
	return value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data);
}

static bool
is_string(const JsonbValue *value, const char *string)
{
	return (size_t) value->val.string.len == strlen(string) &&
		memcmp(value->val.string.val, string, value->val.string.len) == 0;
}

/* ---------- paths ---------- */

/* Takes a dotted path apart.  A dot becomes the next segment's length. */
static void
compile_path(const JsonbValue *text, FilterPath *path)
{
	const char *p = text->val.string.val;
	const char *end = p + text->val.string.len;
	char	   *out;
	Size		dots = 0;

	for (const char *s = p; s < end; s++)
		dots += (*s == '.');
	path->text = text;
	path->bytes = out = palloc((Size) text->val.string.len + (dots + 1) * sizeof(uint32));

	for (;;)
	{
		const char *dot = memchr(p, '.', end - p);
		uint32		len = (uint32) ((dot ? dot : end) - p);

		if (len == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("path \"%s\" in the filter has an empty segment", quote(text)),
					 errhint("Write a path as \"field\" or \"path.to.field\".")));
		memcpy(out, &len, sizeof(len));
		memcpy(out + sizeof(len), p, len);
		out += sizeof(len) + len;
		if (dot == NULL)
			break;
		p = dot + 1;
	}
	path->len = (uint32) (out - path->bytes);
}

/* ---------- the filter's grammar ---------- */

static void
check_operand(const JsonbValue *name, OperandKind needed, const FilterPath *path,
			  const JsonbValue *operand)
{
	bool		ok = true;

	switch (needed)
	{
		case OPERAND_ANY:
			break;
		case OPERAND_ARRAY:
			ok = is_array(operand);
			break;
		case OPERAND_BOOLEAN:
			ok = (operand->type == jbvBool);
			break;
		case OPERAND_STRING:
			ok = (operand->type == jbvString);
			break;
		case OPERAND_SCALAR:
			ok = (operand->type != jbvBinary);
			break;
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("operator \"%s\" for path \"%s\" in the filter needs %s, not %s",
						quote(name), quote(path->text),
						operand_needed[needed], type_name(operand))));
}

static FilterNode *
compile_operator(const JsonbValue *name, const FilterPath *path,
				 const JsonbValue *operand)
{
	size_t		i = 0;
	FilterKind	kind;
	FilterValue *value;

	while (i < lengthof(operators) && !is_string(name, operators[i].name))
		i++;
	if (i == lengthof(operators))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown operator \"%s\" for path \"%s\" in the filter",
						quote(name), quote(path->text)),
				 errdetail("The operators are %s.", OPERATOR_LIST),
				 errhint("To compare with an object, write {\"eq\": {...}}; "
						 "to reach into an object, write a path such as \"field.member\".")));
	check_operand(name, operators[i].operand, path, operand);

	kind = operators[i].kind;
	if (kind == FILTER_IN || kind == FILTER_NIN)
		return filter_make_in(kind, path, operand->val.binary.data);
	if (kind == FILTER_EXISTS)
		return filter_make_condition(operand->val.boolean ? FILTER_EXISTS : FILTER_MISSING,
							  path, NULL, 0);
	/* Only numbers and strings are ordered. */
	if (kind >= FILTER_GT && kind <= FILTER_LTE &&
		operand->type != jbvNumeric && operand->type != jbvString)
		return filter_make_constant(false);
	value = filter_make_value(operand);
	return filter_make_condition(kind, path, &value, 1);
}

/* A member of a filter that is no combinator; appends its conditions. */
static List *
compile_field(List *nodes, const JsonbValue *key, const JsonbValue *value)
{
	FilterPath	path;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	name;
	JsonbValue	operand;

	compile_path(key, &path);
	if (!is_object(value))
	{
		FilterValue *operand_value = filter_make_value(value);

		return lappend(nodes, filter_make_condition(FILTER_EQ, &path, &operand_value, 1));
	}
	if (JsonContainerSize(value->val.binary.data) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("path \"%s\" in the filter has no operator", quote(key)),
				 errhint("To compare with an empty object, write {\"eq\": {}}.")));

	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &name, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &operand, true);
		nodes = lappend(nodes, compile_operator(&name, &path, &operand));
	}
	return nodes;
}

/* The array of an and or an or. */
static FilterNode *
compile_group(FilterKind kind, const JsonbValue *key, const JsonbValue *value, int level)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	element;
	List	   *nodes = NIL;

	if (!is_array(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" in the filter needs an array of objects, not %s",
						quote(key), type_name(value))));
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (!is_object(&element))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" in the filter needs an array of objects, not an array with %s in it",
							quote(key), type_name(&element))));
		nodes = lappend(nodes, compile_filter(element.val.binary.data, level + 1));
	}
	return filter_make_group(kind, nodes);
}

/* One filter object, the first at level 1. */
static FilterNode *
compile_filter(JsonbContainer *filter, int level)
{
	JsonbIterator *it = JsonbIteratorInit(filter);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	List	   *nodes = NIL;

	if (level > FILTER_MAX_LEVELS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("filter is nested more than %d levels deep", FILTER_MAX_LEVELS),
				 errdetail("The filter itself is the first level; "
						   "\"and\", \"or\" and \"not\" add one each.")));

	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		if (is_string(&key, "and"))
			nodes = lappend(nodes, compile_group(FILTER_AND, &key, &value, level));
		else if (is_string(&key, "or"))
			nodes = lappend(nodes, compile_group(FILTER_OR, &key, &value, level));
		else if (!is_string(&key, "not"))
			nodes = compile_field(nodes, &key, &value);
		else if (is_object(&value))
			nodes = lappend(nodes, filter_make_not(compile_filter(value.val.binary.data, level + 1)));
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"not\" in the filter needs an object, not %s",
							type_name(&value))));
	}
	return filter_make_group(FILTER_AND, nodes);
}

/* ---------- the block ---------- */

/* Adds an equality with a scalar to the index path and hash, if it fits. */
static void
add_index_path(const FilterNode *node, char *path, uint32 *len, uint64 *hash)
{
	const FilterValue *operand;
	JsonbValue	value;

	if (node->kind != FILTER_EQ)
		return;
	operand = filter_node_value(node, 0);
	if (operand->rank == RANK_CONTAINER ||
		node->pathlen > FILTER_INDEX_PATH_MAX ||
		*len + sizeof(uint32) + node->pathlen > FILTER_INDEX_PATH_MAX)
		return;
	memcpy(path + *len, &node->pathlen, sizeof(uint32));
	memcpy(path + *len + sizeof(uint32), node + 1, node->pathlen);
	*len += sizeof(uint32) + node->pathlen;
	filter_value_get(operand, &value);
	*hash = hash_combine64(*hash, filter_hash_scalar(&value));
}

/* Puts header, index path and nodes together in CurrentMemoryContext. */
static SdFilter *
assemble(const FilterNode *root)
{
	char		path[FILTER_INDEX_PATH_MAX];
	uint32		key_len = 0;
	uint64		key_hash = 0;
	Size		offset;
	SdFilter   *filter;

	if (root->kind == FILTER_AND)
	{
		const FilterNode *child = FILTER_CHILD_FIRST(root);

		for (uint32 i = 0; i < root->count; i++)
		{
			add_index_path(child, path, &key_len, &key_hash);
			child = FILTER_CHILD_NEXT(child);
		}
	}
	else
		add_index_path(root, path, &key_len, &key_hash);

	offset = MAXALIGN(sizeof(SdFilter) + key_len);
	filter = palloc0(offset + root->len);
	filter->size = offset + root->len;
	filter->key_hash = key_hash;
	filter->key_len = key_len;
	filter->root = (uint32) offset;
	memcpy(filter + 1, path, key_len);
	memcpy((char *) filter + offset, root, root->len);
	return filter;
}

SdFilter *
filter_compile(Jsonb *filter)
{
	MemoryContext scratch;
	MemoryContext caller;
	FilterNode *root;
	SdFilter   *result = NULL;

	if (!JB_ROOT_IS_OBJECT(filter))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("filter must be a JSON object"),
				 errhint("Write a filter as {\"path.to.field\": {\"eq\": 1}}.")));

	/* After an error the scratch memory goes with its parent. */
	scratch = AllocSetContextCreate(CurrentMemoryContext,
									"subdispatch filter", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(scratch);
	root = compile_filter(&filter->root, 1);
	MemoryContextSwitchTo(caller);
	if (root->kind != FILTER_TRUE)
		result = assemble(root);
	MemoryContextDelete(scratch);
	return result;
}
