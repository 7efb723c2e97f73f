/*-------------------------------------------------------------------------
 *
 * redis_url.c
 *	  Where Redis is: reading subdispatch.redis_url; and when to try again.
 *
 *	  redis://[[user]:password@]host[:port][/db]
 *	  rediss://...			the same, with TLS
 *	  unix://[[user]:password@]/path/of/socket[?db=n]
 *
 * user, password, host and path may have any byte but NUL percent-encoded.  As
 * redis-cli has it, "redis://secret@host" would be a user without a password;
 * that is refused, since nobody can mean it.
 *
 * No locks, no PostgreSQL: can be tested and fuzzed outside of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "redis_url.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_PORT	6379
#define MAX_DB			65535
#define MAX_SOCKET_PATH	107

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decodes len bytes into buf; false if they don't fit or are no encoding. */
static bool
decode(const char *from, size_t len, char *buf, size_t size)
{
	size_t		n = 0;

	for (size_t i = 0; i < len; i++)
	{
		int			c = (unsigned char) from[i];

		if (c == '%')
		{
			int			high = i + 2 < len ? hex_digit(from[i + 1]) : -1;
			int			low = i + 2 < len ? hex_digit(from[i + 2]) : -1;

			if (high < 0 || low < 0)
				return false;
			c = high * 16 + low;
			i += 2;
		}
		if (c == '\0' || n + 1 >= size)
			return false;
		buf[n++] = (char) c;
	}
	buf[n] = '\0';
	return true;
}

/* The len bytes as a number from 0 to max, without sign, blanks or padding. */
static bool
number(const char *from, size_t len, int max, int *value)
{
	int			n = 0;

	if (len == 0 || len > 5 || (len > 1 && from[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++)
	{
		if (from[i] < '0' || from[i] > '9')
			return false;
		n = n * 10 + (from[i] - '0');
	}
	*value = n;
	return n <= max;
}

/* The last '@' before the end of what is no path, or NULL. */
static const char *
find_at(const char *from, const char *end)
{
	const char *at = NULL;

	for (const char *p = from; p < end; p++)
		if (*p == '@')
			at = p;
	return at;
}

/* user, password and '@', if they are there; moves *at behind them. */
static const char *
parse_user(const char **at, const char *end, RedisUrl *url)
{
	const char *sign = find_at(*at, end);
	const char *colon;

	if (sign == NULL)
		return NULL;
	colon = memchr(*at, ':', (size_t) (sign - *at));
	if (colon == NULL)
		return "a password must follow the user as in \"user:password@\", or stand alone as in \":password@\"";
	url->has_user = colon > *at;
	url->has_password = true;
	if (!decode(*at, (size_t) (colon - *at), url->user, sizeof(url->user)))
		return "the user is too long or not percent-encoded as it must be";
	if (!decode(colon + 1, (size_t) (sign - colon - 1), url->password, sizeof(url->password)))
		return "the password is too long or not percent-encoded as it must be";
	if (url->password[0] == '\0')
		return "the password is empty";
	*at = sign + 1;
	return NULL;
}

/* host[:port], where host may be [an IPv6 address]. */
static const char *
parse_host(const char *at, const char *end, RedisUrl *url)
{
	const char *host_end;
	bool		bracket = at < end && *at == '[';

	if (bracket)
	{
		at++;
		host_end = memchr(at, ']', (size_t) (end - at));
		if (host_end == NULL)
			return "the bracket around the host's address is not closed";
	}
	else
	{
		host_end = memchr(at, ':', (size_t) (end - at));
		if (host_end == NULL)
			host_end = end;
	}
	if (host_end == at)
		return "the host is missing";
	if (!decode(at, (size_t) (host_end - at), url->host, sizeof(url->host)))
		return "the host is too long or not percent-encoded as it must be";
	if (bracket)
		host_end++;
	if (host_end == end)
		return NULL;
	if (*host_end != ':' ||
		!number(host_end + 1, (size_t) (end - host_end - 1), 65535, &url->port) ||
		url->port == 0)
		return "the port must be a number from 1 to 65535";
	return NULL;
}

static const char *
parse_db(const char *at, size_t len, RedisUrl *url)
{
	if (!number(at, len, MAX_DB, &url->db))
		return "the database must be a number from 0 to 65535";
	return NULL;
}

static const char *
parse_tcp(const char *at, RedisUrl *url)
{
	/* a password may hold '/' only percent-encoded */
	const char *end = at + strcspn(at, "/?#");
	const char *wrong;

	wrong = parse_user(&at, end, url);
	if (wrong == NULL)
		wrong = parse_host(at, end, url);
	if (wrong != NULL || *end == '\0')
		return wrong;
	if (*end != '/')
		return "nothing may follow but a slash and the number of a database";
	if (end[1] == '\0')
		return NULL;
	return parse_db(end + 1, strlen(end + 1), url);
}

static const char *
parse_local(const char *at, RedisUrl *url)
{
	const char *end = at + strcspn(at, "?#");
	const char *slash = memchr(at, '/', (size_t) (end - at));
	const char *wrong;

	if (slash == NULL)
		return "the path of the socket is missing";
	wrong = parse_user(&at, slash, url);
	if (wrong != NULL)
		return wrong;
	if (at != slash)
		return "the path of the socket must be absolute, as in \"unix:///path\"";
	if (!decode(at, (size_t) (end - at), url->host, sizeof(url->host)) ||
		strlen(url->host) > MAX_SOCKET_PATH)
		return "the path of the socket is too long or not percent-encoded as it must be";
	if (*end == '\0')
		return NULL;
	if (strncmp(end, "?db=", 4) != 0)
		return "nothing may follow but \"?db=\" and the number of a database";
	return parse_db(end + 4, strlen(end + 4), url);
}

const char *
redis_url_parse(const char *text, RedisUrl *url)
{
	memset(url, 0, sizeof(RedisUrl));
	url->port = DEFAULT_PORT;
	if (strncmp(text, "redis://", 8) == 0)
		return parse_tcp(text + 8, url);
	if (strncmp(text, "rediss://", 9) == 0)
	{
		url->tls = true;
		return parse_tcp(text + 9, url);
	}
	if (strncmp(text, "unix://", 7) == 0)
	{
		url->local = true;
		return parse_local(text + 7, url);
	}
	return "it must begin with \"redis://\", \"rediss://\" or \"unix://\"";
}

void
redis_url_show(const RedisUrl *url, char *buf, size_t size)
{
	const char *secret = url->has_password ? "***@" : "";
	bool		bracket = strchr(url->host, ':') != NULL;

	if (url->local && url->db == 0)
		snprintf(buf, size, "unix://%s%s", secret, url->host);
	else if (url->local)
		snprintf(buf, size, "unix://%s%s?db=%d", secret, url->host, url->db);
	else
		snprintf(buf, size, "%s://%s%s%s%s:%d/%d", url->tls ? "rediss" : "redis", secret,
				 bracket ? "[" : "", url->host, bracket ? "]" : "", url->port, url->db);
}

int
redis_backoff(int failures, uint32_t random)
{
	int			ms = REDIS_BACKOFF_FIRST;

	for (int i = 1; i < failures && ms < REDIS_BACKOFF_MAX; i++)
		ms *= 2;
	if (ms > REDIS_BACKOFF_MAX)
		ms = REDIS_BACKOFF_MAX;
	/* from a half to all of it */
	return ms / 2 + (int) (random % (uint32_t) (ms - ms / 2 + 1));
}
