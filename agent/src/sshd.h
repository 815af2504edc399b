/* The image's sshd offers the host key that the host gave it. */
#ifndef BANGER_SSHD_H
#define BANGER_SSHD_H

#define SSHD_CONFIG "/etc/ssh/sshd_config"
#define SSHD_HOST_KEY "/etc/ssh/ssh_host_ed25519_key"

/* Where a configuration lists host keys of its own and would read neither key nor drop-in: put a line for the
 * key at its top. 1 when it was changed, 0 when nothing had to be, -1 with errno. */
int sshd_offer_key(const char *config, const char *key);

#endif
