/*-------------------------------------------------------------------------
 *
 * match_private.h
 *	  Layout of a compiled filter; for match*.c only.
 *
 * The block is a header, the index path, and one root node.  A node is either
 * a condition on one path or a group whose children follow it, each with its
 * own length, so that a reader walks from sibling to sibling:
 *
 *	  SdFilter | index path | FilterNode root
 *	  condition: FilterNode | path | [offsets of the values] | values
 *	  group:     FilterNode | child | child | …
 *
 * Every part starts MAXALIGNed, offsets count from the start of the node, and
 * padding is zero.  A path is a row of segments, each a uint32 length (not
 * aligned: read it with memcpy) and its bytes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_MATCH_PRIVATE_H
#define SUBDISPATCH_MATCH_PRIVATE_H

#include "match.h"

#include "nodes/pg_list.h"
#include "utils/numeric.h"

/*
 * Kinds of nodes.  Children of a group are sorted by kind, so the order here
 * is the order of evaluation: what decides fast comes first.
 */
typedef enum FilterKind
{
	FILTER_EQ = 1,
	FILTER_EXISTS,
	FILTER_MISSING,
	FILTER_NEQ,
	FILTER_GT,
	FILTER_GTE,
	FILTER_LT,
	FILTER_LTE,
	FILTER_STARTS_WITH,
	FILTER_IN,
	FILTER_NIN,
	FILTER_CONTAINS,
	FILTER_NOT,
	FILTER_OR,
	FILTER_AND,
	FILTER_FALSE,
	FILTER_TRUE					/* never in a finished block */
} FilterKind;

/* What a value is; the order in which the values of "in" are sorted. */
typedef enum FilterRank
{
	RANK_NULL,
	RANK_FALSE,
	RANK_TRUE,
	RANK_NUMBER,
	RANK_STRING,
	RANK_CONTAINER
} FilterRank;

/*
 * An operand: a numeric without trailing zeros, a string's bytes, a
 * JsonbContainer whose numbers have no trailing zeros, or nothing.
 */
typedef struct FilterValue
{
	uint32		len;			/* bytes that follow */
	uint32		rank;			/* FilterRank */
} FilterValue;

typedef struct FilterNode
{
	uint32		len;			/* whole node, MAXALIGNed */
	uint32		kind;			/* FilterKind */
	uint32		pathlen;		/* condition: bytes of its path */
	uint32		count;			/* condition: values; group: children */
} FilterNode;

struct SdFilter
{
	Size		size;			/* whole block, MAXALIGNed */
	uint64		key_hash;		/* hash of the index values, if key_len > 0 */
	uint32		key_len;		/* bytes of the index path, 0 if none */
	uint32		root;			/* offset of the root node */
};

#define FILTER_NODE_PATH(node)	((const char *) ((node) + 1))
#define FILTER_CHILD_FIRST(node) ((const FilterNode *) ((node) + 1))
#define FILTER_CHILD_NEXT(node)	\
	((const FilterNode *) ((const char *) (node) + (node)->len))

/* Several values are found through a table of offsets, a single one is not. */
static inline bool
filter_has_offsets(uint32 kind)
{
	return kind == FILTER_IN || kind == FILTER_NIN;
}

static inline const FilterValue *
filter_node_value(const FilterNode *node, uint32 i)
{
	const char *values = (const char *) (node + 1) + MAXALIGN(node->pathlen);

	if (filter_has_offsets(node->kind))
		return (const FilterValue *)
			((const char *) node + ((const uint32 *) values)[i]);
	return (const FilterValue *) values;
}

/* A view of an operand as a JsonbValue: it points into the operand. */
extern void filter_value_get(const FilterValue *value, JsonbValue *result);

/* Rank of a value as the iterator and the lookup functions give it. */
extern FilterRank filter_rank(const JsonbValue *value);

/* Order of two scalars: by rank, numbers as numbers, strings by bytes. */
extern int	filter_compare_scalars(const JsonbValue *a, const JsonbValue *b);

/* Hash of a scalar, such that equal ones have equal hashes. */
extern uint64 filter_hash_scalar(const JsonbValue *value);

typedef struct FilterPath
{
	const JsonbValue *text;		/* as the user wrote it */
	char	   *bytes;			/* segments, see match_private.h */
	uint32		len;
} FilterPath;

/* match_node.c: the builders.  A value's canonical form, a constant node, … */
extern FilterValue *filter_make_value(const JsonbValue *value);
extern FilterNode *filter_make_constant(bool value);
extern FilterNode *filter_make_condition(FilterKind kind, const FilterPath *path,
										 FilterValue **values, uint32 count);

/* … FILTER_IN or FILTER_NIN of an array's elements, … */
extern FilterNode *filter_make_in(FilterKind kind, const FilterPath *path,
								  JsonbContainer *array);

/* … the opposite of a node, and FILTER_AND or FILTER_OR of a list of them. */
extern FilterNode *filter_make_not(FilterNode *node);
extern FilterNode *filter_make_group(FilterKind kind, List *children);

#endif							/* SUBDISPATCH_MATCH_PRIVATE_H */
