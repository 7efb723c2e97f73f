/* Unit tests of src/ref.h: its lists against arrays, by chance. */
#include "tap.h"

#include "ref.h"				/* last: it has printf mean PostgreSQL's */

#define NODES	12
#define LISTS	3
#define STEPS	200000

/* The "region": nodes lie in it, and lists don't have to. */
static struct
{
	uint64_t	first[4];
	SdListNode	nodes[NODES];
}			region;

struct SdShared *sd_shared = (struct SdShared *) &region;

static SdList lists[LISTS];
static int	model[LISTS][NODES + 1];
static int	n[LISTS];

static void
model_insert(int list, int at, int node)
{
	memmove(&model[list][at + 1], &model[list][at], sizeof(int) * (n[list] - at));
	model[list][at] = node;
	n[list]++;
}

static void
model_remove(int list, int at)
{
	n[list]--;
	memmove(&model[list][at], &model[list][at + 1], sizeof(int) * (n[list] - at));
}

/* Where the node is in the model; false: nowhere. */
static bool
find(int node, int *list, int *at)
{
	for (*list = 0; *list < LISTS; (*list)++)
		for (*at = 0; *at < n[*list]; (*at)++)
			if (model[*list][*at] == node)
				return true;
	return false;
}

static bool
same(int list)
{
	int			i = 0;

	if (sd_list_is_empty(&lists[list]) != (n[list] == 0))
		return false;
	sd_list_foreach(node, &lists[list])
	{
		if (i == n[list] || node != &region.nodes[model[list][i]])
			return false;
		i++;
	}
	return i == n[list];
}

static void
step(void)
{
	int			node = random_below(NODES);
	int			to = random_below(LISTS);
	int			from;
	int			at;

	if (!find(node, &from, &at))
	{
		bool		head = random_below(2) == 0;

		if (head)
			sd_list_push_head(&lists[to], &region.nodes[node]);
		else
			sd_list_push_tail(&lists[to], &region.nodes[node]);
		model_insert(to, head ? 0 : n[to], node);
	}
	else if (random_below(8) == 0 && from != to)
	{
		sd_list_append_all(&lists[to], &lists[from]);
		while (n[from] > 0)
		{
			model_insert(to, n[to], model[from][0]);
			model_remove(from, 0);
		}
	}
	else if (random_below(8) == 0)
	{
		sd_list_rotate(&lists[from]);
		model_insert(from, n[from], model[from][0]);
		model_remove(from, 0);
	}
	else if (at == 0 && random_below(2) == 0)
	{
		if (sd_list_pop_head(&lists[from]) != &region.nodes[node])
			ok(false, "the head is popped");
		model_remove(from, 0);
	}
	else
	{
		/* one that is not the first may be removed through another list */
		sd_list_remove(&lists[at == 0 ? from : to], &region.nodes[node]);
		model_remove(from, at);
	}
}

static void
test_lists(void)
{
	bool		all_same = true;

	for (int i = 0; i < STEPS && all_same; i++)
	{
		step();
		for (int list = 0; list < LISTS; list++)
			all_same &= same(list);
	}
	ok(all_same, "lists are what the model says, step by step");
}

static void
test_refs(void)
{
	ok(sd_ref(NULL) == 0, "nothing has the reference 0");
	ok(sd_at(0) == NULL, "which refers to nothing");
	ok(sd_at(sd_ref(&region.nodes[5])) == &region.nodes[5], "a reference leads back");
	is_int(sizeof(SdListNode), 8, "a node has eight bytes");
	is_int(_Alignof(SdListNode), SD_REF_UNIT, "and can be referred to");
}

int
main(void)
{
	test_refs();
	test_lists();
	return done();
}
