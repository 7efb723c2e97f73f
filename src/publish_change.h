/*-------------------------------------------------------------------------
 *
 * publish_change.h
 *	  From a fired trigger to an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_PUBLISH_CHANGE_H
#define SD_PUBLISH_CHANGE_H

#include "commands/trigger.h"

#include "event.h"

/*
 * The change that an AFTER trigger reports, as an event in the current memory
 * context.  Raises 54000 if its images are too large.
 */
extern SdEvent *change_event(TriggerData *data, const char *channel, const char *event_type);

#endif							/* SD_PUBLISH_CHANGE_H */
