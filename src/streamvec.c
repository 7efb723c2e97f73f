/*-------------------------------------------------------------------------
 *
 * streamvec.c
 *	  Arrays of streams in shared memory, from one to millions.
 *
 * A vec is one reference, then one array that doubles, then, from STREAMVEC_PAGE
 * on, a list of pages of that size; the list doubles too, but is so much
 * shorter that copying it takes microseconds.  It shrinks by pages, and goes
 * back to a reference when it is empty.
 *
 * Locks: registry_lock, held by the caller exclusively.  No errors are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "shmem.h"
#include "streamvec.h"

#define FIRST_ARRAY		4
#define FIRST_PAGES		8

static SdRef *
slot(SdStreamVec *vec, uint32 i)
{
	if (vec->cap == 0)
		return &vec->u.only;
	if (vec->cap <= STREAMVEC_PAGE)
		return &vec->u.page[i];
	return &vec->u.pages[i / STREAMVEC_PAGE][i % STREAMVEC_PAGE];
}

/* A larger copy of what has "used" bytes; frees it. */
static void *
enlarge(void *old, Size used, Size size)
{
	void	   *larger = sd_alloc(SD_MEM_SUBSCRIPTION, size);

	if (larger == NULL)
		return NULL;
	memcpy(larger, old, used);
	sd_free(old);
	return larger;
}

/* From the only member to an array. */
static bool
make_array(SdStreamVec *vec)
{
	SdRef	   *page = sd_alloc(SD_MEM_SUBSCRIPTION, FIRST_ARRAY * sizeof(SdRef));

	if (page == NULL)
		return false;
	page[0] = vec->u.only;
	vec->u.page = page;
	vec->cap = FIRST_ARRAY;
	return true;
}

static bool
double_array(SdStreamVec *vec)
{
	SdRef	   *page = enlarge(vec->u.page, vec->n * sizeof(SdRef), vec->cap * 2 * sizeof(SdRef));

	if (page == NULL)
		return false;
	vec->u.page = page;
	vec->cap *= 2;
	return true;
}

/* From one full page to a list of pages. */
static bool
make_list(SdStreamVec *vec)
{
	SdRef	  **pages = sd_alloc(SD_MEM_SUBSCRIPTION, FIRST_PAGES * sizeof(SdRef *));

	if (pages == NULL)
		return false;
	pages[0] = vec->u.page;
	vec->u.pages = pages;
	vec->cap = FIRST_PAGES * STREAMVEC_PAGE;
	return true;
}

/* All pages are full: adds one. */
static bool
add_page(SdStreamVec *vec)
{
	uint32		npages = vec->n / STREAMVEC_PAGE;
	SdRef	   *page;

	if (vec->n == vec->cap)
	{
		SdRef	  **pages = enlarge(vec->u.pages, npages * sizeof(SdRef *),
									npages * 2 * sizeof(SdRef *));

		if (pages == NULL)
			return false;
		vec->u.pages = pages;
		vec->cap *= 2;
	}
	page = sd_alloc(SD_MEM_SUBSCRIPTION, STREAMVEC_PAGE * sizeof(SdRef));
	vec->u.pages[npages] = page;
	return page != NULL;
}

/* Makes room for one more. */
static bool
grow(SdStreamVec *vec)
{
	if (vec->n == 0 || (vec->cap <= STREAMVEC_PAGE && vec->n < vec->cap))
		return true;
	if (vec->cap == 0)
		return make_array(vec);
	if (vec->cap < STREAMVEC_PAGE)
		return double_array(vec);
	if (vec->cap == STREAMVEC_PAGE && !make_list(vec))
		return false;
	return vec->n % STREAMVEC_PAGE != 0 || add_page(vec);
}

bool
streamvec_push(SdStreamVec *vec, struct SdStream *stream)
{
	if (!grow(vec))
		return false;
	vec->n++;
	*slot(vec, vec->n - 1) = sd_ref(stream);
	return true;
}

/* Gives back what n no longer needs. */
static void
shrink(SdStreamVec *vec)
{
	if (vec->cap > STREAMVEC_PAGE && vec->n % STREAMVEC_PAGE == 0)
	{
		uint32		last = vec->n / STREAMVEC_PAGE;

		sd_free(vec->u.pages[last]);
		vec->u.pages[last] = NULL;
	}
	if (vec->n > 0)
		return;
	if (vec->cap > STREAMVEC_PAGE)
		sd_free(vec->u.pages);
	else if (vec->cap > 0)
		sd_free(vec->u.page);
	vec->u.pages = NULL;
	vec->cap = 0;
}

struct SdStream *
streamvec_remove(SdStreamVec *vec, uint32 i)
{
	SdRef		last = *slot(vec, vec->n - 1);
	bool		moved = i < vec->n - 1;

	Assert(i < vec->n);
	*slot(vec, i) = last;
	vec->n--;
	shrink(vec);
	return moved ? (struct SdStream *) sd_at(last) : NULL;
}
