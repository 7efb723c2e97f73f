/*-------------------------------------------------------------------------
 *
 * match.h
 *	  Filters on a visible event's data, and the keys of the equality index.
 *
 * A compiled filter is one flat block without pointers: memcpy it wherever
 * it is needed (MAXALIGNed), compare two of them with memcmp over
 * filter_size() bytes.  Filters that were spelled differently but mean the
 * same by the rules at the top of match.c have the same bytes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_MATCH_H
#define SUBDISPATCH_MATCH_H

#include "postgres.h"

#include "utils/jsonb.h"

/* Levels of nested filters: the filter itself is the first. */
#define FILTER_MAX_LEVELS		10

/* An index path never has more bytes than this. */
#define FILTER_INDEX_PATH_MAX	256

typedef struct SdFilter SdFilter;

/*
 * The compiled form of "filter", palloc'd in CurrentMemoryContext; NULL for a
 * filter that lets everything pass, such as '{}'.  Raises 22023 with what is
 * wrong and where.
 */
extern SdFilter *filter_compile(Jsonb *filter);

/* Bytes of the block, a multiple of MAXIMUM_ALIGNOF. */
extern Size filter_size(const SdFilter *filter);

/* Does "data" (an event's "data") satisfy the filter?  NULL: it does. */
extern bool filter_match(const SdFilter *filter, JsonbContainer *data);

/*
 * What the filter needs to be found in an equality index: the paths that it
 * compares for equality, as opaque bytes (*path points into the filter, at
 * most FILTER_INDEX_PATH_MAX), and the hash of the values that it wants there.
 * False if it compares nothing for equality at its top level.
 */
extern bool filter_index_key(const SdFilter *filter, const char **path,
							 int *pathlen, uint64 *hash);

/*
 * The hash of the values that "data" has at "path", comparable with the one
 * of filter_index_key(); false if it has no scalar at one of them, and then
 * no filter with that path matches.  Equal hashes are candidates only:
 * filter_match() decides.
 */
extern bool filter_event_key(JsonbContainer *data, const char *path,
							 int pathlen, uint64 *hash);

#endif							/* SUBDISPATCH_MATCH_H */
