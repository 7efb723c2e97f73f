/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The extension's shared memory: size, layout, allocation, hash tables.
 *
 * One region of a fixed size is asked for at server start.  It holds SdShared,
 * the slots of backends, the hash tables' bucket arrays and, in the rest of
 * it, a DSA area created in place that is never allowed to grow.  All that
 * comes and goes (events, subscriptions, responses) is allocated from that
 * area by sd_alloc(), which counts bytes by kind and never raises an error.
 * When the area is full it has history.c give up old events.
 *
 * Subscriptions must not take all of it: nobody could publish then.  So a part
 * of the area, the reserve, is allocated from the beginning, in pieces.  When
 * an event or a response finds no room pieces are freed, and no subscription
 * can be made unless all of them can be had again; responses likewise leave
 * half of them to events.  (Counting bytes would not do: what has room depends
 * on how the area is cut up.)
 *
 * Pointers in shared structures are plain ones: see shmem.h.  Those of ref.h
 * count from the region's beginning.
 *
 * Locks: DSA's own, inside of sd_alloc() and sd_free(); inside of sd_alloc()
 * those of history.c; reserve_mutex, a spinlock, with no other inside.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/dsa.h"
#include "utils/memutils.h"

#include "history.h"
#include "shmem.h"

SdShared   *sd_shared = NULL;

int			sd_tranche_database;
int			sd_tranche_registry;
int			sd_tranche_ids;
int			sd_tranche_stream;
int			sd_tranche_consumer;
int			sd_tranche_order;
int			sd_tranche_history;
static int	tranche_dsa;

static dsa_area *area = NULL;	/* this process's handle */
static char *area_base = NULL;	/* what dsa_pointer 0 would point to */

static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

/* As large as DSA's superblocks, so that either can take the other's place. */
#define PIECE_SIZE		(64 * 1024)
#define RESERVE_SHARE	16		/* of the area, and not more than SD_RESERVE_PIECES */

/* The area's pages, and larger pieces in them, begin at cache lines. */
#define DSA_ALIGNMENT	4096

/* Stands before every allocation; keeps it MAXALIGNed. */
typedef struct AllocHeader
{
	uint64		size:56;
	uint64		kind:8;
} AllocHeader;

StaticAssertDecl(sizeof(AllocHeader) == MAXALIGN(sizeof(AllocHeader)),
				 "allocations must stay aligned");

/* Slots of backends are indexed by PGPROC number. */
static int
slot_count(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS + max_prepared_xacts;
}

/* Chains of less than one on average, and of less than two. */
static uint32
buckets_for(int members)
{
	return pg_nextpower2_32(Max(members, SD_ID_PARTITIONS));
}

static uint32
few_buckets_for(int members)
{
	return pg_prevpower2_32(Max(members, SD_ID_PARTITIONS));
}

/* Channels, consumers, connections, quotas and further links are fewer than subscriptions. */
static Size
hash_arrays_size(void)
{
	int			members = subdispatch_max_subscriptions;
	Size		n = add_size(buckets_for(members),
							 add_size(mul_size(few_buckets_for(members), 3),
									  mul_size(few_buckets_for(members / 4), 5)));

	return mul_size(sizeof(SdRef), n);
}

static Size
dsa_size(void)
{
	return mul_size((Size) subdispatch_shared_memory_size, 1024);
}

static Size
region_size(void)
{
	Size		size = MAXALIGN(sizeof(SdShared));

	size = add_size(size, MAXALIGN(mul_size(sizeof(SdTicketSlot), slot_count())));
	size = add_size(size, MAXALIGN(hash_arrays_size()));
	return add_size(size, add_size(DSA_ALIGNMENT, MAXALIGN(dsa_size())));
}

static void
request(void)
{
	if (prev_request_hook)
		prev_request_hook();
	RequestAddinShmemSpace(region_size());
}

static char *
make_hash(SdHash *table, char *at, uint32 n)
{
	table->mask = n - 1;
	table->buckets = (SdRef *) at;
	memset(at, 0, n * sizeof(SdRef));
	return at + n * sizeof(SdRef);
}

static dsa_pointer
make_piece(dsa_area *from)
{
	return dsa_allocate_extended(from, PIECE_SIZE, DSA_ALLOC_NO_OOM | DSA_ALLOC_HUGE);
}

static void
make_reserve(SdShared *shared, dsa_area *from)
{
	uint32		n = 0;

	SpinLockInit(&shared->reserve_mutex);
	while (n < Min(dsa_size() / RESERVE_SHARE / PIECE_SIZE, SD_RESERVE_PIECES))
	{
		shared->reserve[n] = make_piece(from);
		if (!DsaPointerIsValid(shared->reserve[n]))
			break;
		n++;
	}
	shared->reserve_size = n;
	pg_atomic_init_u32(&shared->nreserve, n);
}

static void
make_locks(SdShared *shared)
{
	LWLockInitialize(&shared->database_lock, sd_tranche_database);
	LWLockInitialize(&shared->registry_lock, sd_tranche_registry);
	for (int i = 0; i < SD_ID_PARTITIONS; i++)
		LWLockInitialize(&shared->id_locks[i], sd_tranche_ids);
	for (int i = 0; i < SD_WAIT_POINTS; i++)
		ConditionVariableInit(&shared->wait_points[i]);
}

/*
 * Lays the region out.  Only the postmaster gets here with found = false, at
 * start and after a crash; nobody else is attached yet.
 */
static void
lay_out(SdShared *shared)
{
	int			members = subdispatch_max_subscriptions;
	char	   *at = (char *) shared + MAXALIGN(sizeof(SdShared));
	dsa_area   *made;

	memset(shared, 0, sizeof(SdShared));
	shared->nslots = slot_count();
	shared->slots = (SdTicketSlot *) at;
	memset(at, 0, sizeof(SdTicketSlot) * shared->nslots);
	at += MAXALIGN(sizeof(SdTicketSlot) * shared->nslots);

	at = make_hash(&shared->subscriptions, at, buckets_for(members));
	shared->id_shift = pg_leftmost_one_pos32((shared->subscriptions.mask + 1) / SD_ID_PARTITIONS);
	at = make_hash(&shared->streams, at, few_buckets_for(members));
	at = make_hash(&shared->identities, at, few_buckets_for(members));
	at = make_hash(&shared->buckets, at, few_buckets_for(members));
	at = make_hash(&shared->quotas, at, few_buckets_for(members / 4));
	at = make_hash(&shared->channels, at, few_buckets_for(members / 4));
	at = make_hash(&shared->consumers, at, few_buckets_for(members / 4));
	at = make_hash(&shared->connections, at, few_buckets_for(members / 4));
	at = make_hash(&shared->links, at, few_buckets_for(members / 4));

	make_locks(shared);
	pg_atomic_init_u32(&shared->launcher_procno, 0);
	pg_atomic_init_u32(&shared->nsubscriptions, 0);
	pg_atomic_init_u64(&shared->serials, 0);
	pg_atomic_init_u64(&shared->grants_version, 0);
	pg_atomic_init_u64(&shared->mem_failures, 0);
	for (int i = 0; i < SD_MEM_KINDS; i++)
		pg_atomic_init_u64(&shared->mem_used[i], 0);

	shared->dsa_place = (char *) TYPEALIGN(DSA_ALIGNMENT, at);
	made = dsa_create_in_place(shared->dsa_place, dsa_size(), tranche_dsa, NULL);
	dsa_pin(made);
	dsa_set_size_limit(made, dsa_size());
	make_reserve(shared, made);
	dsa_detach(made);

	database_init_all();
}

static void
startup(void)
{
	bool		found;

	if (prev_startup_hook)
		prev_startup_hook();

	sd_tranche_database = LWLockNewTrancheId();
	sd_tranche_registry = LWLockNewTrancheId();
	sd_tranche_ids = LWLockNewTrancheId();
	sd_tranche_stream = LWLockNewTrancheId();
	sd_tranche_consumer = LWLockNewTrancheId();
	sd_tranche_order = LWLockNewTrancheId();
	sd_tranche_history = LWLockNewTrancheId();
	tranche_dsa = LWLockNewTrancheId();
	LWLockRegisterTranche(sd_tranche_database, "SubdispatchDatabase");
	LWLockRegisterTranche(sd_tranche_registry, "SubdispatchRegistry");
	LWLockRegisterTranche(sd_tranche_ids, "SubdispatchIds");
	LWLockRegisterTranche(sd_tranche_stream, "SubdispatchStream");
	LWLockRegisterTranche(sd_tranche_consumer, "SubdispatchConsumer");
	LWLockRegisterTranche(sd_tranche_order, "SubdispatchOrder");
	LWLockRegisterTranche(sd_tranche_history, "SubdispatchHistory");
	LWLockRegisterTranche(tranche_dsa, "SubdispatchMemory");

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	sd_shared = ShmemInitStruct("subdispatch", region_size(), &found);
	if (!found)
		lay_out(sd_shared);
	LWLockRelease(AddinShmemInitLock);

	area = NULL;
}

void
shmem_init(void)
{
	prev_request_hook = shmem_request_hook;
	shmem_request_hook = request;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup;
}

/*
 * Attaches this process to the area.  The handle is small and lives as long
 * as the process.
 */
static void
attach(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	dsa_area   *a = dsa_attach_in_place(sd_shared->dsa_place, NULL);

	MemoryContextSwitchTo(old);
	dsa_pin_mapping(a);
	on_shmem_exit(dsa_on_shmem_exit_release_in_place, PointerGetDatum(sd_shared->dsa_place));
	area = a;
}

/*
 * A process attaches before it takes locks, since attaching may fail.  Cheap
 * once done; called at every way in from SQL and by the workers.
 */
void
shmem_attach(void)
{
	if (area == NULL)
		attach();
}

/* How much of the reserve a kind must leave as it is. */
static uint32
pieces_kept_from(SdMemKind kind)
{
	switch (kind)
	{
		case SD_MEM_SUBSCRIPTION:
			return sd_shared->reserve_size;
		case SD_MEM_RESPONSE:
			return sd_shared->reserve_size / 2;
		default:
			return 0;
	}
}

/* Frees a piece of the reserve for memory of the kind; false: it may not have one. */
static bool
take_from_reserve(SdMemKind kind)
{
	dsa_pointer piece = InvalidDsaPointer;
	uint32		n;

	SpinLockAcquire(&sd_shared->reserve_mutex);
	n = pg_atomic_read_u32(&sd_shared->nreserve);
	if (n > pieces_kept_from(kind))
	{
		piece = sd_shared->reserve[n - 1];
		pg_atomic_write_u32(&sd_shared->nreserve, n - 1);
	}
	SpinLockRelease(&sd_shared->reserve_mutex);
	if (!DsaPointerIsValid(piece))
		return false;
	dsa_free(area, piece);
	return true;
}

/* False: it is not needed, somebody else was faster. */
static bool
put_into_reserve(dsa_pointer piece)
{
	uint32		n;

	SpinLockAcquire(&sd_shared->reserve_mutex);
	n = pg_atomic_read_u32(&sd_shared->nreserve);
	if (n < sd_shared->reserve_size)
	{
		sd_shared->reserve[n] = piece;
		pg_atomic_write_u32(&sd_shared->nreserve, n + 1);
	}
	SpinLockRelease(&sd_shared->reserve_mutex);
	return n < sd_shared->reserve_size;
}

/*
 * Is there what the kind must leave?  Puts back what is missing of it, as far
 * as memory has become free.
 */
static bool
reserve_is_left(SdMemKind kind)
{
	while (pg_atomic_read_u32(&sd_shared->nreserve) < pieces_kept_from(kind))
	{
		dsa_pointer piece;

		do
			piece = make_piece(area);
		while (!DsaPointerIsValid(piece) && history_reclaim(PIECE_SIZE));
		if (!DsaPointerIsValid(piece))
			return false;
		if (!put_into_reserve(piece))
			dsa_free(area, piece);
	}
	return true;
}

uint64
sd_reserve_bytes(void)
{
	return (uint64) sd_shared->reserve_size * PIECE_SIZE;
}

void *
sd_alloc(SdMemKind kind, Size size)
{
	Size		total = sizeof(AllocHeader) + size;
	dsa_pointer dp = InvalidDsaPointer;
	AllocHeader *h;

	Assert(area != NULL);
	if (reserve_is_left(kind))
		do
			dp = dsa_allocate_extended(area, total, DSA_ALLOC_NO_OOM | DSA_ALLOC_ZERO | DSA_ALLOC_HUGE);
		while (!DsaPointerIsValid(dp) && (history_reclaim(total) || take_from_reserve(kind)));
	if (!DsaPointerIsValid(dp))
	{
		pg_atomic_fetch_add_u64(&sd_shared->mem_failures, 1);
		return NULL;
	}
	h = dsa_get_address(area, dp);
	/* The one segment makes dsa_pointers offsets from a fixed address. */
	if (area_base == NULL)
		area_base = (char *) h - dp;
	Assert(area_base == (char *) h - dp);
	h->size = total;
	h->kind = kind;
	pg_atomic_fetch_add_u64(&sd_shared->mem_used[kind], total);
	return h + 1;
}

void
sd_free(void *ptr)
{
	AllocHeader *h;

	if (ptr == NULL)
		return;
	Assert(area != NULL);
	h = (AllocHeader *) ptr - 1;
	if (area_base == NULL)
		area_base = (char *) sd_shared->dsa_place;
	pg_atomic_fetch_sub_u64(&sd_shared->mem_used[h->kind], h->size);
	dsa_free(area, (dsa_pointer) ((char *) h - area_base));
}

void
sd_count_as(void *ptr, SdMemKind kind)
{
	AllocHeader *h = (AllocHeader *) ptr - 1;

	pg_atomic_fetch_sub_u64(&sd_shared->mem_used[h->kind], h->size);
	h->kind = kind;
	pg_atomic_fetch_add_u64(&sd_shared->mem_used[kind], h->size);
}

void *
sd_dup(SdMemKind kind, const void *src, Size size)
{
	void	   *copy = sd_alloc(kind, size);

	if (copy)
		memcpy(copy, src, size);
	return copy;
}

void
sd_out_of_shared_memory(void)
{
	uint64		used = 0;

	for (int i = 0; i < SD_MEM_KINDS; i++)
		used += pg_atomic_read_u64(&sd_shared->mem_used[i]);
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("subdispatch is out of shared memory"),
			 errdetail("%llu of %llu kB are in use; %llu kB are kept for events, half of them for responses, too.",
					   (unsigned long long) (used / 1024),
					   (unsigned long long) subdispatch_shared_memory_size,
					   (unsigned long long) (sd_reserve_bytes() / 1024)),
			 errhint("Increase subdispatch.shared_memory_size.")));
}

/* ---- hash tables ---- */

uint32
sd_hash_bytes(const void *data, Size len, uint32 seed)
{
	return (uint32) hash_bytes_extended(data, (int) len, seed);
}

SdHashNode *
sd_hash_find(const SdHash *table, uint32 hash, SdHashMatch match, const void *key)
{
	for (SdHashNode *n = sd_hash_first(table, hash & table->mask); n; n = sd_hash_next(n))
		if (n->hash == hash && match(n, key))
			return n;
	return NULL;
}

void
sd_hash_insert(SdHash *table, SdHashNode *node, uint32 hash)
{
	SdRef	   *head = &table->buckets[hash & table->mask];

	node->hash = hash;
	node->next = *head;
	*head = sd_ref(node);
}

void
sd_hash_remove(SdHash *table, SdHashNode *node)
{
	SdRef	   *at = &table->buckets[node->hash & table->mask];
	SdRef		ref = sd_ref(node);

	while (*at != ref)
	{
		Assert(*at != 0);
		at = &((SdHashNode *) sd_at(*at))->next;
	}
	*at = node->next;
	node->next = 0;
}

/*
 * Members are first looked at without a lock, so what is found there may be
 * anything: it is used only if it points into the area, all of which can be read
 * at any time, and nothing is done with what is read.  Walking a million members
 * that a process has not touched before takes a page fault for most of them.
 */
static bool
in_area(const char *p, Size size)
{
	return p >= sd_shared->dsa_place && p + size <= sd_shared->dsa_place + dsa_size();
}

/* Most members are no longer than that.  A hint, for any address. */
static void
fetch_lines(const char *p)
{
	for (int i = 1; i < 6; i++)
		__builtin_prefetch(p + i * PG_CACHE_LINE_SIZE / 2);
}

/* The same of what the pointer at that place points to. */
static void
fetch_pointed(const char *node, Size pointer_at)
{
	const char *pointed = (const char *) sd_at(*(const volatile SdRef *) (node + pointer_at));

	if (!in_area(pointed, 1))
		return;
	(void) *(const volatile char *) pointed;
	fetch_lines(pointed);
}

/* Begins to fetch it, and puts it down to be looked at; returns how many there are. */
static int
fetch_begin(const char **nodes, int n, SdRef ref, Size size)
{
	const char *node = (const char *) sd_at(ref);

	if (!in_area(node, size))
		return n;
	__builtin_prefetch(node);
	nodes[n] = node;
	return n + 1;
}

/*
 * Up to FETCH_BUCKETS chains at once: first the first member of each, then the
 * second of each that has one, and so on, so that the waits overlap.
 */
#define FETCH_BUCKETS	64
#define FETCH_DEPTH		4

static void
fetch_chains(const SdHash *table, uint64 from, uint64 to, Size pointer_at)
{
	Size		size = Max(pointer_at + sizeof(SdRef), sizeof(SdHashNode));
	const char *nodes[FETCH_BUCKETS];
	int			n = 0;

	for (uint64 b = from; b < to; b++)
		n = fetch_begin(nodes, n, *(volatile SdRef *) &table->buckets[b], size);
	for (int depth = 0; depth < FETCH_DEPTH && n > 0; depth++)
	{
		int			nnext = 0;

		for (int i = 0; i < n; i++)
		{
			const char *node = nodes[i];

			fetch_lines(node);
			if (pointer_at > 0)
				fetch_pointed(node, pointer_at);
			nnext = fetch_begin(nodes, nnext, ((const volatile SdHashNode *) node)->next, size);
		}
		n = nnext;
	}
}

void
sd_hash_fetch(const SdHash *table, uint64 from, uint64 to, Size pointer_at)
{
	to = Min(to, (uint64) table->mask + 1);
	for (; from < to; from += FETCH_BUCKETS)
		fetch_chains(table, from, Min(to, from + FETCH_BUCKETS), pointer_at);
}

/* ---- waking ---- */

ConditionVariable *
sd_wait_point(const void *thing)
{
	return &sd_shared->wait_points[sd_wait_point_number(thing)];
}

/* Wakes a process by its PGPROC number plus one; 0 is nobody. */
void
sd_set_latch(uint32 procno_plus_1)
{
	if (procno_plus_1 != 0)
		SetLatch(&ProcGlobal->allProcs[procno_plus_1 - 1].procLatch);
}
