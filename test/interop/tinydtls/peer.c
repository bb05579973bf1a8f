/*
 * A client on tinydtls with a raw public key (RFC 7250), for the tests of
 * interoperation: what it reads from standard input it sends as application data, a
 * read a datagram, and what comes it prints.
 *
 *	peer ADDRESS PORT PRIVATE X Y SERVER-X SERVER-Y
 *
 * Keys are of P-256, in hexadecimal. It trusts no server but the one with that key.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tinydtls.h"
#include "dtls.h"
#include "dtls_debug.h"

enum { size = 32 };

static unsigned char key[5][size]; /* private, x, y; x, y of the server */
static int connected, over;

static const dtls_ecdsa_key_t own = {DTLS_ECDH_CURVE_SECP256R1, key[0], key[1], key[2]};

static int get_key(dtls_context_t *ctx, const session_t *session, const dtls_ecdsa_key_t **result)
{
	*result = &own;
	return 0;
}

static int verify_key(dtls_context_t *ctx, const session_t *session, const unsigned char *x, const unsigned char *y, size_t n)
{
	if (n == size && memcmp(x, key[3], size) == 0 && memcmp(y, key[4], size) == 0)
		return 0;
	return dtls_alert_fatal_create(DTLS_ALERT_CERTIFICATE_UNKNOWN);
}

static int to_peer(dtls_context_t *ctx, session_t *session, uint8 *b, size_t n)
{
	return sendto(*(int *)dtls_get_app_data(ctx), b, n, MSG_DONTWAIT, &session->addr.sa, session->size);
}

static int from_peer(dtls_context_t *ctx, session_t *session, uint8 *b, size_t n)
{
	while (n > 0) {
		ssize_t done = write(STDOUT_FILENO, b, n);
		if (done <= 0)
			exit(1);
		b += done;
		n -= done;
	}
	return 0;
}

static int event(dtls_context_t *ctx, session_t *session, dtls_alert_level_t level, unsigned short code)
{
	if (code == DTLS_EVENT_CONNECTED)
		connected = 1;
	else if (level == DTLS_ALERT_LEVEL_FATAL || code == DTLS_ALERT_CLOSE_NOTIFY)
		over = 1;
	return 0;
}

static int unhex(const char *text, unsigned char *out)
{
	if (strlen(text) != 2 * size)
		return 0;
	for (int i = 0; i < size; i++)
		if (sscanf(text + 2 * i, "%2hhx", out + i) != 1)
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	static dtls_handler_t handler = {
		.write = to_peer, .read = from_peer, .event = event, .get_ecdsa_key = get_key, .verify_ecdsa_key = verify_key,
	};
	session_t to;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	int ok = argc == 8 && fd >= 0;

	for (int i = 0; ok && i < 5; i++)
		ok = unhex(argv[3 + i], key[i]);
	dtls_session_init(&to);
	to.size = sizeof to.addr.sin;
	to.addr.sin.sin_family = AF_INET;
	if (!ok || inet_pton(AF_INET, argv[1], &to.addr.sin.sin_addr) != 1) {
		fprintf(stderr, "usage: peer ADDRESS PORT PRIVATE X Y SERVER-X SERVER-Y\n");
		return 2;
	}
	to.addr.sin.sin_port = htons(atoi(argv[2]));

	dtls_init();
	dtls_set_log_level(DTLS_LOG_WARN);
	dtls_context_t *ctx = dtls_new_context(&fd);
	if (ctx == NULL)
		return 1;
	dtls_set_handler(ctx, &handler);
	if (dtls_connect(ctx, &to) < 0)
		return 1;
	while (!over) {
		uint8 b[DTLS_MAX_BUF];
		struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = connected ? STDIN_FILENO : -1, .events = POLLIN}};

		if (poll(fds, 2, 100) < 0)
			return 1;
		if (fds[0].revents & POLLIN) {
			session_t from;

			dtls_session_init(&from);
			from.size = sizeof from.addr;
			ssize_t n = recvfrom(fd, b, sizeof b, MSG_TRUNC, &from.addr.sa, &from.size);
			if (n > 0 && n <= (ssize_t)sizeof b)
				dtls_handle_message(ctx, &from, b, n);
		}
		if (fds[1].revents) {
			ssize_t n = read(STDIN_FILENO, b, 1024);
			if (n <= 0)
				break;
			dtls_write(ctx, &to, b, n);
		}
		dtls_check_retransmit(ctx, NULL);
	}
	dtls_free_context(ctx);
	return over;
}
