/*-------------------------------------------------------------------------
 *
 * match.c
 *	  Evaluates compiled filters on a visible event's data, and computes the
 *	  keys of the equality index.  match_compile.c makes the filters.
 *
 * What the operators mean
 * -----------------------
 *
 *	  eq, neq			deep equality of any two JSON values: numbers as numbers
 *						(1 = 1.0, exact at any size), strings by bytes, objects
 *						whatever the order of their keys; unlike types are unequal
 *	  gt, gte, lt, lte	of two numbers, or of two strings by bytes; else false
 *	  in, nin			eq to one, or to none, of an array's elements
 *	  exists			true: the path leads to a value, be it null; false: not
 *	  contains			a string in a string, by bytes; a scalar among the
 *						elements of an array; else false
 *	  starts_with		a string at the start of a string, by bytes; else false
 *
 * A missing field makes neq and nin true and everything else but
 * {"exists": false} false.  A JSON null that is there is a value.
 *
 * A path is taken apart at its dots.  A segment names a member of an object;
 * of an array, a segment of digits is the element with that index from 0.
 * So a member whose name has a dot cannot be reached, nor, at the first level
 * of a filter, can a field named and, or, not (they are the combinators).
 *
 * Constraints: no catalog access and no locks, the data may be nested as
 * deeply as jsonb can be (nothing here recurses into data), the recursion into
 * a filter is bounded by FILTER_MAX_LEVELS.  Most conditions allocate nothing;
 * array lookups and deep comparisons do, in CurrentMemoryContext, and give it
 * back.  A pending cancel is honoured between conditions, so do not call this
 * with a lock held.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "match_private.h"
#include "miscadmin.h"
#include "utils/builtins.h"

static bool eval_node(const FilterNode *node, JsonbContainer *data);

Size
filter_size(const SdFilter *filter)
{
	return filter->size;
}

/* ---------- values ---------- */

FilterRank
filter_rank(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return RANK_NULL;
		case jbvBool:
			return value->val.boolean ? RANK_TRUE : RANK_FALSE;
		case jbvNumeric:
			return RANK_NUMBER;
		case jbvString:
			return RANK_STRING;
		default:
			return RANK_CONTAINER;
	}
}

void
filter_value_get(const FilterValue *value, JsonbValue *result)
{
	char	   *payload = (char *) (value + 1);

	switch ((FilterRank) value->rank)
	{
		case RANK_NULL:
			result->type = jbvNull;
			break;
		case RANK_FALSE:
		case RANK_TRUE:
			result->type = jbvBool;
			result->val.boolean = (value->rank == RANK_TRUE);
			break;
		case RANK_NUMBER:
			result->type = jbvNumeric;
			result->val.numeric = (Numeric) payload;
			break;
		case RANK_STRING:
			result->type = jbvString;
			result->val.string.val = payload;
			result->val.string.len = (int) value->len;
			break;
		case RANK_CONTAINER:
			result->type = jbvBinary;
			result->val.binary.data = (JsonbContainer *) payload;
			result->val.binary.len = (int) value->len;
			break;
	}
}

static int
compare_numbers(Numeric a, Numeric b)
{
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp,
											 NumericGetDatum(a),
											 NumericGetDatum(b)));
}

static int
compare_strings(const JsonbValue *a, const JsonbValue *b)
{
	int			alen = a->val.string.len;
	int			blen = b->val.string.len;
	int			cmp = memcmp(a->val.string.val, b->val.string.val, Min(alen, blen));

	if (cmp == 0 && alen != blen)
		cmp = alen < blen ? -1 : 1;
	return cmp;
}

int
filter_compare_scalars(const JsonbValue *a, const JsonbValue *b)
{
	FilterRank	arank = filter_rank(a);
	FilterRank	brank = filter_rank(b);

	if (arank != brank)
		return arank < brank ? -1 : 1;
	if (arank == RANK_NUMBER)
		return compare_numbers(a->val.numeric, b->val.numeric);
	if (arank == RANK_STRING)
		return compare_strings(a, b);
	return 0;
}

/* Equal bytes, the common case of equal numbers, need no arithmetic. */
static bool
numbers_equal(Numeric a, Numeric b)
{
	if (VARSIZE_ANY(a) == VARSIZE_ANY(b) && memcmp(a, b, VARSIZE_ANY(a)) == 0)
		return true;
	return compare_numbers(a, b) == 0;
}

static bool
scalars_equal(const JsonbValue *a, const JsonbValue *b)
{
	if (a->type != b->type)
		return false;
	switch (a->type)
	{
		case jbvNull:
			return true;
		case jbvBool:
			return a->val.boolean == b->val.boolean;
		case jbvNumeric:
			return numbers_equal(a->val.numeric, b->val.numeric);
		case jbvString:
			return a->val.string.len == b->val.string.len &&
				memcmp(a->val.string.val, b->val.string.val, a->val.string.len) == 0;
		default:
			return false;
	}
}

static void
free_iterator(JsonbIterator *it)
{
	while (it != NULL)
	{
		JsonbIterator *parent = it->parent;

		pfree(it);
		it = parent;
	}
}

/*
 * Walks two containers side by side.  Members of an object are stored sorted
 * and without duplicates, so equal objects give the same tokens.  (Core's
 * compareJsonbContainers orders strings by the database's collation, which
 * costs more and looks at catalogs.)
 */
static bool
containers_equal(const JsonbValue *a, const JsonbValue *b)
{
	JsonbContainer *ca = a->val.binary.data;
	JsonbContainer *cb = b->val.binary.data;
	JsonbIterator *ita;
	JsonbIterator *itb;
	JsonbIteratorToken token;
	bool		equal = true;

	if (ca->header != cb->header)
		return false;			/* other kind or number of members */
	if (a->val.binary.len == b->val.binary.len &&
		memcmp(ca, cb, a->val.binary.len) == 0)
		return true;

	ita = JsonbIteratorInit(ca);
	itb = JsonbIteratorInit(cb);
	do
	{
		JsonbValue	va;
		JsonbValue	vb;

		token = JsonbIteratorNext(&ita, &va, false);
		if (token != JsonbIteratorNext(&itb, &vb, false))
			equal = false;
		else if (token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM)
			equal = scalars_equal(&va, &vb);
	} while (equal && token != WJB_DONE);

	free_iterator(ita);
	free_iterator(itb);
	return equal;
}

static bool
values_equal(const JsonbValue *a, const JsonbValue *b)
{
	if (a->type == jbvBinary && b->type == jbvBinary)
		return containers_equal(a, b);
	return scalars_equal(a, b);
}

uint64
filter_hash_scalar(const JsonbValue *value)
{
	FilterRank	rank = filter_rank(value);

	/* The rank is the seed: "1" and 1 are different values. */
	if (rank == RANK_NUMBER)
		return DatumGetUInt64(DirectFunctionCall2(hash_numeric_extended,
												  NumericGetDatum(value->val.numeric),
												  UInt64GetDatum((uint64) rank)));
	if (rank == RANK_STRING)
		return hash_bytes_extended((const unsigned char *) value->val.string.val,
								   value->val.string.len, (uint64) rank);
	return murmurhash32((uint32) rank + 1);
}

/* ---------- paths ---------- */

/* An array's element by a segment of digits; false if it is none, or missing. */
static bool
fetch_element(JsonbContainer *array, const char *segment, uint32 len,
			  JsonbValue *result)
{
	uint64		index = 0;
	JsonbValue *element;

	if (JsonContainerIsScalar(array))
		return false;			/* an array in the storage format only */
	for (uint32 i = 0; i < len; i++)
	{
		if (segment[i] < '0' || segment[i] > '9')
			return false;
		index = index * 10 + (uint64) (segment[i] - '0');
		if (index >= JsonContainerSize(array))
			return false;
	}

	element = getIthJsonbValueFromContainer(array, (uint32) index);
	if (element == NULL)
		return false;
	*result = *element;
	pfree(element);
	return true;
}

/* The value at a path; it points into "data". */
static bool
fetch(JsonbContainer *data, const char *path, uint32 pathlen, JsonbValue *result)
{
	const char *end = path + pathlen;
	JsonbContainer *container = data;

	for (;;)
	{
		uint32		len;

		memcpy(&len, path, sizeof(len));
		path += sizeof(len);
		if (JsonContainerIsObject(container))
		{
			if (getKeyJsonValueFromContainer(container, path, (int) len, result) == NULL)
				return false;
		}
		else if (!fetch_element(container, path, len, result))
			return false;

		path += len;
		if (path >= end)
			return true;
		if (result->type != jbvBinary)
			return false;
		container = result->val.binary.data;
	}
}

/* ---------- evaluation ---------- */

static bool
eval_ordering(FilterKind kind, const JsonbValue *value, const JsonbValue *operand)
{
	int			cmp;

	if (value->type != operand->type)
		return false;
	if (value->type == jbvNumeric)
		cmp = compare_numbers(value->val.numeric, operand->val.numeric);
	else if (value->type == jbvString)
		cmp = compare_strings(value, operand);
	else
		return false;

	switch (kind)
	{
		case FILTER_GT:
			return cmp > 0;
		case FILTER_GTE:
			return cmp >= 0;
		case FILTER_LT:
			return cmp < 0;
		default:
			return cmp <= 0;
	}
}

static bool
eval_starts_with(const JsonbValue *value, const JsonbValue *prefix)
{
	return value->type == jbvString &&
		value->val.string.len >= prefix->val.string.len &&
		memcmp(value->val.string.val, prefix->val.string.val,
			   prefix->val.string.len) == 0;
}

static bool
eval_contains(const JsonbValue *value, JsonbValue *operand)
{
	JsonbValue *found;

	if (value->type == jbvString && operand->type == jbvString)
		return memmem(value->val.string.val, value->val.string.len,
					  operand->val.string.val, operand->val.string.len) != NULL;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		return false;
	found = findJsonbValueFromContainer(value->val.binary.data, JB_FARRAY, operand);
	if (found == NULL)
		return false;
	pfree(found);
	return true;
}

/* Operands are sorted and distinct, containers behind the scalars. */
static bool
eval_in(const FilterNode *node, const JsonbValue *value)
{
	uint32		low = 0;
	uint32		high = node->count;
	JsonbValue	operand;

	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;
		int			cmp;

		filter_value_get(filter_node_value(node, middle), &operand);
		cmp = filter_compare_scalars(&operand, value);
		if (cmp == 0 && value->type != jbvBinary)
			return true;
		if (cmp < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (value->type != jbvBinary)
		return false;

	for (uint32 i = low; i < node->count; i++)
	{
		filter_value_get(filter_node_value(node, i), &operand);
		if (containers_equal(value, &operand))
			return true;
	}
	return false;
}

static bool
eval_condition(const FilterNode *node, JsonbContainer *data)
{
	FilterKind	kind = (FilterKind) node->kind;
	JsonbValue	value;
	JsonbValue	operand;

	if (!fetch(data, FILTER_NODE_PATH(node), node->pathlen, &value))
		return kind == FILTER_NEQ || kind == FILTER_NIN || kind == FILTER_MISSING;

	if (kind == FILTER_EXISTS || kind == FILTER_MISSING)
		return kind == FILTER_EXISTS;
	if (filter_has_offsets(kind))
		return eval_in(node, &value) == (kind == FILTER_IN);

	filter_value_get(filter_node_value(node, 0), &operand);
	switch (kind)
	{
		case FILTER_EQ:
			return values_equal(&value, &operand);
		case FILTER_NEQ:
			return !values_equal(&value, &operand);
		case FILTER_STARTS_WITH:
			return eval_starts_with(&value, &operand);
		case FILTER_CONTAINS:
			return eval_contains(&value, &operand);
		default:
			return eval_ordering(kind, &value, &operand);
	}
}

/* Does one child of a group have the given result? */
static bool
eval_any(const FilterNode *group, JsonbContainer *data, bool wanted)
{
	const FilterNode *child = FILTER_CHILD_FIRST(group);

	for (uint32 i = 0; i < group->count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (eval_node(child, data) == wanted)
			return true;
		child = FILTER_CHILD_NEXT(child);
	}
	return false;
}

static bool
eval_node(const FilterNode *node, JsonbContainer *data)
{
	switch ((FilterKind) node->kind)
	{
		case FILTER_AND:
			return !eval_any(node, data, false);
		case FILTER_OR:
			return eval_any(node, data, true);
		case FILTER_NOT:
			return !eval_node(FILTER_CHILD_FIRST(node), data);
		case FILTER_FALSE:
			return false;
		case FILTER_TRUE:
			return true;
		default:
			return eval_condition(node, data);
	}
}

bool
filter_match(const SdFilter *filter, JsonbContainer *data)
{
	if (filter == NULL)
		return true;
	return eval_node((const FilterNode *) ((const char *) filter + filter->root), data);
}

/* ---------- equality index ---------- */

/*
 * The index path is a row of paths, each with a uint32 length before it: those
 * that the filter's root compares with a scalar, in the compiled order (by
 * their bytes), as far as they fit.  All of them together make the key, so a
 * filter on {"type": "insert", "room": 7} is no candidate for another room.
 */
bool
filter_index_key(const SdFilter *filter, const char **path, int *pathlen,
				 uint64 *hash)
{
	if (filter == NULL || filter->key_len == 0)
		return false;
	*path = (const char *) (filter + 1);
	*pathlen = (int) filter->key_len;
	*hash = filter->key_hash;
	return true;
}

bool
filter_event_key(JsonbContainer *data, const char *path, int pathlen,
				 uint64 *hash)
{
	const char *end = path + pathlen;
	uint64		result = 0;

	while (path < end)
	{
		uint32		len;
		JsonbValue	value;

		memcpy(&len, path, sizeof(len));
		path += sizeof(len);
		if (!fetch(data, path, len, &value) || value.type == jbvBinary)
			return false;
		result = hash_combine64(result, filter_hash_scalar(&value));
		path += len;
	}
	*hash = result;
	return true;
}
