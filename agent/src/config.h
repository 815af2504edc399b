/* What the host told this guest: /banger/config of the initramfs. */
#ifndef BANGER_CONFIG_H
#define BANGER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONFIG_MAX_BYTES 65536
#define CONFIG_MAX_ENV 256

struct config {
	char hostname[65];
	bool has_address;
	uint8_t address[4];
	unsigned prefix;
	bool has_gateway;
	uint8_t gateway[4];
	bool has_mac;
	uint8_t mac[6];
	bool overlay_root;
	char root[64];
	char overlay[64];
	char work[64];
	char modules[64]; /* the disk with the kernel's; empty: none */
	char init[256];
	char workdir[256]; /* where commands begin that name no folder; empty: at home */
	char *env[CONFIG_MAX_ENV + 1]; /* `K=V`, NULL at the end; points into text */
	size_t env_count;
	char text[CONFIG_MAX_BYTES + 1];
};

/* Read it. 0, or the number of the line that is wrong (-1: the file itself). Unknown keys are skipped. */
int config_read(struct config *config, const char *path);

/* The same from text already in config->text. */
int config_parse(struct config *config);

#endif
