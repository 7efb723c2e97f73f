/*-------------------------------------------------------------------------
 *
 * redis_net.c
 *	  A byte stream to Redis: looking up the host, connecting, TLS.
 *
 * hiredis could connect, but not without blocking on a host's name, and as
 * Debian 12 has it not with TLS.
 *
 * NAMES.  getaddrinfo() cannot be interrupted, and a name server that does not
 * answer holds it for half a minute.  getaddrinfo_a() of the GNU C library does
 * it in a thread of its own, in which all signals are blocked and no code of
 * PostgreSQL's runs.  A lookup that is not over when it is given up goes on,
 * so its memory stays until it is; the next lookup of the same host takes it
 * over.  There is no message when it ends, it is looked at every LOOKUP_POLL.
 *
 * TLS.  The certificate must be for the host of the URL, and from an authority
 * that is trusted: those of subdispatch.redis_ca_file or of the system.
 *
 * Nothing raises an error.  Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "redis_net.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <sys/un.h>
#include <unistd.h>

#include "storage/latch.h"

#include "subdispatch.h"

#define LOOKUP_POLL		10		/* ms */

/* ---- errors ---- */

static NetResult
failed(RedisNet *net, const char *what, const char *why)
{
	snprintf(net->error, sizeof(net->error), "%s: %s", what, why);
	return NET_FAILED;
}

static NetResult
failed_errno(RedisNet *net, const char *what)
{
	int			e = errno;
	char		buf[128];

	return failed(net, what, strerror_r(e, buf, sizeof(buf)));
}

/* What OpenSSL has to say; forgets it. */
static NetResult
failed_ssl(RedisNet *net, const char *what)
{
	unsigned long e = ERR_get_error();
	long		verified = net->ssl ? SSL_get_verify_result(net->ssl) : X509_V_OK;
	char		buf[128];

	ERR_clear_error();
	if (verified != X509_V_OK)
		return failed(net, what, X509_verify_cert_error_string(verified));
	if (e == 0)
		return failed(net, what, "the connection was closed");
	ERR_error_string_n(e, buf, sizeof(buf));
	return failed(net, what, buf);
}

/* ---- names ---- */

/* A lookup under way, or the last one; malloc'd, of the process. */
typedef struct Lookup
{
	struct gaicb request;
	struct addrinfo hints;
	char		host[REDIS_URL_HOST];
	char		port[8];
} Lookup;

static Lookup *lookup = NULL;	/* NULL: none is under way */

static bool
lookup_is_for(const RedisUrl *url)
{
	return lookup != NULL && strcmp(lookup->host, url->host) == 0 &&
		atoi(lookup->port) == url->port;
}

/* Begins a lookup unless there is one of this host already. */
static NetResult
lookup_begin(RedisNet *net)
{
	struct gaicb *list[1];
	int			rc;

	if (lookup_is_for(&net->url))
		return NET_WAIT;
	/* one for another host that is still under way has to be left to itself */
	lookup = calloc(1, sizeof(Lookup));
	if (lookup == NULL)
		return failed(net, "could not look up the host", "out of memory");
	strlcpy(lookup->host, net->url.host, sizeof(lookup->host));
	snprintf(lookup->port, sizeof(lookup->port), "%d", net->url.port);
	lookup->hints.ai_family = AF_UNSPEC;
	lookup->hints.ai_socktype = SOCK_STREAM;
	lookup->request.ar_name = lookup->host;
	lookup->request.ar_service = lookup->port;
	lookup->request.ar_request = &lookup->hints;
	list[0] = &lookup->request;
	rc = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
	if (rc != 0)
	{
		free(lookup);
		lookup = NULL;
		return failed(net, "could not look up the host", gai_strerror(rc));
	}
	return NET_WAIT;
}

static void
keep_addresses(RedisNet *net, const struct addrinfo *list)
{
	net->naddresses = 0;
	for (const struct addrinfo *a = list; a && net->naddresses < NET_MAX_ADDRESSES; a = a->ai_next)
	{
		if (a->ai_addrlen > sizeof(struct sockaddr_storage))
			continue;
		memcpy(&net->addresses[net->naddresses], a->ai_addr, a->ai_addrlen);
		net->address_len[net->naddresses++] = a->ai_addrlen;
	}
}

static NetResult
lookup_continue(RedisNet *net)
{
	int			rc;

	if (!lookup_is_for(&net->url))
		return lookup_begin(net);
	rc = gai_error(&lookup->request);
	if (rc == EAI_INPROGRESS)
		return NET_WAIT;
	if (rc == 0)
		keep_addresses(net, lookup->request.ar_result);
	if (lookup->request.ar_result)
		freeaddrinfo(lookup->request.ar_result);
	free(lookup);
	lookup = NULL;
	if (rc != 0)
		return failed(net, "could not look up the host", gai_strerror(rc));
	return NET_DONE;
}

/* An address needs no lookup. */
static bool
take_numeric(RedisNet *net)
{
	struct addrinfo hints = {0};
	struct addrinfo *list = NULL;
	char		port[8];

	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	snprintf(port, sizeof(port), "%d", net->url.port);
	if (getaddrinfo(net->url.host, port, &hints, &list) != 0)
		return false;
	keep_addresses(net, list);
	freeaddrinfo(list);
	return true;
}

static void
take_socket_path(RedisNet *net)
{
	struct sockaddr_un *address = (struct sockaddr_un *) &net->addresses[0];

	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	strlcpy(address->sun_path, net->url.host, sizeof(address->sun_path));
	net->address_len[0] = sizeof(*address);
	net->naddresses = 1;
}

/* ---- connecting ---- */

static void
close_socket(RedisNet *net)
{
	if (net->fd >= 0)
		close(net->fd);
	net->fd = -1;
	net->wants = 0;
}

static bool
prepare_socket(RedisNet *net, int family)
{
	int			on = 1;

	if (fcntl(net->fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(net->fd, F_SETFD, FD_CLOEXEC) < 0)
		return false;
	/* a peer that vanished is found by our own time limits */
	return family == AF_UNIX ||
		setsockopt(net->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0;
}

/* Tries the addresses that are left, until one is promising. */
static NetResult
connect_next(RedisNet *net)
{
	while (net->next_address < net->naddresses)
	{
		int			i = net->next_address++;
		int			family = net->addresses[i].ss_family;

		close_socket(net);
		net->fd = socket(family, SOCK_STREAM, 0);
		if (net->fd < 0 || !prepare_socket(net, family))
		{
			(void) failed_errno(net, "could not make a socket");
			continue;
		}
		net->generation++;
		if (connect(net->fd, (struct sockaddr *) &net->addresses[i], net->address_len[i]) == 0)
			return NET_DONE;
		if (errno == EINPROGRESS)
		{
			net->wants = WL_SOCKET_WRITEABLE;
			return NET_WAIT;
		}
		(void) failed_errno(net, "could not connect");
	}
	close_socket(net);
	return NET_FAILED;
}

static NetResult
connect_continue(RedisNet *net)
{
	struct sockaddr_storage peer;
	socklen_t	len = sizeof(int);
	int			error = 0;

	if (net->fd < 0)
		return connect_next(net);
	if (getsockopt(net->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error != 0)
	{
		errno = error;
		(void) failed_errno(net, "could not connect");
		return connect_next(net);
	}
	len = sizeof(peer);
	if (getpeername(net->fd, (struct sockaddr *) &peer, &len) < 0)
	{
		/* not connected yet: we were called for another reason */
		if (errno == ENOTCONN)
			return NET_WAIT;
		(void) failed_errno(net, "could not connect");
		return connect_next(net);
	}
	return NET_DONE;
}

/* ---- TLS ---- */

/* Whose certificate it must be. */
static bool
expect_host(RedisNet *net)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(net->ssl);

	if (X509_VERIFY_PARAM_set1_ip_asc(param, net->url.host) == 1)
		return true;
	SSL_set_hostflags(net->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return SSL_set1_host(net->ssl, net->url.host) == 1 &&
		SSL_set_tlsext_host_name(net->ssl, net->url.host) == 1;
}

static NetResult
tls_begin(RedisNet *net)
{
	const char *ca = subdispatch_redis_ca_file;
	bool		trusts;

	ERR_clear_error();
	net->ctx = SSL_CTX_new(TLS_client_method());
	if (net->ctx == NULL ||
		SSL_CTX_set_min_proto_version(net->ctx, TLS1_2_VERSION) != 1)
		return failed_ssl(net, "could not set up TLS");
	SSL_CTX_set_verify(net->ctx, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_mode(net->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	if (ca != NULL && ca[0] != '\0')
		trusts = SSL_CTX_load_verify_locations(net->ctx, ca, NULL) == 1;
	else
		trusts = SSL_CTX_set_default_verify_paths(net->ctx) == 1;
	if (!trusts)
		return failed_ssl(net, "could not load the certificates of subdispatch.redis_ca_file");
	net->ssl = SSL_new(net->ctx);
	if (net->ssl == NULL || SSL_set_fd(net->ssl, net->fd) != 1 || !expect_host(net))
		return failed_ssl(net, "could not set up TLS");
	return NET_DONE;
}

/* What a call of OpenSSL's that returned "rc" waits for. */
static NetResult
tls_result(RedisNet *net, int rc, const char *what)
{
	switch (SSL_get_error(net->ssl, rc))
	{
		case SSL_ERROR_WANT_READ:
			net->wants = WL_SOCKET_READABLE;
			return NET_WAIT;
		case SSL_ERROR_WANT_WRITE:
			net->wants = WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE;
			return NET_WAIT;
		case SSL_ERROR_SYSCALL:
			if (errno != 0 && ERR_peek_error() == 0)
				return failed_errno(net, what);
			/* fall through */
		default:
			return failed_ssl(net, what);
	}
}

static NetResult
tls_continue(RedisNet *net)
{
	int			rc;

	ERR_clear_error();
	errno = 0;
	rc = SSL_connect(net->ssl);
	if (rc == 1)
		return NET_DONE;
	return tls_result(net, rc, "TLS handshake failed");
}

/* ---- opening and closing ---- */

void
net_init(RedisNet *net)
{
	memset(net, 0, sizeof(RedisNet));
	net->fd = -1;
}

void
net_open(RedisNet *net, const RedisUrl *url)
{
	Assert(net->state == NET_CLOSED);
	net->url = *url;
	net->error[0] = '\0';
	net->naddresses = net->next_address = 0;
	net->state = NET_LOOKING_UP;
	if (url->local)
		take_socket_path(net);
	if (url->local || take_numeric(net))
		net->state = NET_CONNECTING;
}

NetResult
net_continue(RedisNet *net)
{
	NetResult	result = NET_DONE;

	if (net->state == NET_LOOKING_UP)
	{
		result = lookup_continue(net);
		if (result == NET_DONE)
			net->state = NET_CONNECTING;
	}
	if (result == NET_DONE && net->state == NET_CONNECTING)
	{
		result = connect_continue(net);
		if (result == NET_DONE)
			net->state = net->url.tls ? NET_SHAKING_HANDS : NET_OPEN;
	}
	if (result == NET_DONE && net->state == NET_SHAKING_HANDS)
	{
		if (net->ssl == NULL)
			result = tls_begin(net);
		if (result == NET_DONE)
			result = tls_continue(net);
		if (result == NET_DONE)
			net->state = NET_OPEN;
	}
	if (result == NET_DONE)
		net->wants = WL_SOCKET_READABLE;
	return result;
}

/* Says no goodbye, since that could block. */
void
net_close(RedisNet *net)
{
	if (net->ssl)
		SSL_free(net->ssl);
	if (net->ctx)
		SSL_CTX_free(net->ctx);
	net->ssl = NULL;
	net->ctx = NULL;
	close_socket(net);
	explicit_bzero(&net->url, sizeof(net->url));
	net->state = NET_CLOSED;
}

/* ---- bytes ---- */

NetResult
net_read(RedisNet *net, char *buf, size_t size, size_t *n)
{
	Assert(net->state == NET_OPEN);
	*n = 0;
	if (net->ssl)
	{
		int			rc;

		ERR_clear_error();
		errno = 0;
		rc = SSL_read_ex(net->ssl, buf, size, n);
		return rc == 1 ? NET_DONE : tls_result(net, rc, "could not read from Redis");
	}
	for (;;)
	{
		ssize_t		got = recv(net->fd, buf, size, 0);

		if (got > 0)
		{
			*n = (size_t) got;
			return NET_DONE;
		}
		if (got == 0)
			return failed(net, "could not read from Redis", "the connection was closed");
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return NET_WAIT;
		if (errno != EINTR)
			return failed_errno(net, "could not read from Redis");
	}
}

NetResult
net_write(RedisNet *net, const char *buf, size_t size, size_t *n)
{
	Assert(net->state == NET_OPEN);
	*n = 0;
	if (net->ssl)
	{
		int			rc;

		ERR_clear_error();
		errno = 0;
		rc = SSL_write_ex(net->ssl, buf, size, n);
		return rc == 1 ? NET_DONE : tls_result(net, rc, "could not write to Redis");
	}
	for (;;)
	{
		ssize_t		put = send(net->fd, buf, size, MSG_NOSIGNAL);

		if (put >= 0)
		{
			*n = (size_t) put;
			return NET_DONE;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
		{
			net->wants = WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE;
			return NET_WAIT;
		}
		if (errno != EINTR)
			return failed_errno(net, "could not write to Redis");
	}
}

long
net_poll_ms(const RedisNet *net)
{
	return net->state == NET_LOOKING_UP ? LOOKUP_POLL : -1;
}
