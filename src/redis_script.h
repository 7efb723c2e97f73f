/*-------------------------------------------------------------------------
 *
 * redis_script.h
 *	  What runs inside Redis, and the names of things there.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_SCRIPT_H
#define SD_REDIS_SCRIPT_H

/* Adds a batch of a sender's events to the stream. */
extern const char *const script_send;
/* What a reader must know before it reads. */
extern const char *const script_hello;

#define SCRIPT_SEND_ARGS	8

#endif							/* SD_REDIS_SCRIPT_H */
