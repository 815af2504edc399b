/* What a connection may ask for. */
#ifndef BANGER_REQUESTS_H
#define BANGER_REQUESTS_H

#include "frame.h"

/* HELLO, then one request and its exchange. */
void requests_serve(int fd);

/* HELLO, and that there are too many connections. */
void requests_refuse(int fd);

void reply_error(int fd, const char *code, const char *message, int error);
void reply_ok(int fd, const struct builder *builder);

/* Each serves one request. A later one (sessions, copies, ports) is one more line in requests.c's table and
 * one more name among HELLO's features. */
void request_exec(int fd, const struct frame *request);
void request_shutdown(int fd, const struct frame *request);
void request_session_start(int fd, const struct frame *request);
void request_session_list(int fd, const struct frame *request);
void request_session_attach(int fd, const struct frame *request);
void request_session_signal(int fd, const struct frame *request);
void request_session_stop(int fd, const struct frame *request);
void request_session_logs(int fd, const struct frame *request);
void request_session_remove(int fd, const struct frame *request);
void request_session_send(int fd, const struct frame *request);
void request_ports(int fd, const struct frame *request);
void request_forward(int fd, const struct frame *request);
void request_probe(int fd, const struct frame *request);
void request_network(int fd, const struct frame *request);
void request_copy_in(int fd, const struct frame *request);
void request_copy_out(int fd, const struct frame *request);

#endif
