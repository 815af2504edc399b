/* Parser of /banger/config: lines `key value`. Bounded; a wrong value names its line. */
#include "config.h"

#include <string.h>

#include "base.h"

static bool copy_text(char *to, size_t size, const char *value)
{
	size_t length = strlen(value);
	if (length == 0 || length >= size)
		return false;
	memcpy(to, value, length + 1);
	return true;
}

/* Up to `most`, in decimal, until `end`; *text then stands behind `end` (at the NUL where end is 0). */
static bool take_number(const char **text, unsigned most, char end, unsigned *number)
{
	unsigned value = 0;
	const char *at = *text;
	if (*at < '0' || *at > '9')
		return false;
	for (; *at >= '0' && *at <= '9'; at++) {
		value = value * 10 + (unsigned)(*at - '0');
		if (value > most)
			return false;
	}
	if (*at != end)
		return false;
	*text = end ? at + 1 : at;
	*number = value;
	return true;
}

static bool parse_ipv4(const char *value, uint8_t octets[4], unsigned *prefix)
{
	for (int i = 0; i < 4; i++) {
		unsigned octet;
		char end = i < 3 ? '.' : (prefix ? '/' : 0);
		if (!take_number(&value, 255, end, &octet))
			return false;
		octets[i] = (uint8_t)octet;
	}
	return !prefix || take_number(&value, 32, 0, prefix);
}

static int hex_digit(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	digit |= 0x20;
	return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static bool parse_mac(const char *value, uint8_t mac[6])
{
	if (strlen(value) != 17)
		return false;
	for (int i = 0; i < 6; i++) {
		int high = hex_digit(value[3 * i]), low = hex_digit(value[3 * i + 1]);
		if (high < 0 || low < 0 || (i < 5 && value[3 * i + 2] != ':'))
			return false;
		mac[i] = (uint8_t)(high * 16 + low);
	}
	return true;
}

static bool device_name(char *to, size_t size, const char *value)
{
	return strncmp(value, "/dev/", 5) == 0 && copy_text(to, size, value);
}

static bool set(struct config *config, const char *key, char *value)
{
	if (!strcmp(key, "hostname"))
		return copy_text(config->hostname, sizeof config->hostname, value);
	if (!strcmp(key, "address"))
		return config->has_address = parse_ipv4(value, config->address, &config->prefix);
	if (!strcmp(key, "gateway"))
		return config->has_gateway = parse_ipv4(value, config->gateway, NULL);
	if (!strcmp(key, "mac"))
		return config->has_mac = parse_mac(value, config->mac);
	if (!strcmp(key, "root_mode")) {
		config->overlay_root = !strcmp(value, "overlay");
		return config->overlay_root || !strcmp(value, "direct");
	}
	if (!strcmp(key, "root"))
		return device_name(config->root, sizeof config->root, value);
	if (!strcmp(key, "overlay"))
		return device_name(config->overlay, sizeof config->overlay, value);
	if (!strcmp(key, "work"))
		return device_name(config->work, sizeof config->work, value);
	if (!strcmp(key, "modules"))
		return device_name(config->modules, sizeof config->modules, value);
	if (!strcmp(key, "init")) {
		if (strcmp(value, "auto") && strcmp(value, "agent") && value[0] != '/')
			return false;
		return copy_text(config->init, sizeof config->init, value);
	}
	if (!strcmp(key, "workdir"))
		return value[0] == '/' && copy_text(config->workdir, sizeof config->workdir, value);
	if (!strcmp(key, "env")) {
		if (config->env_count == CONFIG_MAX_ENV || value[0] == '=' || !strchr(value, '='))
			return false;
		config->env[config->env_count++] = value;
		return true;
	}
	return true; /* of a newer host */
}

int config_parse(struct config *config)
{
	int number = 0;
	for (char *line = config->text; *line;) {
		number++;
		char *end = line + strcspn(line, "\n");
		char *next = *end ? end + 1 : end;
		*end = 0;
		if (*line && *line != '#') {
			char *value = strchr(line, ' ');
			if (!value || value == line)
				return number;
			*value++ = 0;
			if (!set(config, line, value))
				return number;
		}
		line = next;
	}
	return 0;
}

int config_read(struct config *config, const char *path)
{
	memset(config, 0, sizeof *config);
	memcpy(config->root, "/dev/vda", 9);
	memcpy(config->init, "auto", 5);
	ssize_t length = read_file(path, config->text, sizeof config->text);
	if (length < 0 || length >= CONFIG_MAX_BYTES || memchr(config->text, 0, (size_t)length))
		return -1;
	return config_parse(config);
}
