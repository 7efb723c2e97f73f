/*-------------------------------------------------------------------------
 *
 * envelope.h
 *	  An event of publish() as the text of a notification.
 *
 * One line of JSON with everything but the event's data, a newline, and the
 * data's JSON text, which is not read as JSON here so that its numbers stay
 * exact.  Pure C and json-c, no PostgreSQL header.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_ENVELOPE_H
#define SUBDISPATCH_ENVELOPE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Envelope
{
	int64_t		seq;			/* with pid: makes equal events different */
	int32_t		pid;
	const char *event_type;		/* the strings may be NULL */
	const char *correlation_id;
	const char *federation_id;
	const char *timestamp;		/* ISO 8601 */
} Envelope;

/* The first line, newline included, malloc'd; NULL if there is no memory. */
extern char *envelope_format(const Envelope *env);

/* Does the text begin as envelope_format()'s does? */
extern bool envelope_looks_like(const char *text);

/*
 * Reads the first line of "text" and finds what follows it.  "buf", which must
 * have room for strlen(text) + 4 bytes, gets the strings that env then points
 * to.  False if the text is no envelope.
 */
extern bool envelope_parse(const char *text, Envelope *env, char *buf, const char **data);

#endif							/* SUBDISPATCH_ENVELOPE_H */
