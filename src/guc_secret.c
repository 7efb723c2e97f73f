/*-------------------------------------------------------------------------
 *
 * guc_secret.c
 *	  The settings that hold secrets: subdispatch.redis_url, subdispatch.bus_key.
 *
 * PostgreSQL shows the value of a setting in many places: to members of
 * pg_read_all_settings (pg_monitor is one) in pg_settings and SHOW, and in the
 * log when it is wrong and when a reload changes it.  So what PostgreSQL takes
 * for the value of these is always empty; the real one travels beside it, as
 * the check hook's "extra", to the assign hook and from there to our
 * variables.  SHOW gets what may be seen from the show hooks.  Messages hold
 * nothing of the value.
 *
 * The configuration files have it in plain text, so pg_file_settings shows it
 * to superusers, who can read the files.  A command ALTER SYSTEM SET with it is
 * a statement like any other in pg_stat_activity and the log.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "subdispatch.h"

#include "utils/guc.h"

#include "guc_secret.h"
#include "redis_url.h"

/* "extra" of the hooks, or NULL if nothing is set */
char	   *subdispatch_redis_url = NULL;
char	   *subdispatch_bus_key = NULL;

/* What PostgreSQL takes for the values: empty strings. */
static char *redis_url_setting = NULL;
static char *bus_key_setting = NULL;

/* Moves the value to *extra and leaves an empty one. */
static bool
hide(char **newval, void **extra)
{
	char	   *empty = strdup("");

	if (empty == NULL)
	{
		/* the default message has the value in it */
		GUC_check_errmsg("out of memory");
		return false;
	}
	*extra = *newval;
	*newval = empty;
	return true;
}

static bool
check_redis_url(char **newval, void **extra, GucSource source)
{
	RedisUrl	url;
	const char *wrong;

	if (*newval == NULL || **newval == '\0')
		return true;
	wrong = redis_url_parse(*newval, &url);
	explicit_bzero(&url, sizeof(url));
	if (wrong != NULL)
	{
		/* the default message has the value in it */
		GUC_check_errmsg("invalid value for parameter \"%s\"", "subdispatch.redis_url");
		GUC_check_errdetail("About the URL: %s.", wrong);
		return false;
	}
	return hide(newval, extra);
}

static void
assign_redis_url(const char *newval, void *extra)
{
	subdispatch_redis_url = extra;
}

static const char *
show_redis_url(void)
{
	static char shown[REDIS_URL_SHOWN];
	RedisUrl	url;

	if (subdispatch_redis_url == NULL)
		return "";
	(void) redis_url_parse(subdispatch_redis_url, &url);
	redis_url_show(&url, shown, sizeof(shown));
	explicit_bzero(&url, sizeof(url));
	return shown;
}

static bool
check_bus_key(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || **newval == '\0')
		return true;
	if (strlen(*newval) < BUS_KEY_MIN)
	{
		GUC_check_errmsg("invalid value for parameter \"%s\"", "subdispatch.bus_key");
		GUC_check_errdetail("The key must have at least %d characters.", BUS_KEY_MIN);
		return false;
	}
	return hide(newval, extra);
}

static void
assign_bus_key(const char *newval, void *extra)
{
	subdispatch_bus_key = extra;
}

static const char *
show_bus_key(void)
{
	return subdispatch_bus_key == NULL ? "" : "********";
}

void
guc_define_secrets(void)
{
	DefineCustomStringVariable("subdispatch.redis_url",
							   "Where Redis is, for subdispatch.event_bus = redis.",
							   "redis://[user:password@]host[:port][/db], rediss://... with TLS, or "
							   "unix://[user:password@]/path[?db=n]. Nobody is shown the password.",
							   &redis_url_setting, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_redis_url, assign_redis_url, show_redis_url);
	DefineCustomStringVariable("subdispatch.bus_key",
							   "The secret by which the servers of a group know each other's events.",
							   "The same on all of them, at least 16 characters. Without it the Redis bus does not "
							   "start. Nobody is shown it.",
							   &bus_key_setting, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_bus_key, assign_bus_key, show_bus_key);
}
