/*-------------------------------------------------------------------------
 *
 * bus_listen.h
 *	  Between bus_listen.c and bus_receive.c only; bus.h is for the others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BUS_LISTEN_H
#define SD_BUS_LISTEN_H

#include "database.h"

extern void receive_init(void);

extern bool listen_take_marker(SdDatabase *db, int dispatcher, int32 pid,
							   const char *channel, const char *payload);
extern void listen_lose_all(int dispatcher);
extern void listen_lose_one(const char *channel);

#endif							/* SD_BUS_LISTEN_H */
