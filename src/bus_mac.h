/*-------------------------------------------------------------------------
 *
 * bus_mac.h
 *	  What makes an entry of a stream one of this group's: its MAC.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BUS_MAC_H
#define SD_BUS_MAC_H

#include "postgres.h"

#define BUS_MAC_HEX		64		/* hexadecimal digits of a MAC */

/* A piece of memory. */
typedef struct BusBytes
{
	const char *data;
	Size		len;
} BusBytes;

/*
 * An entry, without what Redis adds: its id and that of the one before.
 */
typedef struct BusEntry
{
	BusBytes	sender;			/* SD_SENDER_LEN hexadecimal digits */
	uint64		number;			/* of the sender's */
	int64		sent_at;		/* us of the Unix epoch */
	char		kind;			/* BUS_EVENT or BUS_GAP */
	BusBytes	channel;
	BusBytes	text;
} BusEntry;

#define BUS_EVENT		'e'		/* text: the event */
#define BUS_GAP			'g'		/* events are missing: text tells on which channels */

/*
 * Writes BUS_MAC_HEX digits and a NUL byte.  The stream's key is part of what
 * is authenticated.  Raises an error if it can't be computed.
 */
extern void bus_mac(const BusEntry *entry, const char *stream, const char *key, char *hex);

/* In a time that does not depend on where they differ. */
extern bool bus_mac_equal(const char *a, const char *b);

#endif							/* SD_BUS_MAC_H */
