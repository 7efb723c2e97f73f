/*-------------------------------------------------------------------------
 *
 * walk.h
 *	  Going through a hash table in shared memory without holding its lock for
 *	  long: a bounded number of members is copied at a time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_WALK_H
#define SD_WALK_H

#include "shmem.h"

/* Place of a copied thing in SdWalk->bytes; 0 is none. */
typedef uint32 SdCopied;

typedef struct SdWalk
{
	/* given by the caller */
	const SdHash *table;		/* one of sd_shared's */
	Size		row_size;
	Size		fetch;			/* a pointer in each member to what is needed; 0: none */
	/* Called under the table's lock: copies, with the functions below only. */
	void		(*collect) (struct SdWalk *walk, SdHashNode *node);
	/* walk_run(): called without a lock for each row, in a context that is then reset. */
	void		(*emit) (struct SdWalk *walk, void *row);
	void	   *arg;

	/* what may be seen */
	bool		all;			/* the caller is of pg_monitor */
	Oid			user;			/* owner = user, otherwise */

	/* private */
	uint64		bucket;			/* the next lot begins there */
	uint64		fetched;		/* all before this are in the caches */
	uint64		end;
	char	   *rows;
	int			nrows;
	int			next_row;
	int			max_rows;
	char	   *bytes;
	Size		nbytes;
	Size		max_bytes;
	bool		full;
} SdWalk;

/* Calls collect and emit for everything in the table. */
extern void walk_run(SdWalk *walk);

/*
 * Or, instead of emit, row by row: each is there until the next one is asked for,
 * NULL is the end.  All is in the memory context of walk_begin() and goes with it;
 * no lock is held between the calls.
 */
extern void walk_begin(SdWalk *walk);
/* Only for what may have that hash. */
extern void walk_begin_look_up(SdWalk *walk, uint32 hash);
extern void *walk_next(SdWalk *walk);

/* A new, zeroed row, or NULL when this lot is full: then just return. */
extern void *walk_row(SdWalk *walk);
extern SdCopied walk_copy(SdWalk *walk, const void *src, Size len);
/* As a text; of NULL: none. */
extern SdCopied walk_copy_text(SdWalk *walk, const char *s, Size len);
extern SdCopied walk_copy_string(SdWalk *walk, const char *s);
extern SdCopied walk_copy_jsonb(SdWalk *walk, const void *jsonb);

/* What walk_copy() copied, until emit returns; NULL for none. */
static inline void *
walk_copied(SdWalk *walk, SdCopied at)
{
	return at == 0 ? NULL : walk->bytes + at;
}

static inline bool
walk_visible(const SdWalk *walk, Oid dboid, Oid owner, Oid my_dboid)
{
	return dboid == my_dboid && (walk->all || owner == walk->user);
}

#endif							/* SD_WALK_H */
