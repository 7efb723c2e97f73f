/*-------------------------------------------------------------------------
 *
 * security.h
 *	  As whom user code runs in a dispatcher (security.c), and with which
 *	  settings (rights.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_SECURITY_H
#define SD_SECURITY_H

#include "subdispatch.h"

#include "nodes/nodes.h"
#include "utils/guc.h"
#include "utils/jsonb.h"

/*
 * The rights that count while user code runs.  values[i] NULL means that the
 * setting names[i] is at its default.  The caller owns all of it; it must live
 * as long as it is entered.
 */
typedef struct SdRights
{
	Oid			role;
	int			nsettings;
	const char **names;
	const char **values;
} SdRights;

/* What security_leave needs to know; on the caller's stack. */
typedef struct SdGuard
{
	Oid			base_role;		/* the session's own user, a superuser */
	int			guc_nest_level;
	bool		had_temp_schema;
} SdGuard;

/*
 * Once per dispatcher, after it has connected: makes the safe values of
 * search_path and row_security the session's own, so that entering needn't.
 */
extern void security_init_worker(void);

/*
 * Becomes rights->role around one piece of user code: session_user,
 * current_user and is_superuser, a security-restricted operation, a fresh GUC
 * nest level with safe values and the settings given.  security_leave undoes
 * all that the code left behind in the session.  Not to be nested; the caller
 * has no portal (SPI cursor) of its own open, for all are closed on leaving.
 *
 * Both may raise an error.  On an error, theirs or the code's, the caller
 * rolls its subtransaction back, or is about to abort its transaction, and
 * calls security_reset(), which raises none and may be called at any time
 * between transactions or after a rollback.
 */
extern void security_enter(SdGuard *guard, const SdRights *rights);
extern void security_leave(SdGuard *guard);
extern void security_reset(void);

/*
 * From here on the code that was entered may only look: policies and casts,
 * which run as often as it suits us, and with rights that aren't their
 * author's.  The transaction is read-only, and what a read-only transaction
 * does not stop is refused, until the rights are given back.  Raises an error if
 * code that was not quiet has run in the transaction.
 */
extern void security_be_quiet(void);
/* Is it quiet code that runs? */
extern bool security_is_quiet(void);
/*
 * To be called by the hooks of functions and utility commands: raise 25006 for
 * what quiet code may not do.
 */
extern void security_check_function(Oid function);
extern void security_check_utility(Node *stmt);

/* Are user code's rights in force?  For Asserts. */
extern bool security_entered(void);

extern bool security_role_exists(Oid role);
extern bool security_may_become(Oid owner, Oid role);

/* Raises the error that entering these rights would raise. */
extern void security_try_settings(const SdRights *rights);

/* ---- rights.c ---- */

/*
 * Settings of an identity, always in canonical form: an object of strings,
 * keys spelled as in context_settings, in jsonb's order.
 *
 * capture: the current values of those that are set.
 * check:	the canonical form of what a user gave; raises 42501 for a key that
 *			context_settings does not list and 22023 for a value that no
 *			setting can have.
 * make:	canonical settings as rights: those context_settings lists, with
 *			NULL for what isn't given.  Allocated in CurrentMemoryContext.
 */
extern Jsonb *security_capture_settings(const char *context_settings);
extern Jsonb *security_check_settings(Jsonb *settings, const char *context_settings);
extern SdRights *security_make_rights(Oid role, Jsonb *settings, const char *context_settings);

/* Is it one that subdispatch.context_settings lists? */
extern bool security_lists_setting(const char *name);

/* check_hook of subdispatch.context_settings */
extern bool security_check_context_settings(char **newval, void **extra, GucSource source);

#endif							/* SD_SECURITY_H */
