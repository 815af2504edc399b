/* Address, netmask, route by ioctl: IPv4 is all that needs setting here, and it needs no netlink. */
#include "network.h"

#include <errno.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

static void set_ipv4(struct sockaddr *to, const uint8_t octets[4])
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	memcpy(&address.sin_addr, octets, 4);
	memcpy(to, &address, sizeof address);
}

static struct ifreq request_for(const char *name)
{
	struct ifreq request;
	memset(&request, 0, sizeof request);
	memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	return request;
}

static int bring_up(int fd, const char *name)
{
	struct ifreq request = request_for(name);
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return -1;
	request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
	return ioctl(fd, SIOCSIFFLAGS, &request);
}

static bool find_card(int fd, const struct config *config, char name[IFNAMSIZ])
{
	struct if_nameindex *list = if_nameindex();
	bool found = false;
	for (struct if_nameindex *card = list; card && card->if_name && !found; card++) {
		struct ifreq request = request_for(card->if_name);
		if (ioctl(fd, SIOCGIFHWADDR, &request) < 0 || request.ifr_hwaddr.sa_family != ARPHRD_ETHER)
			continue;
		if (config->has_mac && memcmp(request.ifr_hwaddr.sa_data, config->mac, 6))
			continue;
		memcpy(name, request.ifr_name, IFNAMSIZ);
		found = true;
	}
	if (list)
		if_freenameindex(list);
	return found;
}

static void configure(int fd, const char *name, const struct config *config)
{
	struct ifreq request = request_for(name);
	set_ipv4(&request.ifr_addr, config->address);
	if (ioctl(fd, SIOCSIFADDR, &request) < 0) {
		say("cannot set the address of %s: %s", name, strerror(errno));
		return;
	}
	uint32_t bits = htonl(config->prefix ? 0xffffffffu << (32 - config->prefix) : 0);
	uint8_t mask[4];
	memcpy(mask, &bits, sizeof mask);
	set_ipv4(&request.ifr_netmask, mask);
	if (ioctl(fd, SIOCSIFNETMASK, &request) < 0)
		say("cannot set the netmask of %s: %s", name, strerror(errno));
	if (bring_up(fd, name) < 0)
		say("cannot bring up %s: %s", name, strerror(errno));
	if (!config->has_gateway)
		return;
	static const uint8_t any[4];
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	set_ipv4(&route.rt_dst, any);
	set_ipv4(&route.rt_genmask, any);
	set_ipv4(&route.rt_gateway, config->gateway);
	if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
		say("cannot set the default route: %s", strerror(errno));
}

void network_up(const struct config *config)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		say("no network: %s", strerror(errno));
		return;
	}
	char name[IFNAMSIZ];
	if (bring_up(fd, "lo") < 0)
		say("cannot bring up lo: %s", strerror(errno));
	if (config->has_address) {
		if (find_card(fd, config, name))
			configure(fd, name, config);
		else
			say("no network card found");
	}
	close(fd);
}
