/* Unit tests of src/redis_url.c. */
/* uses: redis_url.c */
#include "redis_url.h"
#include "tap.h"

#include <stdlib.h>

static RedisUrl url;

static void
good(const char *text, const char *shown, const char *user, const char *password)
{
	char		buf[REDIS_URL_SHOWN];
	const char *wrong = redis_url_parse(text, &url);

	if (!ok(wrong == NULL, text))
	{
		printf("# %s\n", wrong);
		return;
	}
	redis_url_show(&url, buf, sizeof(buf));
	is_text(buf, shown, "as it is shown");
	is_text(url.user, user, "its user");
	is_text(url.password, password, "its password");
}

static void
bad(const char *text, const char *why)
{
	const char *wrong = redis_url_parse(text, &url);

	if (ok(wrong != NULL, text))
		ok(strstr(wrong, why) != NULL, wrong);
}

/* Whatever the bytes are, they are read without harm, and what is good can be shown. */
static void
fuzz(void)
{
	static const char *const pieces[] = {
		"redis://", "rediss://", "unix://", "host", ":", "@", "/", "%", "%41", "%00", "?db=", "#", "[", "]", "::1",
		"1", "99999", "user", "pass", "\xff", "?", "//", "localhost"
	};
	int			parsed = 0;

	for (int i = 0; i < 200000; i++)
	{
		char		text[2048] = "";
		char		shown[REDIS_URL_SHOWN];

		for (int n = (int) (random_below(12)); n > 0; n--)
			strcat(text, pieces[random_below(sizeof(pieces) / sizeof(pieces[0]))]);
		if (redis_url_parse(text, &url) != NULL)
			continue;
		parsed++;
		redis_url_show(&url, shown, sizeof(shown));
		if (strlen(url.host) == 0 || url.db < 0 || url.db > 65535 || (!url.local && (url.port < 1 || url.port > 65535)))
		{
			ok(false, text);
			return;
		}
	}
	ok(parsed > 100, "random texts are read without harm");
}

int
main(void)
{
	char		text[4096];
	RedisUrl	again;

	good("redis://localhost", "redis://localhost:6379/0", "", "");
	good("redis://localhost/", "redis://localhost:6379/0", "", "");
	good("redis://10.0.0.1:7000/3", "redis://10.0.0.1:7000/3", "", "");
	good("redis://:secret@host", "redis://***@host:6379/0", "", "secret");
	good("redis://app:secret@host:1/15", "redis://***@host:1/15", "app", "secret");
	good("rediss://app:s%40c%2Fr%3At@redis.example.com", "rediss://***@redis.example.com:6379/0", "app", "s@c/r:t");
	good("redis://a%3Ab:p@ss:w@host", "redis://***@host:6379/0", "a:b", "p@ss:w");
	good("redis://[::1]:7000", "redis://[::1]:7000/0", "", "");
	good("redis://[fe80::1]", "redis://[fe80::1]:6379/0", "", "");
	good("unix:///run/redis/redis.sock", "unix:///run/redis/redis.sock", "", "");
	good("unix:///run/redis.sock?db=7", "unix:///run/redis.sock?db=7", "", "");
	good("unix://app:secret@/run/redis.sock", "unix://***@/run/redis.sock", "app", "secret");
	good("unix:///a%20b@c", "unix:///a b@c", "", "");

	ok(redis_url_parse("rediss://h", &url) == NULL && url.tls && !url.local, "rediss is TLS");
	ok(redis_url_parse("unix:///h", &url) == NULL && !url.tls && url.local, "unix is local");
	ok(redis_url_parse("redis://u:p@h", &url) == NULL && url.has_user && url.has_password, "user and password");
	ok(redis_url_parse("redis://:p@h", &url) == NULL && !url.has_user && url.has_password, "password alone");

	bad("", "must begin");
	bad("http://host", "must begin");
	bad("localhost:6379", "must begin");
	bad("redis://", "host is missing");
	bad("redis://:6379", "host is missing");
	bad("redis://user@host", "password must follow");
	bad("redis://user:@host", "password is empty");
	bad("redis://host:0", "port");
	bad("redis://host:65536", "port");
	bad("redis://host:", "port");
	bad("redis://host:1x", "port");
	bad("redis://host:-1", "port");
	bad("redis://host/x", "database");
	bad("redis://host/-1", "database");
	bad("redis://host/65536", "database");
	bad("redis://host/00", "database");
	bad("redis://host/1/2", "database");
	bad("redis://host?db=1", "nothing may follow");
	bad("redis://ho%zzst", "percent");
	bad("redis://host%4", "percent");
	bad("redis://host%", "percent");
	bad("redis://ho%00st", "percent");
	bad("redis://u:p%00@host", "password");
	bad("redis://[::1", "bracket");
	bad("redis://[]", "host is missing");
	bad("unix://", "path");
	bad("unix://relative/path", "absolute");
	bad("unix:///path?x=1", "nothing may follow");
	bad("unix:///path?db=", "database");

	/* Too long for where it is to go. */
	memset(text, 'x', sizeof(text));
	memcpy(text, "redis://", 8);
	text[8 + REDIS_URL_HOST] = '\0';
	bad(text, "host is too long");
	memset(text, 'x', sizeof(text));
	memcpy(text, "redis://:", 9);
	strcpy(text + 9 + REDIS_URL_SECRET, "@host");
	bad(text, "password is too long");
	memset(text, 'x', sizeof(text));
	memcpy(text, "unix:///", 8);
	text[8 + 107] = '\0';
	bad(text, "path");

	/* The longest that are good can be shown whole. */
	memset(text, 'x', sizeof(text));
	memcpy(text, "rediss://u:", 11);
	strcpy(text + 11 + REDIS_URL_SECRET - 1, "@h:65535/65535");
	ok(redis_url_parse(text, &again) == NULL && strlen(again.password) == REDIS_URL_SECRET - 1, "the longest password");

	fuzz();

	/* The times double up to a limit, with a random half. */
	for (int failures = 1; failures < 40; failures++)
	{
		int			low = redis_backoff(failures, 0);
		int			most = 0;
		int			least = 1 << 30;

		for (uint32_t r = 0; r < 100000; r++)
		{
			int			ms = redis_backoff(failures, r);

			most = ms > most ? ms : most;
			least = ms < least ? ms : least;
		}
		if (least != low || most != 2 * low || most > REDIS_BACKOFF_MAX)
			ok(false, "from a half to the whole");
	}
	is_int(redis_backoff(1, 0), REDIS_BACKOFF_FIRST / 2, "the first time");
	is_int(redis_backoff(3, 0), REDIS_BACKOFF_FIRST * 2, "doubled twice");
	is_int(redis_backoff(1000000, 0), REDIS_BACKOFF_MAX / 2, "not longer than that");
	return done();
}
