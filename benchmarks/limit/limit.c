/*
 * limit: what two processes can reach over a Unix domain socket, or through shared memory,
 * without a runtime in between. Each wait tries again for 50 µs, then blocks in poll(2) or
 * futex(2). Each process has a CPU of its own where there are two: both on one is the worst
 * case of such a wait. In shared memory the processes trust each other.
 *
 *	limit WORKLOAD SIZE MILLISECONDS
 *
 * prints the median and the mean time of one unit of work in microseconds, or MB/s twice for a
 * stream, and a figure for the CPU time of one: the seconds that both processes used, times that
 * mean, or divided by that rate. It compares runs that are equally long.
 *
 *	limit slow PROGRAM ARGUMENT ...
 *
 * runs a program, and all that it starts, with system calls that cost about a
 * microsecond more: a long seccomp(2) filter looks at each of them.
 *
 * Build: cc -O2 -o limit limit.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 50000

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Keeps this process on the nth of the CPUs that it may run on, if it has so many. */
static void stay_on(int nth)
{
	cpu_set_t may, one;

	if (sched_getaffinity(0, sizeof may, &may) < 0 || CPU_COUNT(&may) <= nth)
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &may) && nth-- == 0) {
			CPU_ZERO(&one);
			CPU_SET(cpu, &one);
			sched_setaffinity(0, sizeof one, &one);
			return;
		}
	}
}

static void nonblocking(int fd)
{
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		die("fcntl");
}

/* Called after each attempt that would block; *since is 0 before the first. */
static void wait_for(int fd, short events, int64_t *since)
{
	int64_t t = now();

	if (*since == 0) {
		*since = t;
	} else if (t - *since >= SPIN_NS) {
		struct pollfd p = {fd, events, 0};

		poll(&p, 1, -1);
		*since = 0;
	}
}

/* Returns 0 at the end of the stream. */
static ssize_t read_some(int fd, char *p, size_t n)
{
	int64_t since = 0;

	for (;;) {
		ssize_t r = read(fd, p, n);

		if (r >= 0)
			return r;
		if (errno == ECONNRESET)
			return 0;
		if (errno == EAGAIN)
			wait_for(fd, POLLIN, &since);
		else if (errno != EINTR)
			die("read");
	}
}

static int read_all(int fd, char *p, size_t n)
{
	while (n > 0) {
		ssize_t r = read_some(fd, p, n);

		if (r == 0)
			return 0;
		p += r;
		n -= r;
	}
	return 1;
}

static void write_all(int fd, const char *p, size_t n)
{
	int64_t since = 0;

	while (n > 0) {
		ssize_t r = write(fd, p, n);

		if (r >= 0) {
			p += r;
			n -= r;
			since = 0;
		} else if (errno == EPIPE) {
			return;
		} else if (errno == EAGAIN) {
			wait_for(fd, POLLOUT, &since);
		} else if (errno != EINTR) {
			die("write");
		}
	}
}

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(sizeof(int))];
};

static void send_file(int s, int fd)
{
	char byte = 0;
	union control c = {{0}};
	struct iovec v = {&byte, 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c};
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	int64_t since = 0;

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(h), &fd, sizeof fd);
	while (sendmsg(s, &m, 0) < 0) {
		if (errno == EAGAIN)
			wait_for(s, POLLOUT, &since);
		else if (errno != EINTR)
			die("sendmsg");
	}
}

/* Returns -1 at the end of the stream. */
static int receive_file(int s)
{
	char byte;
	union control c;
	struct iovec v = {&byte, 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c};
	struct cmsghdr *h;
	int64_t since = 0;
	ssize_t r;
	int fd;

	while ((r = recvmsg(s, &m, MSG_CMSG_CLOEXEC)) < 0) {
		if (errno == EAGAIN)
			wait_for(s, POLLIN, &since);
		else if (errno != EINTR)
			die("recvmsg");
	}
	h = CMSG_FIRSTHDR(&m);
	if (r == 0 || h == NULL)
		return -1;
	memcpy(&fd, CMSG_DATA(h), sizeof fd);
	return fd;
}

static struct sockaddr_un address;

static int dial(void)
{
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	while (connect(s, (struct sockaddr *)&address, sizeof address) < 0) {
		if (errno != EAGAIN && errno != EINTR)
			die("connect");
		sched_yield();
	}
	nonblocking(s);
	return s;
}

/* ------------------------------------------------------------------ */
/* Shared memory: a ring in each direction                             */

#define RING (1 << 20)
#define PART (64 << 10) /* the reader gets to see so much of a long write at once */

/* What one side waits for. The other side adds to news only while sleeps is set. */
struct wait {
	_Atomic uint32_t sleeps, news;
};

struct ring {
	_Alignas(128) _Atomic uint64_t head; /* bytes written */
	struct wait reader;
	_Alignas(128) _Atomic uint64_t tail; /* bytes read */
	struct wait writer;
	_Alignas(128) char data[RING];
};

static struct {
	struct ring to_server, to_client;
	_Atomic int closed;
} *memory;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static void wake(struct wait *w)
{
	if (atomic_load(&w->sleeps)) {
		atomic_fetch_add(&w->news, 1);
		syscall(SYS_futex, &w->news, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

/* Waits until *index is no longer old, or the other side is gone. */
static void await_change(_Atomic uint64_t *index, uint64_t old, struct wait *w)
{
	int64_t since = 0;

	for (int i = 1; atomic_load(index) == old && !atomic_load(&memory->closed); i++) {
		uint32_t seen;

		relax();
		if (i % 64 != 0)
			continue;
		if (since == 0)
			since = now();
		if (now() - since < SPIN_NS)
			continue;
		seen = atomic_load(&w->news);
		atomic_store(&w->sleeps, 1);
		if (atomic_load(index) == old && !atomic_load(&memory->closed))
			syscall(SYS_futex, &w->news, FUTEX_WAIT, seen, NULL, NULL, 0);
		atomic_store(&w->sleeps, 0);
		since = 0;
	}
}

static size_t least(size_t a, size_t b, size_t c)
{
	a = a < b ? a : b;
	return a < c ? a : c;
}

static void put_all(struct ring *r, const char *p, size_t n)
{
	while (n > 0 && !atomic_load(&memory->closed)) {
		uint64_t head = atomic_load(&r->head), tail = atomic_load(&r->tail);
		size_t at = head % RING, m;

		if (head - tail == RING) {
			await_change(&r->tail, tail, &r->writer);
			continue;
		}
		m = least(least(n, PART, RING - at), RING - (head - tail), n);
		memcpy(r->data + at, p, m);
		atomic_store(&r->head, head + m);
		wake(&r->reader);
		p += m;
		n -= m;
	}
}

/* Returns 0 at the end of the stream. */
static size_t take_some(struct ring *r, char *p, size_t n)
{
	uint64_t tail = atomic_load(&r->tail), head;
	size_t at = tail % RING, m;

	while ((head = atomic_load(&r->head)) == tail) {
		if (atomic_load(&memory->closed))
			return 0;
		await_change(&r->head, head, &r->reader);
	}
	m = least(n, head - tail, RING - at);
	memcpy(p, r->data + at, m);
	atomic_store(&r->tail, tail + m);
	wake(&r->writer);
	return m;
}

static int take_all(struct ring *r, char *p, size_t n)
{
	while (n > 0) {
		size_t m = take_some(r, p, n);

		if (m == 0)
			return 0;
		p += m;
		n -= m;
	}
	return 1;
}

static void map_memory(void)
{
	int fd = memfd_create("ipc-limit", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, sizeof *memory) < 0)
		die("memfd_create");
	memory = mmap(NULL, sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	close(fd);
}

static void leave_memory(void)
{
	atomic_store(&memory->closed, 1);
	wake(&memory->to_server.reader);
}

/* ------------------------------------------------------------------ */
/* Workloads: the server's side, and one unit of the client's          */

static char *buffer;
static size_t size;
static int in, out; /* the client's ends */
static int file;

static void echo(int r, int w)
{
	while (read_all(r, buffer, size))
		write_all(w, buffer, size);
}

static void exchange(void)
{
	write_all(out, buffer, size);
	if (!read_all(in, buffer, size))
		die("the server is gone");
}

static void echo_memory(int r, int w)
{
	(void)r, (void)w;
	while (take_all(&memory->to_server, buffer, size))
		put_all(&memory->to_client, buffer, size);
}

static void exchange_memory(void)
{
	put_all(&memory->to_server, buffer, size);
	if (!take_all(&memory->to_client, buffer, size))
		die("the server is gone");
}

static void take_files(int r, int w)
{
	int fd;

	while ((fd = receive_file(r)) >= 0) {
		close(fd);
		write_all(w, buffer, 1);
	}
}

static void pass_file(void)
{
	send_file(out, file);
	if (!read_all(in, buffer, 1))
		die("the server is gone");
}

static void greet(int listener)
{
	int64_t since = 0;

	for (;;) {
		int c = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (c < 0) {
			wait_for(listener, POLLIN, &since);
			continue;
		}
		if (read_all(c, buffer, 1))
			write_all(c, buffer, 1);
		close(c);
		since = 0;
	}
}

static void be_greeted(void)
{
	int c = dial();

	write_all(c, buffer, 1);
	if (!read_all(c, buffer, 1))
		die("the server is gone");
	close(c);
}

static void drain(int r, int w)
{
	(void)w;
	while (read_some(r, buffer, size) > 0)
		;
}

static void pour(void)
{
	write_all(out, buffer, size);
}

static void drain_memory(int r, int w)
{
	(void)r, (void)w;
	while (take_some(&memory->to_server, buffer, size) > 0)
		;
}

static void pour_memory(void)
{
	put_all(&memory->to_server, buffer, size);
}

/* ------------------------------------------------------------------ */

static double cpu_seconds(int who)
{
	struct rusage u;

	getrusage(who, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

/*
 * The filter loads an argument of the call, over and over: of one that looks at the
 * number of the call alone the kernel would keep the answer.
 */
static int run_slowly(char **argv)
{
	static struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog filter = {BPF_MAXINSNS, code};

	for (int i = 0; i < BPF_MAXINSNS; i += 2) {
		code[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
		code[i + 1] = (struct sock_filter)BPF_STMT(BPF_ST, 0);
	}
	code[BPF_MAXINSNS - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
		die("prctl");
	execvp(argv[0], argv);
	die(argv[0]);
	return 1;
}

#define SAMPLES 1000000

int main(int argc, char **argv)
{
	static int64_t times[SAMPLES];
	int s[2], p[2], q[2], listener = -1, stream = 0;
	int64_t start, t, end;
	size_t n = 0;
	double cpu, mean = 0;
	void (*serve)(int, int) = echo;
	void (*unit)(void) = exchange;
	const char *name;
	pid_t server;

	if (argc > 2 && strcmp(argv[1], "slow") == 0)
		return run_slowly(argv + 2);
	if (argc != 4) {
		fprintf(stderr, "usage: limit ping-pong|messages|pipe|connect|file|stream|memory|memory-stream SIZE MILLISECONDS\n"
				"       limit slow PROGRAM ARGUMENT ...\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	name = argv[1];
	size = strtoul(argv[2], NULL, 10);
	buffer = calloc(1, size + 1);
	address.sun_family = AF_UNIX;
	if (strcmp(name, "pipe") == 0) {
		if (pipe2(p, O_CLOEXEC | O_NONBLOCK) < 0 || pipe2(q, O_CLOEXEC | O_NONBLOCK) < 0)
			die("pipe2");
		in = q[0], out = p[1], s[0] = p[0], s[1] = q[1];
	} else {
		int type = strcmp(name, "messages") == 0 ? SOCK_SEQPACKET : SOCK_STREAM;

		if (socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p) < 0)
			die("socketpair");
		in = out = p[0], s[0] = s[1] = p[1];
	}
	if (strcmp(name, "file") == 0) {
		serve = take_files, unit = pass_file;
		if ((file = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
			die("/dev/null");
	} else if (strcmp(name, "stream") == 0) {
		serve = drain, unit = pour, stream = 1;
	} else if (strcmp(name, "memory") == 0) {
		serve = echo_memory, unit = exchange_memory;
		map_memory();
	} else if (strcmp(name, "memory-stream") == 0) {
		serve = drain_memory, unit = pour_memory, stream = 1;
		map_memory();
	} else if (strcmp(name, "connect") == 0) {
		unit = be_greeted;
		/* an abstract name: unix(7) */
		snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "ipc-limit-%d", (int)getpid());
		listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
			die("listen");
	}

	server = fork();
	if (server == 0) {
		stay_on(1);
		close(in), close(out);
		if (listener >= 0)
			greet(listener);
		serve(s[0], s[1]);
		return 0;
	}
	close(s[0]), close(s[1]);
	stay_on(0);

	cpu = cpu_seconds(RUSAGE_SELF);
	start = t = now();
	end = start + strtol(argv[3], NULL, 10) * INT64_C(1000000);
	if (stream) {
		for (; t < end; t = now(), n++)
			unit();
	} else {
		while (t < end) {
			int64_t before = t;

			unit();
			t = now();
			if (n < SAMPLES)
				times[n++] = t - before;
		}
	}
	cpu = cpu_seconds(RUSAGE_SELF) - cpu;
	close(in), close(out);
	if (memory != NULL)
		leave_memory();
	if (listener >= 0)
		kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	cpu += cpu_seconds(RUSAGE_CHILDREN);
	if (stream) {
		double rate = n * (double)size / ((t - start) / 1e9) / 1e6;

		printf("%g %g %g\n", rate, rate, cpu / rate);
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		mean += times[i] / 1e3 / n;
	qsort(times, n, sizeof times[0], compare);
	printf("%g %g %g\n", times[n / 2] / 1e3, mean, cpu * mean);
	return 0;
}
