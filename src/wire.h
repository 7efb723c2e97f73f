/*-------------------------------------------------------------------------
 *
 * wire.h
 *	  An event as the text that travels between servers.
 *
 * One JSON object.  The event's data, where there is any, is its last member,
 * and is not read as JSON here, so that its numbers stay exact.  Row images are
 * texts, as types' output functions make them, beside the names and types of
 * their columns.  Pure C, no PostgreSQL header.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_WIRE_H
#define SUBDISPATCH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION		1
#define WIRE_DATA_KEY		",\"data\":"	/* what stands before the data */
#define WIRE_MAX_COLUMNS	1664	/* MaxTupleAttributeNumber */

typedef struct WireColumn
{
	const char *name;
	const char *type;
} WireColumn;

/* Strings may be NULL where that is said, and for no reason have a NUL inside. */
typedef struct Wire
{
	const char *encoding;		/* of all of it; a name of PostgreSQL's */
	const char *channel;
	const char *source;
	int64_t		timestamp;		/* microseconds since 1970 */
	const char *event_type;		/* may be NULL */
	const char *correlation_id; /* may be NULL */
	const char *federation_id;	/* may be NULL */

	/* the commit; all NULL and 0 if it is not known */
	const char *system;			/* may be NULL */
	int64_t		timeline;
	const char *lsn;			/* may be NULL */

	/* NULL for a row image: JSON text, not looked at, without a NUL at its end */
	const char *data;
	size_t		data_len;

	/* row images: op is NULL if it is none */
	const char *op;
	const char *schema;
	const char *table;
	uint32_t	ncolumns;
	const WireColumn *columns;
	const char *const *row;		/* ncolumns values, NULL for SQL's; or NULL */
	const char *const *old;

	/* wire_parse()'s own */
	void	   *strings;
	void	   *arrays;
} Wire;

/* malloc'd, with a NUL at the end; NULL if there is no memory. */
extern char *wire_format(const Wire *wire, size_t *len);

/*
 * Reads a text of "len" bytes.  NULL if that went well: what *wire then points
 * to lies in the text, and in what wire_free() frees.  Otherwise a constant
 * string says why not, and there is nothing to free.  A text that has no
 * member "data" must have "op", and the other way round.
 */
extern const char *wire_parse(const char *text, size_t len, Wire *wire);
extern void wire_free(Wire *wire);

#endif							/* SUBDISPATCH_WIRE_H */
