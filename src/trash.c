/*-------------------------------------------------------------------------
 *
 * trash.c
 *	  Memory that was given up under locks, freed when they are released.
 *
 * A subscription that ends may leave a thousand responses unread.  To free them
 * takes about a tenth of a microsecond each, most of it to fetch what nobody
 * has touched for long, and nobody should wait for a lock meanwhile.  So under
 * a lock only pointers are noted, in this process's own memory of a fixed size,
 * and trash_empty() is called after its release.  When there is no room left
 * things are freed at once: whoever holds a lock for several subscriptions
 * stops when trash_is_full().
 *
 * Nothing here can be interrupted or raise an error, and what does not come to
 * call trash_empty() itself gets it called at the end of its transaction.
 *
 * Locks: DSA's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "stream_private.h"

#define MAX_BODIES	512
#define MAX_PIECES	64

/* A ring or a private queue with the entries from .. to - 1. */
typedef struct Piece
{
	void	   *memory;
	char	   *entries;		/* SdEntry or SdKept */
	Size		size;			/* of one */
	uint64		mask;
	uint64		from;
	uint64		to;
} Piece;

static SdBody *bodies[MAX_BODIES];
static int	nbodies = 0;
static Piece pieces[MAX_PIECES];
static int	npieces = 0;

static void
free_piece(const Piece *piece)
{
	StaticAssertStmt(offsetof(SdEntry, body) == 0 && offsetof(SdKept, body) == 0,
					 "bodies come first");
	for (uint64 n = piece->from; n < piece->to; n++)
		body_unref(*(SdBody **) (piece->entries + (n & piece->mask) * piece->size));
	sd_free(piece->memory);
}

void
trash_body(SdBody *body)
{
	if (body == NULL)
		return;
	if (nbodies < MAX_BODIES)
		bodies[nbodies++] = body;
	else
		body_unref(body);
}

static void
add_piece(const Piece *piece)
{
	if (npieces < MAX_PIECES)
		pieces[npieces++] = *piece;
	else
		free_piece(piece);
}

void
trash_ring(SdEntry *ring, uint32 size, uint64 from, uint64 to)
{
	Piece		piece = {ring, (char *) ring, sizeof(SdEntry), size - 1, from, to};

	if (ring)
		add_piece(&piece);
}

void
trash_queue(SdPrivateQueue *queue)
{
	Piece		piece = {
		queue, (char *) queue->entries, sizeof(SdKept), PG_UINT32_MAX, queue->next, queue->n
	};

	add_piece(&piece);
}

bool
trash_is_full(void)
{
	return nbodies > MAX_BODIES / 2 || npieces > MAX_PIECES / 2;
}

void
trash_empty(void)
{
	while (nbodies > 0)
		body_unref(bodies[--nbodies]);
	while (npieces > 0)
		free_piece(&pieces[--npieces]);
}
