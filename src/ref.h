/*-------------------------------------------------------------------------
 *
 * ref.h
 *	  Short pointers into the shared memory, and lists made of them.
 *
 * There may be a million subscriptions, each with a dozen pointers to what it
 * belongs to.  So what there is one of for each has references of 32 bits: the
 * distance from the region's beginning, in units of 8 bytes.  All that they
 * refer to is MAXALIGNed and lies within SD_REF_LIMIT, which bounds
 * subdispatch.shared_memory_size.
 *
 * A list is a ring of nodes and a reference to the first of them; so it can be
 * hung behind another one in one step, and the first node of a list may change
 * while nobody looks for the list itself.  All zero is an empty list.  A list may
 * lie anywhere, its nodes in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REF_H
#define SD_REF_H

#include "postgres.h"

struct SdShared;
extern struct SdShared *sd_shared;	/* the region; NULL unless preloaded */

typedef uint32 SdRef;			/* 0: none */

#define SD_REF_UNIT		8
#define SD_REF_LIMIT	((Size) SD_REF_UNIT << 32)

static inline void *
sd_at(SdRef ref)
{
	return ref == 0 ? NULL : (char *) sd_shared + (Size) ref * SD_REF_UNIT;
}

static inline SdRef
sd_ref(const void *place)
{
	Size		distance = (const char *) place - (const char *) sd_shared;

	if (place == NULL)
		return 0;
	Assert(distance > 0 && distance < SD_REF_LIMIT && distance % SD_REF_UNIT == 0);
	return (SdRef) (distance / SD_REF_UNIT);
}

/* ---- lists ---- */

/* As what references refer to, nodes are aligned. */
typedef struct SdListNode
{
	SdRef		prev pg_attribute_aligned(8);
	SdRef		next;
} SdListNode;

typedef struct SdList
{
	SdRef		first;
} SdList;

#define sd_list_container(type, member, node) \
	((type *) ((char *) (node) - offsetof(type, member)))

static inline bool
sd_list_is_empty(const SdList *list)
{
	return list->first == 0;
}

static inline SdListNode *
sd_list_first(const SdList *list)
{
	return (SdListNode *) sd_at(list->first);
}

/* The one behind a node of the list, or NULL. */
static inline SdListNode *
sd_list_next(const SdList *list, const SdListNode *node)
{
	return node->next == list->first ? NULL : (SdListNode *) sd_at(node->next);
}

static inline void
sd_list_push_tail(SdList *list, SdListNode *node)
{
	SdRef		ref = sd_ref(node);
	SdListNode *first = sd_list_first(list);

	if (first == NULL)
	{
		node->prev = node->next = list->first = ref;
		return;
	}
	node->prev = first->prev;
	node->next = list->first;
	((SdListNode *) sd_at(first->prev))->next = ref;
	first->prev = ref;
}

static inline void
sd_list_push_head(SdList *list, SdListNode *node)
{
	sd_list_push_tail(list, node);
	list->first = sd_ref(node);
}

/* The node is in the list, or in another one of which it is not the first. */
static inline void
sd_list_remove(SdList *list, SdListNode *node)
{
	SdRef		ref = sd_ref(node);

	if (list->first == ref)
		list->first = node->next == ref ? 0 : node->next;
	((SdListNode *) sd_at(node->prev))->next = node->next;
	((SdListNode *) sd_at(node->next))->prev = node->prev;
}

static inline SdListNode *
sd_list_pop_head(SdList *list)
{
	SdListNode *node = sd_list_first(list);

	sd_list_remove(list, node);
	return node;
}

/* The first becomes the last. */
static inline void
sd_list_rotate(SdList *list)
{
	if (list->first != 0)
		list->first = sd_list_first(list)->next;
}

/* Moves all of "from" behind the last of "to". */
static inline void
sd_list_append_all(SdList *to, SdList *from)
{
	SdListNode *a = sd_list_first(to);
	SdListNode *b = sd_list_first(from);
	SdRef		last;

	if (b == NULL)
		return;
	if (a == NULL)
		to->first = from->first;
	else
	{
		last = b->prev;
		((SdListNode *) sd_at(a->prev))->next = from->first;
		((SdListNode *) sd_at(last))->next = to->first;
		b->prev = a->prev;
		a->prev = last;
	}
	from->first = 0;
}

/* With "node" as a variable of its own; the loop's body must not remove it. */
#define sd_list_foreach(node, list) \
	for (SdListNode *node = sd_list_first(list); node; node = sd_list_next(list, node))

#endif							/* SD_REF_H */
