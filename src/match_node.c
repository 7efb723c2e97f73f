/*-------------------------------------------------------------------------
 *
 * match_node.c
 *	  Builds the nodes of compiled filters, in canonical form.
 *
 * Filters that differ in spelling only get the same bytes: whatever the order
 * of members, the short form, the nesting of equal groups, repeated
 * conditions, not of something that has an opposite, trailing zeros of
 * numbers, order and repetitions in "in".  No attempt is made to prove more
 * than that.
 *
 * Constraints: no catalog access, no locks.  Everything is palloc'd in
 * CurrentMemoryContext and left there (filter_compile() drops it at once);
 * nodes that are passed in may become part of the result or be changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "match_private.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* ---------- values ---------- */

static Numeric
trim_number(Numeric number)
{
	return DatumGetNumeric(DirectFunctionCall1(numeric_trim_scale,
											   NumericGetDatum(number)));
}

/* A copy of an array or object in which no number has trailing zeros. */
static Jsonb *
trim_container(JsonbContainer *container)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbParseState *state = NULL;
	JsonbValue *result = NULL;
	JsonbValue	value;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		bool		scalar = token < WJB_BEGIN_ARRAY;

		if (scalar && value.type == jbvNumeric)
			value.val.numeric = trim_number(value.val.numeric);
		result = pushJsonbValue(&state, token, scalar ? &value : NULL);
	}
	return JsonbValueToJsonb(result);
}

/* An operand in its canonical form, palloc'd. */
FilterValue *
filter_make_value(const JsonbValue *value)
{
	const void *payload = NULL;
	Size		len = 0;
	FilterValue *result;

	if (value->type == jbvString)
	{
		payload = value->val.string.val;
		len = value->val.string.len;
	}
	else if (value->type == jbvNumeric)
	{
		payload = trim_number(value->val.numeric);
		len = VARSIZE(payload);
	}
	else if (value->type == jbvBinary)
	{
		Jsonb	   *trimmed = trim_container(value->val.binary.data);

		payload = &trimmed->root;
		len = VARSIZE(trimmed) - VARHDRSZ;
	}

	result = palloc0(MAXALIGN(sizeof(FilterValue) + len));
	result->len = (uint32) len;
	result->rank = (uint32) filter_rank(value);
	if (len > 0)
		memcpy(result + 1, payload, len);
	return result;
}

static Size
value_size(const FilterValue *value)
{
	return MAXALIGN(sizeof(FilterValue) + value->len);
}

/* Order of an "in" list: scalars by value, containers behind them by bytes. */
static int
compare_values(const void *a, const void *b)
{
	const FilterValue *va = *(FilterValue *const *) a;
	const FilterValue *vb = *(FilterValue *const *) b;
	JsonbValue	ja;
	JsonbValue	jb;

	if (va->rank == RANK_CONTAINER && vb->rank == RANK_CONTAINER)
	{
		if (va->len != vb->len)
			return va->len < vb->len ? -1 : 1;
		return memcmp(va + 1, vb + 1, va->len);
	}
	filter_value_get(va, &ja);
	filter_value_get(vb, &jb);
	return filter_compare_scalars(&ja, &jb);
}

/* ---------- nodes ---------- */

static FilterNode *
new_node(FilterKind kind, Size size)
{
	FilterNode *node;

	if (!AllocSizeIsValid(size))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("filter is too large")));
	node = palloc0(size);
	node->len = (uint32) size;
	node->kind = kind;
	return node;
}

FilterNode *
filter_make_constant(bool value)
{
	return new_node(value ? FILTER_TRUE : FILTER_FALSE, sizeof(FilterNode));
}

FilterNode *
filter_make_condition(FilterKind kind, const FilterPath *path,
			   FilterValue **values, uint32 count)
{
	Size		pos = sizeof(FilterNode) + MAXALIGN(path->len);
	Size		size = pos;
	bool		offsets = filter_has_offsets(kind);
	FilterNode *node;
	uint32	   *offset;

	if (offsets)
		size += MAXALIGN((Size) count * sizeof(uint32));
	for (uint32 i = 0; i < count; i++)
		size += value_size(values[i]);

	node = new_node(kind, size);
	node->pathlen = path->len;
	node->count = count;
	memcpy(node + 1, path->bytes, path->len);
	offset = (uint32 *) ((char *) node + pos);
	if (offsets)
		pos += MAXALIGN((Size) count * sizeof(uint32));
	for (uint32 i = 0; i < count; i++)
	{
		if (offsets)
			offset[i] = (uint32) pos;
		memcpy((char *) node + pos, values[i], value_size(values[i]));
		pos += value_size(values[i]);
	}
	return node;
}

/* Sorted by value without repetitions; one element is eq, none a constant. */
FilterNode *
filter_make_in(FilterKind kind, const FilterPath *path, JsonbContainer *array)
{
	uint32		count = JsonContainerSize(array);
	uint32		distinct = 0;
	uint32		i = 0;
	FilterValue **values;
	JsonbIterator *it = JsonbIteratorInit(array);
	JsonbIteratorToken token;
	JsonbValue	element;

	if (count == 0)
		return filter_make_constant(kind == FILTER_NIN);

	values = palloc_extended((Size) count * sizeof(FilterValue *), MCXT_ALLOC_HUGE);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			values[i++] = filter_make_value(&element);
	}
	Assert(i == count);
	qsort(values, count, sizeof(FilterValue *), compare_values);
	for (i = 0; i < count; i++)
	{
		if (i == 0 || compare_values(&values[distinct - 1], &values[i]) != 0)
			values[distinct++] = values[i];
	}
	if (distinct == 1)
		kind = (kind == FILTER_IN) ? FILTER_EQ : FILTER_NEQ;
	return filter_make_condition(kind, path, values, distinct);
}

/* The opposite; conditions that have one by name become that one. */
FilterNode *
filter_make_not(FilterNode *node)
{
	static const FilterKind opposites[][2] = {
		{FILTER_EQ, FILTER_NEQ}, {FILTER_IN, FILTER_NIN},
		{FILTER_EXISTS, FILTER_MISSING}, {FILTER_TRUE, FILTER_FALSE}
	};
	FilterNode *result;

	for (size_t i = 0; i < lengthof(opposites); i++)
	{
		if (node->kind == opposites[i][0] || node->kind == opposites[i][1])
		{
			node->kind = (node->kind == opposites[i][0]) ? opposites[i][1] : opposites[i][0];
			return node;
		}
	}
	if (node->kind == FILTER_NOT)
		return (FilterNode *) FILTER_CHILD_FIRST(node);

	result = new_node(FILTER_NOT, sizeof(FilterNode) + node->len);
	result->count = 1;
	memcpy(result + 1, node, node->len);
	return result;
}

/* Order of a group's children: kind, path, then whatever differs. */
static int
compare_nodes(const ListCell *a, const ListCell *b)
{
	const FilterNode *na = (const FilterNode *) lfirst(a);
	const FilterNode *nb = (const FilterNode *) lfirst(b);
	int			cmp;

	if (na->kind != nb->kind)
		return na->kind < nb->kind ? -1 : 1;
	cmp = memcmp(na + 1, nb + 1, Min(na->pathlen, nb->pathlen));
	if (cmp != 0)
		return cmp;
	if (na->pathlen != nb->pathlen)
		return na->pathlen < nb->pathlen ? -1 : 1;
	if (na->len != nb->len)
		return na->len < nb->len ? -1 : 1;
	return memcmp(na, nb, na->len);
}

/*
 * The children of a group, with those of groups of the same kind in their
 * place and without the constant that changes nothing.  NIL with *decided set
 * if one child decides the group.
 */
static List *
flatten(FilterKind kind, List *children, bool *decided)
{
	FilterKind	neutral = (kind == FILTER_AND) ? FILTER_TRUE : FILTER_FALSE;
	FilterKind	absorbing = (kind == FILTER_AND) ? FILTER_FALSE : FILTER_TRUE;
	List	   *flat = NIL;
	ListCell   *lc;

	*decided = false;
	foreach(lc, children)
	{
		FilterNode *node = (FilterNode *) lfirst(lc);

		if (node->kind == absorbing)
		{
			*decided = true;
			return NIL;
		}
		if (node->kind == kind)
		{
			const FilterNode *child = FILTER_CHILD_FIRST(node);

			for (uint32 i = 0; i < node->count; i++)
			{
				flat = lappend(flat, (void *) child);
				child = FILTER_CHILD_NEXT(child);
			}
		}
		else if (node->kind != neutral)
			flat = lappend(flat, node);
	}
	return flat;
}

/* Sorts and removes repetitions; returns the bytes of what remains. */
static Size
sort_children(List **children)
{
	List	   *distinct = NIL;
	const FilterNode *last = NULL;
	Size		size = 0;
	ListCell   *lc;

	list_sort(*children, compare_nodes);
	foreach(lc, *children)
	{
		FilterNode *node = (FilterNode *) lfirst(lc);

		if (last && last->len == node->len && memcmp(last, node, node->len) == 0)
			continue;
		distinct = lappend(distinct, node);
		size += node->len;
		last = node;
	}
	*children = distinct;
	return size;
}

/* An and or an or of nodes. */
FilterNode *
filter_make_group(FilterKind kind, List *children)
{
	bool		decided;
	List	   *flat = flatten(kind, children, &decided);
	Size		size = sort_children(&flat);
	FilterNode *group;
	char	   *out;
	ListCell   *lc;

	if (flat == NIL)
		return filter_make_constant((kind == FILTER_AND) != decided);
	if (list_length(flat) == 1)
		return (FilterNode *) linitial(flat);

	group = new_node(kind, sizeof(FilterNode) + size);
	group->count = (uint32) list_length(flat);
	out = (char *) (group + 1);
	foreach(lc, flat)
	{
		FilterNode *node = (FilterNode *) lfirst(lc);

		memcpy(out, node, node->len);
		out += node->len;
	}
	return group;
}
