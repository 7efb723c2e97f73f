/*
 * bench.h
 *	  What the load generators share: errors, time, connections, samples.
 *
 * Each program connects as libpq's environment variables say, does its work,
 * and prints one line of JSON.  Where its processes run is decided outside.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <hiredis.h>
#include <libpq-fe.h>

/* The names that the suite subscribes with. */
#define CHANNEL		"bench"
#define CONSUMER	"bench"

#define DATA_SIZE	128

extern void die(const char *format,...) __attribute__((noreturn, format(printf, 1, 2)));

extern int64_t now_ns(void);
extern void sleep_us(long us);
extern long number_argument(const char *text, long least);

/*
 * A connection, and a statement of text parameters prepared in it.  Consumers
 * connect to another server if BENCH_CONSUMER has a connection string.
 */
extern PGconn *db_connect(void);
extern PGconn *db_connect_consumer(void);
extern void db_prepare(PGconn *conn, const char *name, const char *sql);
extern void db_do(PGconn *conn, const char *sql);

/* Dies unless the result is of that status; the result is the caller's. */
extern PGresult *db_expect(PGconn *conn, PGresult *result, ExecStatusType status);

/* Sends and receives; db_end() takes what comes up to the end of the command. */
extern void db_send(PGconn *conn, const char *statement, int nparams, const char *const *params, int binary);
extern PGresult *db_result(PGconn *conn, ExecStatusType status);
extern void db_end(PGconn *conn);

/* A connection to the Redis server whose socket BENCH_REDIS names. */
extern redisContext *redis_connect(void);

/* Processor time so far, of this process and of a connection's backend. */
extern int64_t own_cpu_ns(void);
extern int64_t backend_cpu_ns(PGconn *conn);

/* Waits until the socket can be read. */
extern void wait_readable(int fd);

/*
 * Prints count, mean, p50, p99 and max, in microseconds, of samples in ns, and
 * the processor time that they took.
 */
extern void print_samples(int64_t *samples, long count, int64_t cpu_ns);

#endif							/* BENCH_H */
