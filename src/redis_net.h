/*-------------------------------------------------------------------------
 *
 * redis_net.h
 *	  A byte stream to Redis: looking up the host, connecting, TLS.
 *
 * Nothing here blocks.  The owner waits for what net_wants() names, or for the
 * time that net_poll_ms() gives, and calls again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_NET_H
#define SD_REDIS_NET_H

#include "postgres.h"

#include <openssl/ssl.h>
#include <sys/socket.h>

#include "redis_url.h"

typedef enum NetState
{
	NET_CLOSED,
	NET_LOOKING_UP,				/* the host's addresses */
	NET_CONNECTING,
	NET_SHAKING_HANDS,			/* TLS */
	NET_OPEN
} NetState;

typedef enum NetResult
{
	NET_DONE,
	NET_WAIT,					/* call again later */
	NET_FAILED					/* "error" tells why; it is to be closed */
} NetResult;

#define NET_ERROR_SIZE		256
#define NET_MAX_ADDRESSES	8

typedef struct RedisNet
{
	NetState	state;
	int			fd;				/* -1: none */
	uint32		generation;		/* rises with each socket */
	uint32		wants;			/* WL_SOCKET_... */
	RedisUrl	url;
	/* addresses to try */
	struct sockaddr_storage addresses[NET_MAX_ADDRESSES];
	socklen_t	address_len[NET_MAX_ADDRESSES];
	int			naddresses;
	int			next_address;
	SSL_CTX    *ctx;
	SSL		   *ssl;
	char		error[NET_ERROR_SIZE];
} RedisNet;

extern void net_init(RedisNet *net);
/* Begins; to be followed by net_continue() until that is done. */
extern void net_open(RedisNet *net, const RedisUrl *url);
extern NetResult net_continue(RedisNet *net);
extern void net_close(RedisNet *net);

/* *n gets the number of bytes read or written; not more than fits. */
extern NetResult net_read(RedisNet *net, char *buf, size_t size, size_t *n);
extern NetResult net_write(RedisNet *net, const char *buf, size_t size, size_t *n);

/* When to call again though nothing happens at the socket; -1: no need. */
extern long net_poll_ms(const RedisNet *net);

#endif							/* SD_REDIS_NET_H */
