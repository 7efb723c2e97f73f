/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every test of the PostgreSQL version stands here and nowhere else.
 *
 * PostgreSQL 15 is the base: what newer versions call differently is given
 * its version 15 name, or a name of ours that hides the difference.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_COMPAT_H
#define SD_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "subdispatch needs PostgreSQL 15 or newer"
#endif

#if PG_VERSION_NUM >= 160000
#error "subdispatch is written for PostgreSQL 15; newer versions are this file's work"
#endif

#endif							/* SD_COMPAT_H */
