/*-------------------------------------------------------------------------
 *
 * redis_url.h
 *	  Where Redis is: reading subdispatch.redis_url; and when to try again.
 *
 * Pure C, no PostgreSQL header.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_REDIS_URL_H
#define SUBDISPATCH_REDIS_URL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REDIS_URL_HOST		256 /* of a host's name, or a socket's path */
#define REDIS_URL_SECRET	513 /* of a user's name, or a password */
#define REDIS_URL_SHOWN		1024	/* is enough for what redis_url_show() writes */

typedef struct RedisUrl
{
	bool		tls;
	bool		local;			/* host is the path of a Unix socket */
	bool		has_user;
	bool		has_password;
	char		host[REDIS_URL_HOST];
	int			port;
	int			db;
	char		user[REDIS_URL_SECRET];
	char		password[REDIS_URL_SECRET];
} RedisUrl;

/*
 * NULL if all is well, otherwise what is wrong, in words that hold nothing of
 * the text, for there may be a password in it.
 */
extern const char *redis_url_parse(const char *text, RedisUrl *url);

/* The URL without user and password, for views and the log. */
extern void redis_url_show(const RedisUrl *url, char *buf, size_t size);

/*
 * How long to wait, in ms, after that many failures in a row: ever longer, with
 * a random part, so that servers don't come back all at once.
 */
extern int	redis_backoff(int failures, uint32_t random);

#define REDIS_BACKOFF_FIRST	100 /* ms */
#define REDIS_BACKOFF_MAX	30000

#endif							/* SUBDISPATCH_REDIS_URL_H */
