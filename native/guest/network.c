/* See network.h. The classic ioctls do all that one interface with one address needs. */
#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "console.h"

#define INTERFACE "eth0"

static int bring_up(int fd, const char *name)
{
	struct ifreq request = {0};

	(void)snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
		return -errno;
	request.ifr_flags |= IFF_UP;
	return ioctl(fd, SIOCSIFFLAGS, &request) == 0 ? 0 : -errno;
}

static int set_address(int fd, unsigned long what, struct in_addr value)
{
	struct ifreq request = {0};
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = value};

	(void)snprintf(request.ifr_name, sizeof request.ifr_name, "%s", INTERFACE);
	memcpy(&request.ifr_addr, &address, sizeof address);
	return ioctl(fd, what, &request) == 0 ? 0 : -errno;
}

static int add_default_route(int fd, struct in_addr gateway)
{
	const struct sockaddr_in any = {.sin_family = AF_INET};
	const struct sockaddr_in next = {.sin_family = AF_INET, .sin_addr = gateway};
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};

	memcpy(&route.rt_dst, &any, sizeof any);
	memcpy(&route.rt_genmask, &any, sizeof any);
	memcpy(&route.rt_gateway, &next, sizeof next);
	return ioctl(fd, SIOCADDRT, &route) == 0 || errno == EEXIST ? 0 : -errno;
}

/* A new file in place of whatever the image has there, a link among it. */
static int write_file(const char *path, const char *text)
{
	FILE *file;

	(void)unlink(path);
	file = fopen(path, "we");
	if (file == NULL)
		return -errno;
	(void)fputs(text, file);
	return fclose(file) == 0 ? 0 : -errno;
}

void network_start(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int error = fd < 0 ? -errno : bring_up(fd, "lo");

	if (error != 0)
		say("lo does not come up: %s", strerror(-error));
	if (fd >= 0)
		close(fd);
}

static int configure(int fd, const struct job_network *network, const char **step)
{
	struct in_addr mask = {htonl(network->prefix == 0 ? 0 : 0xFFFFFFFFU << (32 - network->prefix))};
	int error;

	*step = "address";
	error = set_address(fd, SIOCSIFADDR, network->address);
	if (error == 0)
		error = set_address(fd, SIOCSIFNETMASK, mask);
	if (error != 0)
		return error;
	*step = "link";
	error = bring_up(fd, INTERFACE);
	if (error != 0)
		return error;
	*step = "route";
	return add_default_route(fd, network->gateway);
}

int network_configure(const struct job_network *network, const char **step)
{
	char text[64];
	char name[INET_ADDRSTRLEN];
	int error;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	*step = "socket";
	if (fd < 0)
		return -errno;
	error = configure(fd, network, step);
	close(fd);
	if (error != 0 || network->nameserver.s_addr == 0)
		return error;
	*step = "resolv.conf";
	(void)snprintf(text, sizeof text, "nameserver %s\n",
		       inet_ntop(AF_INET, &network->nameserver, name, sizeof name));
	return write_file("/etc/resolv.conf", text);
}

void network_set_hostname(const char *hostname)
{
	FILE *hosts;

	if (sethostname(hostname, strlen(hostname)) != 0)
		say("no host name: %s", strerror(errno));
	hosts = fopen("/etc/hosts", "ae");
	if (hosts == NULL)
		return;
	(void)fprintf(hosts, "127.0.1.1 %s\n", hostname);
	(void)fclose(hosts);
}
