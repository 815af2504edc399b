/* Files that the agent reads: the host's config, and of the guest /proc/net's tables, accounts, sshd's settings. */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static FILE *fuzz_fopen(const char *path, const char *mode);

#define fopen fuzz_fopen
#include "../src/users.c"
#undef fopen
#include "../src/config.h"
#include "../src/sshd.h"

static bool accounts_are_ours;

static FILE *fuzz_fopen(const char *path, const char *mode)
{
	if (!accounts_are_ours)
		return fopen(path, mode);
	return fopen(path_of_bytes(!strcmp(path, "/etc/group")), mode);
}

void fuzz_users(const uint8_t *data, size_t size)
{
	static struct account account;
	struct input input = {data, size};
	size_t length, who_length;
	char who[300];
	accounts_are_ours = true;
	const uint8_t *piece = take_piece(&input, &who_length);
	who_length = who_length < sizeof who - 1 ? who_length : sizeof who - 1;
	memcpy(who, piece, who_length);
	who[who_length] = 0;
	piece = take_piece(&input, &length);
	bytes_as_file(0, piece, length);
	bytes_as_file(1, input.at, input.left);
	if (!user_find(&account, who))
		return;
	REQUIRE(account.group_count >= 0 && account.group_count <= USER_MAX_GROUPS);
	REQUIRE(account.home[0] == '/' && memchr(account.home, 0, sizeof account.home));
	REQUIRE(account.shell[0] == '/' && memchr(account.shell, 0, sizeof account.shell));
	REQUIRE(memchr(account.name, 0, sizeof account.name) && account.uid < UINT32_MAX);
}

void fuzz_config(const uint8_t *data, size_t size)
{
	static struct config config_of_input;
	bytes_as_file(0, data, size);
	if (config_read(&config_of_input, path_of_bytes(0)))
		return;
	const struct config *read = &config_of_input;
	REQUIRE(memchr(read->hostname, 0, sizeof read->hostname) && memchr(read->root, 0, sizeof read->root));
	REQUIRE(memchr(read->overlay, 0, sizeof read->overlay) && memchr(read->work, 0, sizeof read->work));
	REQUIRE(memchr(read->init, 0, sizeof read->init) && read->init[0] && !strncmp(read->root, "/dev/", 5));
	REQUIRE(memchr(read->workdir, 0, sizeof read->workdir) && (!read->workdir[0] || read->workdir[0] == '/'));
	REQUIRE(read->env_count <= CONFIG_MAX_ENV && !read->env[read->env_count] && read->prefix <= 32);
	for (size_t i = 0; i < read->env_count; i++)
		REQUIRE(read->env[i] >= read->text && read->env[i] < read->text + sizeof read->text && strchr(read->env[i], '='));
}

void fuzz_sshd(const uint8_t *data, size_t size)
{
	static const char path[] = SANDBOX "/sshd_config", key[] = "/etc/ssh/ssh_host_ed25519_key";
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size && close(fd) == 0);
	int changed = sshd_offer_key(path, key);
	REQUIRE(changed == 0 || changed == 1);
	REQUIRE(sshd_offer_key(path, key) == 0);
}
