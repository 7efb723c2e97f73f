/*-------------------------------------------------------------------------
 *
 * elsewhere.c
 *	  What outlives a restart: were events published by another bus than Redis?
 *
 * Who resumes out of the stream in Redis must be told when events went another
 * way after the one that he knows: the stream shows no trace of them, nor of the
 * time in which this server was not on it.  While the server is up,
 * SdBus->not_in_stream tells up to which id that may be.  So that it does not
 * begin anew with the server, a small file of each database says either that
 * it is "open" (events have gone another way, and more may have since), or up
 * to which id they may have.  No file: none ever did.
 *
 *	  publisher		by another bus: opens it before the commit, and notes after
 *					it that it was used (elsewhere_begin(), elsewhere_note())
 *	  bus worker	takes such notes once a second, and when there was none for
 *					SD_IDLE_END writes up to where it was, which closes the file
 *	  after a start	the first worker or publisher of the database reads it;
 *					open means: up to the beginning of this server's memory
 *
 * A publisher who found it open may note that only after it was closed; then
 * the bus worker opens it again.  Nothing but a crash within that second can get
 * in between, which costs the events themselves as well (DESIGN 4.1).
 *
 * What cannot be read is taken for open.  What cannot be written is logged, and
 * publishing goes on.
 *
 * Takes no lock, and is not called under one.  Of those who open it at once each
 * writes the same; a single process closes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "dispatcher.h"
#include "elsewhere.h"

#define OPEN_TEXT	"open\n"

static TimestampTz quiet_since = 0; /* the bus worker's; 0: it has just begun */

/* ---- the file ---- */

static void
file_name(Oid dboid, char *path)
{
	snprintf(path, MAXPGPATH, PGSTAT_STAT_PERMANENT_DIRECTORY "/subdispatch.%u", dboid);
}

static void
complain(const char *path)
{
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", path),
			 errdetail("After a restart of the server, subscriptions that resume are not told of events that went another way than through Redis.")));
}

/* Whole or not at all. */
static void
write_file(Oid dboid, const char *text)
{
	char		path[MAXPGPATH];
	char		temporary[MAXPGPATH];
	int			len = (int) strlen(text);
	int			fd;

	file_name(dboid, path);
	snprintf(temporary, MAXPGPATH, PGSTAT_STAT_PERMANENT_DIRECTORY "/subdispatch.%u.%d", dboid, MyProcPid);
	fd = BasicOpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	if (fd < 0)
	{
		complain(temporary);
		return;
	}
	errno = 0;
	if (write(fd, text, len) != len || pg_fsync(fd) != 0)
	{
		/* a write that is short does not say why */
		if (errno == 0)
			errno = ENOSPC;
		complain(temporary);
		close(fd);
		(void) unlink(temporary);
		return;
	}
	close(fd);
	/* logs what goes wrong, and removes what it could not rename */
	(void) durable_rename(temporary, path, LOG);
}

/* Up to which id, or PG_UINT64_MAX if that is open; 0 if there is no file. */
static uint64
read_file(Oid dboid)
{
	char		path[MAXPGPATH];
	char		text[32];
	char	   *end;
	uint64		id;
	int			fd;
	int			n;

	file_name(dboid, path);
	fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0 && errno == ENOENT)
		return 0;
	n = fd < 0 ? -1 : (int) read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return PG_UINT64_MAX;
	text[n] = '\0';
	id = strtou64(text, &end, 10);
	return *end == '\n' && end[1] == '\0' && id < SD_MAX_EVENT_ID ? id : PG_UINT64_MAX;
}

void
elsewhere_forget(Oid dboid)
{
	char		path[MAXPGPATH];

	file_name(dboid, path);
	(void) unlink(path);
}

/* ---- this server's view ---- */

/*
 * What an earlier run has left, if nobody has looked.  Who looks at the same time
 * comes to the same.
 */
void
elsewhere_look(SdDatabase *db)
{
	SdBus	   *bus = &db->bus;
	uint32		unknown = SD_ELSEWHERE_UNKNOWN;
	uint64		id;

	if (pg_atomic_read_u32(&bus->elsewhere) != SD_ELSEWHERE_UNKNOWN)
		return;
	id = read_file(db->dboid);
	if (id != 0)
		bus_note_elsewhere(db, id == PG_UINT64_MAX ? (uint64) (bus->begun_at + UNIX_EPOCH_US) : id);
	(void) pg_atomic_compare_exchange_u32(&bus->elsewhere, &unknown,
										  id == PG_UINT64_MAX ? SD_ELSEWHERE_OPEN : SD_ELSEWHERE_CLOSED);
}

void
elsewhere_open(SdDatabase *db)
{
	elsewhere_look(db);
	if (pg_atomic_read_u32(&db->bus.elsewhere) == SD_ELSEWHERE_OPEN)
		return;
	write_file(db->dboid, OPEN_TEXT);
	pg_atomic_write_u32(&db->bus.elsewhere, SD_ELSEWHERE_OPEN);
}

/* The bus worker, about once a second. */
void
elsewhere_settle(SdDatabase *db, TimestampTz now)
{
	SdBus	   *bus = &db->bus;
	char		text[32];

	elsewhere_look(db);
	/* what is published meanwhile goes another way, or nowhere */
	if (subdispatch_event_bus != SD_BUS_REDIS || pg_atomic_exchange_u32(&bus->elsewhere_used, 0) != 0)
	{
		elsewhere_begin(db);
		bus_note_elsewhere(db, 0);
		quiet_since = now;
		return;
	}
	if (quiet_since == 0)
		quiet_since = now;
	if (pg_atomic_read_u32(&bus->elsewhere) != SD_ELSEWHERE_OPEN || now - quiet_since < SD_IDLE_END)
		return;
	snprintf(text, sizeof(text), UINT64_FORMAT "\n", pg_atomic_read_u64(&bus->not_in_stream));
	write_file(db->dboid, text);
	pg_atomic_write_u32(&bus->elsewhere, SD_ELSEWHERE_CLOSED);
}
