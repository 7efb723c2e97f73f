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

#include "ref.h"

struct SdStream;

#define STREAMVEC_PAGE	512		/* members; a power of two */

/* All under registry_lock.  All zero is an empty one. */
typedef struct SdStreamVec
{
	union
	{
		SdRef		only;		/* cap = 0: the only member */
		SdRef	   *page;		/* cap <= STREAMVEC_PAGE */
		SdRef	  **pages;
	}			u;
	uint32		n;
	uint32		cap;			/* with pages: what all that fit into the list hold */
} SdStreamVec;

static inline struct SdStream *
streamvec_get(const SdStreamVec *vec, uint32 i)
{
	SdRef		ref;

	if (vec->cap == 0)
		ref = vec->u.only;
	else if (vec->cap <= STREAMVEC_PAGE)
		ref = vec->u.page[i];
	else
		ref = vec->u.pages[i / STREAMVEC_PAGE][i % STREAMVEC_PAGE];
	return (struct SdStream *) sd_at(ref);
}

/* One that has a single member, and no memory of its own. */
static inline void
streamvec_of_one(SdStreamVec *vec, struct SdStream *stream)
{
	vec->u.only = sd_ref(stream);
	vec->n = 1;
	vec->cap = 0;
}

/* Appends, at n - 1; false when shared memory is used up. */
extern bool streamvec_push(SdStreamVec *vec, struct SdStream *stream);

/*
 * Removes member i.  The last one takes its place: returns it, or NULL if i was
 * the last.
 */
extern struct SdStream *streamvec_remove(SdStreamVec *vec, uint32 i);

#endif							/* SD_STREAMVEC_H */
