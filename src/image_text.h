/*-------------------------------------------------------------------------
 *
 * image_text.h
 *	  Row images as texts: how they travel between servers.
 *
 * OIDs, and so the bytes of a tuple, mean something on one server only.  So
 * another one gets each column's name, its type's name, and its value as the
 * type's output function writes it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_IMAGE_TEXT_H
#define SD_IMAGE_TEXT_H

#include "lib/stringinfo.h"

#include "event.h"
#include "wire.h"

/* ---- sending (image_text.c) ---- */

/*
 * Fills in what *wire tells of a change, in the current memory context.  NULL
 * if that went well, else a constant string that says why not.  Needs a
 * transaction, and the settings of image_text_init().
 */
extern const char *image_to_text(const SdEvent *ev, Wire *wire);

/* Pins, for the life of the process, the settings on which texts depend. */
extern void image_text_init(void);

/*
 * The type's name with its schema, and what it is made of if an own definition
 * says so: equal on two servers if values can go from one to the other.
 */
extern void image_describe_type(StringInfo buf, Oid type);

/* ---- receiving (image_received.c) ---- */

/*
 * A change as it was received: its images are still texts, its table a name.
 * palloc'd.
 */
extern SdEvent *image_make_received(const Wire *wire, SdOp op);

static inline bool
image_is_received(const SdEvent *ev)
{
	return ev->received != 0;
}

/*
 * The table, by its name, that a received change is about here.  Valid until
 * the next call.
 */
typedef struct ImageTable ImageTable;

/*
 * NULL, and *why a constant string, if there is none that can be meant, or
 * it is not the same.  Needs a transaction; takes no lock, runs no user code.
 */
extern const ImageTable *image_find_table(const SdEvent *ev, const char **why);

/*
 * Does reading it need care: the code of users' types as *owner, or settings?
 */
extern bool image_needs_care(const ImageTable *table, Oid *owner);

/*
 * The event as if it were of this server, palloc'd: it stands for the received
 * one.  Raises any error.  If the table needs care call it as its owner, in a
 * GUC nest level.
 */
extern SdEvent *image_read(const SdEvent *ev, const ImageTable *table);

#endif							/* SD_IMAGE_TEXT_H */
