/*-------------------------------------------------------------------------
 *
 * event_image.h
 *	  Between event.c and event_image.c, and for visible.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_EVENT_IMAGE_H
#define SD_EVENT_IMAGE_H

#include "event.h"

/* {"op", "schema", "table", "row", "old"} of a change; see event_data(). */
extern Jsonb *event_change_data(const SdEvent *ev);

/* Such an object, with these images; either may be NULL. */
extern Jsonb *event_change_object(const SdEvent *ev, const char *op, Jsonb *row, Jsonb *old);
extern const char *event_op_name(uint8 op);

/*
 * A fingerprint of how rows lie in memory that a value of this type can hold
 * (a composite, or an array, domain or range of one); 0 if it holds none.
 */
extern uint32 event_type_shape(Oid type);
extern bool event_type_has_rows(Oid type);

/* The descriptor of an event's images; valid until others were asked for. */
extern TupleDesc event_image_desc(const SdEvent *ev);
/* What makes a column's values unreadable since the image was made, or NULL. */
extern const char *event_att_problem(const SdEventAtt *att);

#endif							/* SD_EVENT_IMAGE_H */
