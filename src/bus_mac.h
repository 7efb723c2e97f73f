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
 * Writes BUS_MAC_HEX digits and a NUL byte.  The stream's key is part of what
 * is authenticated.  Raises an error if it can't be computed.
 */
extern void bus_mac(BusBytes batch, const char *stream, const char *key, char *hex);

/* In a time that does not depend on where they differ. */
extern bool bus_mac_equal(const char *a, const char *b);

#endif							/* SD_BUS_MAC_H */
