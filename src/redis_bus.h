/*-------------------------------------------------------------------------
 *
 * redis_bus.h
 *	  What the files of the bus worker share: bus_worker.c (the process),
 *	  redis_link.c (connections that come back), redis_send.c, redis_read.c,
 *	  redis_range.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_BUS_H
#define SD_REDIS_BUS_H

#include "bus.h"
#include "redis_conn.h"

/* ---- bus_worker.c: this process's own ---- */

extern SdDatabase *bus_db;

static inline SdBus *
bus_self(void)
{
	return &bus_db->bus;
}

static inline SdDispatcher *
bus_place(void)
{
	return &bus_db->dispatchers[SD_BUS_PLACE];
}

extern char bus_stream[];		/* the keys in Redis */
extern char bus_state_key[];

/* Shows, and logs at a limited rate, that something is wrong; NULL: no more. */
extern void bus_report(const char *error);
/* Something about an entry is worth the log: at a limited rate. */
extern void bus_complain(const char *what, const char *detail);
extern int64 bus_now(void);		/* us of the Unix epoch */
/*
 * In a PG_CATCH: the message of an error that costs no more than the event at
 * hand, which is forgotten.  Raised again if it is about the process.
 */
extern const char *bus_event_error(MemoryContext context);

/* ---- redis_link.c ---- */

/* A connection that is made anew, ever later, when it breaks. */
typedef struct RedisLink
{
	RedisConn	conn;
	bool		greeted;		/* the owner was told that it is there */
	bool		healthy;		/* has done its work since it was made */
	int			failures;		/* in a row */
	TimestampTz retry_at;
	void		(*report) (const char *error);	/* of why it broke */
} RedisLink;

extern void link_init(RedisLink *link, void (*report) (const char *));
/*
 * Does what can be done for it.  True if it is there; *fresh tells that it
 * wasn't before.  False also when it breaks.
 */
extern bool link_drive(RedisLink *link, bool *fresh);
/* It does what it is for, which is more than that it is there. */
extern void link_succeeded(RedisLink *link);
/* Nothing is known to be wrong with it. */
static inline bool
link_is_well(const RedisLink *link)
{
	return conn_is_ready(&link->conn) && (link->healthy || link->failures == 0);
}

/* Begins anew, soon. */
extern void link_reset(RedisLink *link);
extern long link_wait_ms(const RedisLink *link);	/* -1: no need */

/* ---- redis_send.c ---- */

extern RedisLink send_link;
extern void send_init(void);
extern void send_turn(void);
extern void send_reset(void);
extern bool send_is_up(void);
/* How long it does not matter what is committed: nobody needs to wake us for it. */
extern int	send_gathers_ms(void);
/*
 * What is in hand will not be sent.  From then on this is another sender, of
 * that name, who begins with telling the gap.  Returns how many events it were.
 */
extern uint64 send_give_up(const char *name);
/* When all that is queued now is in Redis, it is asked what is to be read by then. */
extern void send_sync_begin(void);
extern bool send_sync_target(uint64 *id);	/* false: not known yet */
extern void send_sync_done(void);

/* ---- redis_read.c ---- */

extern RedisLink read_link;
extern void read_init(void);
/* Returns whether there may be more to be done at once. */
extern bool read_turn(void);
extern void read_reset(void);
extern bool read_is_up(void);	/* it has a position, and reads */
extern bool read_waits_for_room(void);

/* ---- redis_range.c ---- */

extern RedisLink range_link;
extern void range_init(void);
extern bool range_turn(void);	/* likewise */
extern void range_reset(void);
extern long range_wait_ms(void);

#endif							/* SD_REDIS_BUS_H */
