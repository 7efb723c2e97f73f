/*-------------------------------------------------------------------------
 *
 * streamvec.h
 *	  Arrays of streams in shared memory, from one to millions.
 *
 * Most have a single member, which needs no memory besides the struct.  Large
 * ones consist of pages, so that no step of their growth copies more than one
 * page and the list of pages: they grow under registry_lock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_STREAMVEC_H
#define SD_STREAMVEC_H

#include "postgres.h"

struct SdStream;

#define STREAMVEC_PAGE	512		/* members; a power of two */

/* All under registry_lock.  All zero is an empty one. */
typedef struct SdStreamVec
{
	union
	{
		struct SdStream *only;	/* cap = 0: the only member */
		struct SdStream **page; /* cap <= STREAMVEC_PAGE */
		struct SdStream ***pages;
	}			u;
	uint32		n;
	uint32		cap;			/* with pages: what all that fit into the list hold */
} SdStreamVec;

static inline struct SdStream *
streamvec_get(const SdStreamVec *vec, uint32 i)
{
	if (vec->cap == 0)
		return vec->u.only;
	if (vec->cap <= STREAMVEC_PAGE)
		return vec->u.page[i];
	return vec->u.pages[i / STREAMVEC_PAGE][i % STREAMVEC_PAGE];
}

/* Appends, at n - 1; false when shared memory is used up. */
extern bool streamvec_push(SdStreamVec *vec, struct SdStream *stream);

/*
 * Removes member i.  The last one takes its place: returns it, or NULL if i was
 * the last.
 */
extern struct SdStream *streamvec_remove(SdStreamVec *vec, uint32 i);

#endif							/* SD_STREAMVEC_H */
