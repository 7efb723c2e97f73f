/*-------------------------------------------------------------------------
 *
 * views.h
 *	  What the views and metrics() both show.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_VIEWS_H
#define SD_VIEWS_H

#include "postgres.h"

#include "nodes/execnodes.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "database.h"
#include "shmem.h"

#define SD_MAX_COLUMNS		48

/* A row under construction: columns are set in their order. */
typedef struct SdRow
{
	int			n;
	Datum		values[SD_MAX_COLUMNS];
	bool		nulls[SD_MAX_COLUMNS];
} SdRow;

static inline void
row_put(SdRow *row, Datum value, bool isnull)
{
	Assert(row->n < SD_MAX_COLUMNS);
	row->values[row->n] = value;
	row->nulls[row->n++] = isnull;
}

static inline void
row_put_null(SdRow *row)
{
	row_put(row, (Datum) 0, true);
}

static inline void
row_put_int8(SdRow *row, uint64 value)
{
	row_put(row, Int64GetDatum((int64) value), false);
}

/* An oid, or NULL for InvalidOid. */
static inline void
row_put_oid(SdRow *row, Oid oid)
{
	row_put(row, ObjectIdGetDatum(oid), !OidIsValid(oid));
}

static inline void
row_put_string(SdRow *row, const char *s)
{
	row_put(row, s ? CStringGetTextDatum(s) : (Datum) 0, s == NULL);
}

static inline void
row_put_jsonb(SdRow *row, Jsonb *jb)
{
	row_put(row, JsonbPGetDatum(jb), jb == NULL);
}

/* A time, or NULL for 0. */
static inline void
row_put_time(SdRow *row, TimestampTz t)
{
	row_put(row, TimestampTzGetDatum(t), t == 0);
}

static inline void
row_store(ReturnSetInfo *rsinfo, SdRow *row)
{
	Assert(row->n == rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row->values, row->nulls);
}

/* Does the current role see everything? */
extern bool views_is_monitor(void);

/* In microseconds. */
extern uint64 views_dispatch_quantile(const SdStatsSum *sum, double q);

/*
 * Bytes of the whole server's subscriptions, events and responses; not of the
 * history, which goes when anything else needs the memory.
 */
extern uint64 views_memory_used(void);
extern uint64 views_memory_size(void);

/* 0: it does not run. */
extern int	views_launcher_pid(void);

#endif							/* SD_VIEWS_H */
