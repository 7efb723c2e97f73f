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
	/* Called without a lock for each row, in a context that is then reset. */
	void		(*emit) (struct SdWalk *walk, void *row);
	void	   *arg;

	/* what may be seen */
	bool		all;			/* the caller is of pg_monitor */
	Oid			user;			/* owner = user, otherwise */

	/* private */
	char	   *rows;
	int			nrows;
	int			max_rows;
	char	   *bytes;
	Size		nbytes;
	Size		max_bytes;
	bool		full;
} SdWalk;

/* Calls collect and emit for everything in the table. */
extern void walk_run(SdWalk *walk);
/* Only for what may have that hash. */
extern void walk_look_up(SdWalk *walk, uint32 hash);

/* A new, zeroed row, or NULL when this lot is full: then just return. */
extern void *walk_row(SdWalk *walk);
extern SdCopied walk_copy(SdWalk *walk, const void *src, Size len);
extern SdCopied walk_copy_string(SdWalk *walk, const char *s);
/* The same of a string without a NUL at its end. */
extern SdCopied walk_copy_text(SdWalk *walk, const char *s, Size len);
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
