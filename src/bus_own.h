/*-------------------------------------------------------------------------
 *
 * bus_own.h
 *	  This server's own events, from being sent until they are read again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BUS_OWN_H
#define SD_BUS_OWN_H

#include "event.h"

extern void own_init(void);

/* The event of this number is sent; NULL: what has it is no event. */
extern void own_keep(uint64 number, const SdEvent *ev, const SdPosition *commit);
/* The event of this number, if it is still known.  Not to be changed or freed. */
extern SdEvent *own_find(uint64 number);
/* Do many wait to be read? */
extern bool own_is_filling(void);
/* It was read and linked, and those before it. */
extern void own_forget(uint64 number);

#endif							/* SD_BUS_OWN_H */
