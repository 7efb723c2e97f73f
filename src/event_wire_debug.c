/*-------------------------------------------------------------------------
 *
 * event_wire_debug.c
 *	  Only in builds with assertions: what tests need to send an event around
 *	  without a second server.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef USE_ASSERT_CHECKING

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "event_wire.h"
#include "image_text.h"

/*
 * A test's CREATE FUNCTION f(bytea, authenticated boolean) RETURNS text STRICT:
 * what another server would make of the text, sent on; or why it is none.
 */
PG_FUNCTION_INFO_V1(subdispatch_debug_wire_text);

Datum
subdispatch_debug_wire_text(PG_FUNCTION_ARGS)
{
	bytea	   *text = PG_GETARG_BYTEA_PP(0);
	const char *why;
	Size		len;
	SdEvent    *ev = event_wire_in(VARDATA_ANY(text), VARSIZE_ANY_EXHDR(text),
								   PG_GETARG_BOOL(1), &why);
	char	   *again = NULL;

	if (ev && image_is_received(ev))
		why = "a row image";
	else if (ev)
		again = event_wire_out(ev, &ev->commit, &len, &why);

	if (ev)
		pfree(ev);
	PG_RETURN_TEXT_P(cstring_to_text(again ? again : why));
}

/* The event as if another server had sent it; an error if it can't be. */
SdEvent *
event_wire_loop(const SdEvent *ev)
{
	const char *why;
	Size		len;
	char	   *text;
	SdEvent    *again;
	int			nest_level = NewGUCNestLevel();

	/* a dispatcher has done without image_text_init() */
	(void) set_config_option("lc_monetary", "C", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	text = event_wire_out(ev, &ev->commit, &len, &why);
	again = text ? event_wire_in(text, len, true, &why) : NULL;
	AtEOXact_GUC(false, nest_level);
	if (again == NULL)
		elog(ERROR, "an event does not survive its journey: %s", why);
	event_copy_place(again, ev);
	return again;
}

#endif
