/* A switch with emulated access links: one network namespace and one TUN device for each host, IPv4 forwarded here.
 *
 *   relay PREFIX HOSTS SEED        PREFIX: "10.77.0"; host i has PREFIX.(i+1)/24
 *
 * Standard input takes one command a line, standard output answers one line each; the end of standard input ends all:
 *   set HOST UP_BPS DOWN_BPS DELAY_US JITTER_US LOSS_PPM QUEUE_US GROUP     rates of 0: no limit
 *   stats HOST                                                    -> up packets, bytes, lost; down packets, bytes, lost
 *
 * A packet crosses two access links. On each it waits for its turn (serialisation at the rate, with 38 B of Ethernet
 * framing), then takes the delay and a uniform part of the jitter, and never overtakes. A sender feels its own uplink:
 * the TUN device is read only while less than 1 ms waits there. The way down drops what would wait more than QUEUE_US.
 * Packets pass only between hosts of one group. Namespaces are nameless (/proc/PID/fd/N): nothing is left behind.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_HOSTS 250
#define MTU 1500
#define FRAMING 38
#define AHEAD_NS 1000000LL

typedef struct {
    double bps;
    int64_t free_at, last_out, packets, bytes, lost;
    uint64_t random;
} Way;

typedef struct {
    int tun, namespace_fd, group;
    int64_t delay_ns, jitter_ns, queue_ns;
    double loss;
    Way up, down;
} Host;

typedef struct {
    int64_t due;
    uint64_t order;
    int target, arrived, size; /* arrived: at the switch (0) or at the host (1) */
    unsigned char data[MTU];
} Packet;

static Host hosts[MAX_HOSTS];
static int host_count;
static Packet **heap;
static size_t heap_size, heap_room;
static uint64_t next_order;

static void fail(const char *what) {
    fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double uniform(Way *way) { /* xorshift64*, [0, 1) */
    uint64_t x = way->random;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    way->random = x;
    return (double)((x * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

static int before(const Packet *a, const Packet *b) {
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void push(Packet *packet) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) fail("memory");
    }
    size_t i = heap_size++;
    for (; i && before(packet, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = packet;
}

static Packet *pop(void) {
    Packet *top = heap[0], *last = heap[--heap_size];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

static void configure(int sock, const char *name, const char *address) {
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (address) {
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        if (ioctl(sock, SIOCSIFADDR, &request)) fail("address");
        inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
        if (ioctl(sock, SIOCSIFNETMASK, &request)) fail("netmask");
        request.ifr_mtu = MTU;
        if (ioctl(sock, SIOCSIFMTU, &request)) fail("mtu");
    }
    memset(&request.ifr_ifru, 0, sizeof request.ifr_ifru);
    if (ioctl(sock, SIOCGIFFLAGS, &request)) fail("flags");
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(sock, SIOCSIFFLAGS, &request)) fail("up");
}

static void open_host(Host *host, const char *prefix, int index, uint64_t seed) {
    char address[32];
    struct ifreq request = {0};
    if (unshare(CLONE_NEWNET)) fail("a network namespace (are you root?)");
    host->namespace_fd = open("/proc/thread-self/ns/net", O_RDONLY);
    host->tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (host->namespace_fd < 0 || host->tun < 0) fail("/dev/net/tun");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(request.ifr_name, "lab0");
    if (ioctl(host->tun, TUNSETIFF, &request)) fail("a TUN device");
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (sock < 0) fail("socket");
    snprintf(address, sizeof address, "%s.%d", prefix, index + 1);
    configure(sock, "lo", NULL);
    configure(sock, "lab0", address);
    close(sock);
    host->queue_ns = 1000000000LL;
    host->up.random = (seed + 1) * 0x9E3779B97F4A7C15ULL + 2 * (uint64_t)index + 1;
    host->down.random = (seed + 1) * 0xD1B54A32D192ED03ULL + 2 * (uint64_t)index + 1;
}

/* When a packet that is at the link at `at` is over it; -1 when it is lost. */
static int64_t cross(Host *host, Way *way, int64_t at, int size, int drop_tail) {
    int64_t start = at > way->free_at ? at : way->free_at;
    way->packets++;
    way->bytes += size;
    if ((drop_tail && start - at > host->queue_ns) || (host->loss > 0 && uniform(way) < host->loss)) {
        way->lost++;
        return -1;
    }
    int64_t done = start + (way->bps > 0 ? (int64_t)(8e9 * (size + FRAMING) / way->bps) : 0);
    way->free_at = done;
    done += host->delay_ns + (host->jitter_ns ? (int64_t)(uniform(way) * (double)host->jitter_ns) : 0);
    if (done < way->last_out) done = way->last_out;
    way->last_out = done;
    return done;
}

static void take(Host *host, int64_t now, uint32_t network) {
    while (host->up.free_at - now < AHEAD_NS) {
        Packet *packet = malloc(sizeof *packet);
        if (!packet) fail("memory");
        packet->size = (int)read(host->tun, packet->data, MTU);
        if (packet->size < 0) {
            free(packet);
            return;
        }
        uint32_t target = 0;
        if (packet->size >= 20 && packet->data[0] >> 4 == 4) memcpy(&target, packet->data + 16, 4);
        target = ntohl(target);
        packet->target = (int)(target & 255) - 1;
        packet->arrived = 0;
        packet->order = next_order++;
        int known = target >> 8 == network && packet->target >= 0 && packet->target < host_count;
        packet->due = known ? cross(host, &host->up, now, packet->size, 0) : -1;
        if (packet->due < 0)
            free(packet);
        else if (hosts[packet->target].group != host->group) {
            host->up.lost++;
            free(packet);
        } else
            push(packet);
    }
}

static void deliver(int64_t now) {
    while (heap_size && heap[0]->due <= now) {
        Packet *packet = pop();
        Host *host = &hosts[packet->target];
        if (!packet->arrived) {
            packet->due = cross(host, &host->down, packet->due, packet->size, 1);
            packet->arrived = 1;
            if (packet->due >= 0) {
                push(packet);
                continue;
            }
        } else if (write(host->tun, packet->data, (size_t)packet->size) < 0)
            host->down.lost++;
        free(packet);
    }
}

static void obey(char *line) {
    double up, down, delay, jitter, loss, queue;
    int index, group;
    if (sscanf(line, "set %d %lf %lf %lf %lf %lf %lf %d", &index, &up, &down, &delay, &jitter, &loss, &queue, &group) == 8 &&
        index >= 0 && index < host_count) {
        Host *host = &hosts[index];
        host->up.bps = up, host->down.bps = down;
        host->delay_ns = (int64_t)(1e3 * delay), host->jitter_ns = (int64_t)(1e3 * jitter);
        host->loss = loss * 1e-6, host->queue_ns = (int64_t)(1e3 * queue), host->group = group;
        printf("ok\n");
    } else if (sscanf(line, "stats %d", &index) == 1 && index >= 0 && index < host_count) {
        const Way *a = &hosts[index].up, *b = &hosts[index].down;
        printf("%lld %lld %lld %lld %lld %lld\n", (long long)a->packets, (long long)a->bytes, (long long)a->lost,
               (long long)b->packets, (long long)b->bytes, (long long)b->lost);
    } else
        printf("error: %s", line);
    fflush(stdout);
}

/* Until something can be read, or is due; an uplink that is ahead of the clock counts as due when it may be read again. */
static void wait_for(struct pollfd *waiting, int64_t now) {
    int64_t until = heap_size ? heap[0]->due : INT64_MAX;
    for (int i = 0; i < host_count; i++) {
        int64_t open_at = hosts[i].up.free_at - AHEAD_NS + 1;
        waiting[i].events = open_at <= now ? POLLIN : 0;
        if (open_at > now && open_at < until) until = open_at;
    }
    int64_t left = until > now ? until - now : 0;
    struct timespec limit = {left / 1000000000LL, left % 1000000000LL};
    if (ppoll(waiting, (nfds_t)host_count + 1, until == INT64_MAX ? NULL : &limit, NULL) < 0 && errno != EINTR) fail("poll");
}

int main(int count, char **words) {
    static char input[4096];
    size_t filled = 0;
    struct in_addr first;
    struct pollfd waiting[MAX_HOSTS + 1];
    char address[32];
    host_count = count == 4 ? atoi(words[2]) : 0;
    if (host_count < 1 || host_count > MAX_HOSTS) {
        fprintf(stderr, "usage: relay PREFIX HOSTS SEED, at most %d hosts\n", MAX_HOSTS);
        return 2;
    }
    snprintf(address, sizeof address, "%.20s.0", words[1]);
    if (inet_pton(AF_INET, address, &first) != 1) fail("prefix");
    uint32_t network = ntohl(first.s_addr) >> 8;
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    for (int i = 0; i < host_count; i++) {
        open_host(&hosts[i], words[1], i, strtoull(words[3], NULL, 10));
        waiting[i] = (struct pollfd){hosts[i].tun, POLLIN, 0};
    }
    waiting[host_count] = (struct pollfd){0, POLLIN, 0};
    for (int i = 0; i < host_count; i++) printf("%d%c", hosts[i].namespace_fd, i + 1 < host_count ? ' ' : '\n');
    fflush(stdout);
    for (;;) {
        wait_for(waiting, now_ns());
        int64_t now = now_ns();
        deliver(now);
        for (int i = 0; i < host_count; i++)
            if (waiting[i].revents || hosts[i].up.free_at > now - AHEAD_NS) take(&hosts[i], now, network);
        if (waiting[host_count].revents) {
            ssize_t got = read(0, input + filled, sizeof input - 1 - filled);
            if (got <= 0) return 0;
            filled += (size_t)got;
            input[filled] = 0;
            char *line = input, *end;
            for (; (end = strchr(line, '\n')); line = end) {
                char keep = *++end;
                *end = 0;
                obey(line);
                *end = keep;
            }
            filled = strlen(line);
            memmove(input, line, filled + 1);
            if (filled == sizeof input - 1) filled = 0;
        }
    }
}
